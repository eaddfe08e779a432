"""What can go wrong on the way to a node, each with what to do next."""

from rbee.wire.errors import RbeeError


class SshUnreachable(RbeeError):
    """Nothing speaks SSH at the address, tries included."""

    code = "SSH_UNREACHABLE"


class SshRefused(RbeeError):
    """The server accepts none of the keys that were offered."""

    code = "SSH_AUTH_REFUSED"


class HostKeyRefused(RbeeError):
    """The server's host key is not known, or is another than the one that is."""

    code = "HOST_KEY_REFUSED"


class NotInstalled(RbeeError):
    """The node has no rbee-hive."""

    code = "NODE_NOT_INSTALLED"


class StepFailed(RbeeError):
    """A command on the node ended with an error; its last words are in the message."""

    code = "NODE_STEP_FAILED"
