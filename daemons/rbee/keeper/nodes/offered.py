"""Which versions a source has of a node's packages, and which are older than what is installed: asked of its apt."""

from collections.abc import Mapping

from rbee.keeper.nodes import layout, preflight
from rbee.keeper.nodes.remote import Root
from rbee.keeper.nodes.source import PACKAGES, AptLine, Source, debs_in

_READ_LIMIT_S = 120.0


def offered(root: Root, source: Source) -> dict[str, str]:
    """The version of each package of a node that ``source`` has now; nothing of the node is changed.

    Raises what SSH raises, StepFailed where apt cannot read the source, CommandFailed for a folder that lacks one.
    """
    if isinstance(source, AptLine):
        return _of_line(root, source)
    return {deb.name: deb.version for deb in debs_in(source.path, preflight.release(root.ssh))}


def older(root: Root, installed: Mapping[str, str], offered: Mapping[str, str]) -> list[str]:
    """The packages of which an older version is offered than is installed, as dpkg on the node compares them."""
    pairs = [(name, offered.get(name), there) for name, there in installed.items() if there]
    return [name for name, version, there in pairs if version not in (None, there) and _before(root, version, there)]


def _before(root: Root, version: str | None, other: str) -> bool:
    return root.ssh.run(["dpkg", "--compare-versions", version or "", "lt", other], check=False).code == 0


def _of_line(root: Root, source: AptLine) -> dict[str, str]:
    """apt reads the source's index into a folder of its own, so that what the node's apt knows stays as it is."""
    with root.folder() as folder:
        line = source.line
        with root.ssh.files() as sftp:
            if source.keyring is not None:
                sftp.put(str(source.keyring), f"{folder}/keyring")
                line = line.replace(layout.KEYRING, f"{folder}/keyring")
            with sftp.open(f"{folder}/rbee.list", "wx") as file:
                file.write(f"{line}\n".encode())
        # apt fetches as a user of its own
        root.run(["chmod", "-R", "a+rX", folder])
        root.run(["mkdir", "-p", f"{folder}/lists/partial", f"{folder}/cache/archives/partial"])
        options = [
            "-o", f"Dir::Etc::SourceList={folder}/rbee.list", "-o", "Dir::Etc::SourceParts=/dev/null",
            "-o", f"Dir::State::Lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache",
        ]  # fmt: skip
        root.run(["apt-get", "-q", *options, "-o", "APT::Update::Error-Mode=any", "update"], limit_s=_READ_LIMIT_S)
        return versions_of(root.run(["apt-cache", *options, "madison", *PACKAGES]).out)


def versions_of(madison: str) -> dict[str, str]:
    """The highest version of each package in what `apt-cache madison` prints: one a line, the highest first."""
    found: dict[str, str] = {}
    for line in madison.splitlines():
        name, version, *_ = (*(part.strip() for part in line.split("|")), "")
        if name in PACKAGES:
            found.setdefault(name, version)
    return found
