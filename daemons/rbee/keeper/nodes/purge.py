"""Takes away what an installation brought to a node: hive, workers, packages, credentials, and our files."""

from rbee.keeper.nodes import layout, preflight
from rbee.keeper.nodes.install import APT, APT_SILENCE_S, HIVE_UNITS
from rbee.keeper.nodes.remote import Root
from rbee.keeper.nodes.source import PACKAGES
from rbee.keeper.nodes.steps import Steps

_STOP_LIMIT_S = 120.0
_WORKERS = "rbee-worker@*.service"


def purge(root: Root, steps: Steps) -> None:
    """Stop everything of ours there, then remove packages and files; raises what SSH raises, and StepFailed."""
    with steps.step("stop") as note:
        root.run(["systemctl", "stop", *reversed(HIVE_UNITS), _WORKERS], limit_s=_STOP_LIMIT_S, check=False)
        note.changed, note.told = True, root.unit(HIVE_UNITS[-1]).line
    with steps.step("packages") as note:
        there = [name for name in PACKAGES if preflight.package_version(root.ssh, name)]
        if there:
            root.run([*APT, "purge", *there], limit_s=APT_SILENCE_S)
        note.changed, note.told = bool(there), ", ".join(there)
    with steps.step("files") as note:
        ours = [*layout.DROP_INS, layout.SOURCES, layout.AUTHORITY, *layout.TOKEN_FILES.values()]
        root.run(["rm", "-rf", "--", *ours, layout.TLS_FOLDER])
        root.run(["systemctl", "daemon-reload"])
        note.changed = True
