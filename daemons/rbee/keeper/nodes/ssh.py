"""One SSH connection to a node: commands as argv, files by SFTP; blocking calls with a time limit each."""

import base64
import contextlib
import logging
import shlex
import socket
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import paramiko

from rbee.keeper.nodes import host_keys
from rbee.keeper.nodes.failures import SshRefused, SshUnreachable, StepFailed

WAITS_S = (0.0, 0.2, 0.4)
"""Seconds before each of the three tries."""
COMMAND_LIMIT_S = 30.0
_MOST_TOLD = 600
_SIGNED_BY = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}
"""Algorithms by which a key of a kind signs, where they are named otherwise than the kind (RFC 8332)."""

logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # what fails is raised, and told once


@dataclass(frozen=True, slots=True)
class Target:
    """Where a node's SSH server is and who logs in; ``key_file`` None means the agent and the usual keys.

    ``limit_s`` bounds each of three tries to connect, and the server's answers until a command can be run.
    """

    host: str
    port: int = 22
    user: str = "root"
    key_file: Path | None = None
    limit_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that ended: its exit status and what it wrote."""

    code: int
    out: str
    err: str


def dial(target: Target, say: Callable[[str], None]) -> socket.socket:
    """A TCP connection to the SSH server: three tries, each failure told; raises SshUnreachable."""
    why = ""
    for number, wait in enumerate(WAITS_S, start=1):
        time.sleep(wait)
        try:
            return socket.create_connection((target.host, target.port), target.limit_s)
        except socket.gaierror:
            raise SshUnreachable(
                f"the name {target.host} has no address: correct it, or give the machine's address"
            ) from None
        except OSError as error:
            slow = isinstance(error, TimeoutError)
            why = f"nothing within {target.limit_s:g} s" if slow else (error.strerror or "no connection").lower()
            say(f"no SSH at {target.host} port {target.port}, try {number} of {len(WAITS_S)}: {why}")
    raise SshUnreachable(
        f"{target.host} does not answer on port {target.port}: {why}, {len(WAITS_S)} tries",
        details={"host": target.host, "tries": len(WAITS_S)},
    )


def shown_key(target: Target, known_keys: Sequence[str], say: Callable[[str], None]) -> str:
    """The host key that the server shows, of a kind that is known where any is; nothing is sent of the person's.

    Raises SshUnreachable.
    """
    with contextlib.closing(dial(target, say)) as connection:
        transport = paramiko.Transport(connection)
        try:
            options = transport.get_security_options()
            kinds = [kind for key in known_keys for kind in _SIGNED_BY.get(key.split(" ")[0], (key.split(" ")[0],))]
            options.key_types = sorted(options.key_types, key=lambda kind: kind not in kinds)
            transport.start_client(timeout=target.limit_s)
            key = transport.get_remote_server_key()
            return f"{key.get_name()} {key.get_base64()}"
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise _no_ssh(target, error) from error
        finally:
            transport.close()


class Ssh:
    """A connection to ``target``, whose host key must be ``host_key``; use it as a context manager.

    Entering raises SshUnreachable, SshRefused, HostKeyRefused. ``address`` is the IP address that was reached.
    """

    def __init__(self, target: Target, host_key: str, say: Callable[[str], None]) -> None:
        self.target = target
        self.address = ""
        self._host_key = host_key
        self._say = say
        self._client = paramiko.SSHClient()

    def __enter__(self) -> Self:
        target = self.target
        name = host_keys.name_of(target.host, target.port)
        kind, data = self._host_key.split(" ")
        keys = self._client.get_host_keys()
        keys.add(name, kind, paramiko.PKey.from_type_string(kind, base64.b64decode(data)))
        self._client.set_missing_host_key_policy(paramiko.RejectPolicy())
        connection = dial(target, self._say)
        self.address = connection.getpeername()[0]
        try:
            self._client.connect(
                target.host,
                target.port,
                target.user,
                key_filename=None if target.key_file is None else str(target.key_file),
                look_for_keys=target.key_file is None,
                allow_agent=True,
                sock=connection,
                timeout=target.limit_s,
                banner_timeout=target.limit_s,
                auth_timeout=target.limit_s,
            )
        except paramiko.BadHostKeyException as error:
            connection.close()
            shown = f"{error.key.get_name()} {error.key.get_base64()}"
            raise host_keys.changed(host_keys.fingerprint(shown), "another one is pinned") from None
        except paramiko.AuthenticationException as error:
            connection.close()
            raise self._refused(error) from None
        except (paramiko.SSHException, EOFError, OSError) as error:
            connection.close()
            raise _no_ssh(target, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def _refused(self, error: paramiko.AuthenticationException) -> SshRefused:
        file, user = self.target.key_file, self.target.user
        if isinstance(error, paramiko.PasswordRequiredException):
            return SshRefused(f"the key {file} has a passphrase: give it to your agent with 'ssh-add {file}'")
        hint = "check that your agent has a key that it knows (ssh-add -l), or name one with --key"
        if file is not None:
            loose = stat.S_IMODE(file.stat().st_mode) & 0o077
            mode = f"its mode is {stat.S_IMODE(file.stat().st_mode):04o}" if loose else "check its mode and owner"
            hint = f"{mode}: 'chmod 600 {file}', and see that its public half is in {user}'s authorized_keys there"
        return SshRefused(f"{self.target.host} refuses user {user}'s key (publickey): {hint}")

    def run(self, argv: Sequence[str], *, limit_s: float = COMMAND_LIMIT_S, check: bool = True) -> Ran:
        """Run a command; ``limit_s`` bounds its silence. Raises StepFailed, with ``check`` for an exit status too."""
        with self._channel(limit_s) as channel, ThreadPoolExecutor(1) as reader:
            try:
                channel.exec_command(shlex.join(argv))
                channel.shutdown_write()
                told = reader.submit(channel.makefile_stderr("rb").read)
                out = channel.makefile("rb").read().decode(errors="replace")
                err = told.result().decode(errors="replace")
                code = channel.recv_exit_status()
            except (paramiko.SSHException, OSError, EOFError) as error:
                channel.close()
                raise StepFailed(
                    f"'{argv[0]}' on {self.target.host} gave no answer within {limit_s:g} s: look at the machine"
                ) from error
        if check and code:
            last = (err.strip() or out.strip())[-_MOST_TOLD:]
            raise StepFailed(f"'{shlex.join(argv)}' on {self.target.host} ended with {code}:\n{last}")
        return Ran(code, out, err)

    def stream(self, argv: Sequence[str]) -> Iterator[bytes]:
        """The output of a command as it comes, until it ends or the connection does."""
        with self._channel(None) as channel:
            channel.set_combine_stderr(True)
            channel.exec_command(shlex.join(argv))
            while chunk := channel.recv(1 << 16):
                yield chunk

    @contextlib.contextmanager
    def files(self) -> Iterator[paramiko.SFTPClient]:
        """SFTP for the length of the block; raises StepFailed where the server does not offer it, or a file fails."""
        try:
            with self._client.open_sftp() as sftp:
                yield sftp
        except (paramiko.SSHException, OSError) as error:
            raise StepFailed(f"files cannot be copied to {self.target.host}: {error}") from error

    def _channel(self, limit_s: float | None) -> paramiko.Channel:
        transport = self._client.get_transport()
        try:
            if transport is None:
                raise SshUnreachable(f"the connection to {self.target.host} is not open")
            channel = transport.open_session(timeout=self.target.limit_s)
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise SshUnreachable(f"the connection to {self.target.host} broke: try again") from error
        channel.settimeout(limit_s)
        return channel


def _no_ssh(target: Target, error: Exception) -> SshUnreachable:
    return SshUnreachable(f"what answers at {target.host} port {target.port} does not speak SSH with us: {error}")
