"""Other credentials for a node, while it serves: old and new ones overlap until the node has the new ones."""

from rbee.keeper.nodes import queen
from rbee.keeper.nodes.install import HIVE_UNITS, put_credentials
from rbee.keeper.nodes.layout import TOKEN_FILES
from rbee.keeper.nodes.remote import Root
from rbee.keeper.nodes.steps import Steps
from rbee.wire.nodes import EnrolRequest, TokenDigests

_RELOAD_LIMIT_S = 60.0
_WORKERS = "rbee-worker@*.service"


def rotate(root: Root, name: str, steps: Steps) -> None:
    """Ask the queen for others, put them in place, have hive and workers read them, and tell the queen so.

    Raises what SSH and the queen raise. Broken off at any point, the next rotation or installation mends it.
    """
    with steps.step("credentials") as note:
        put_credentials(root, name, queen.rotate(name), note)
    with steps.step("reload") as note:
        root.run(["systemctl", "reload", _WORKERS], limit_s=_RELOAD_LIMIT_S)
        root.run(["systemctl", "reload-or-restart", HIVE_UNITS[-1]], limit_s=_RELOAD_LIMIT_S)
        note.changed, note.told = True, root.unit(HIVE_UNITS[-1]).line
    with steps.step("confirm") as note:
        have = TokenDigests(**{token: root.digest(path) for token, path in TOKEN_FILES.items()})
        put_credentials(root, name, queen.enrol(EnrolRequest(name, have, root.certificate())), note)
