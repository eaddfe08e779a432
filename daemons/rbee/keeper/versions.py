"""Whether this command and a daemon fit: the same API, and versions that promise to understand one another."""

from rbee.wire.errors import VersionMismatch


def fits(ours: str, theirs: str) -> bool:
    """Same major version; below 1.0 the minor version must be the same as well."""
    mine, other = ours.split("."), theirs.split(".")
    parts = 2 if mine[0] == "0" else 1
    return mine[:parts] == other[:parts]


def check(name: str, package: str, *, ours: str, theirs: str, our_api: str, their_api: str) -> None:
    """Raise VersionMismatch, naming both versions and the upgrade command, unless the two fit."""
    if fits(ours, theirs) and our_api == their_api:
        return
    raise VersionMismatch(
        f"rbee is version {ours} (API {our_api}) and the {name} is version {theirs} (API {their_api}): bring both to"
        f" the same version with 'apt install --only-upgrade rbee {package}'",
        details={"rbee_version": ours, f"{name}_version": theirs, "api_version": our_api, "their_api": their_api},
    )
