"""The preflight of a node's hive: health, version, backends and resources, as facts."""

from collections.abc import Mapping

from rbee import __version__
from rbee.queen.hives.client import HiveClient, versions_fit
from rbee.queen.registry.rows import Hive
from rbee.wire.errors import RbeeError
from rbee.wire.nodes import Check, NodeCheck

LEAST_HIVE_VERSION = "0.1.0"
PROBE_LIMIT_S = 70.0
"""The hive tries each backend in a process of its own, for 60 s at most."""


async def check_hive(client: HiveClient, name: str, hive: Hive | None) -> NodeCheck:
    """Ask the hive of a node; what fails is a fact as well, and what depends on it is left out."""
    if hive is None:
        silent = Check("hive", False, "it has not reported to the queen", f"look at it with 'rbee node logs {name}'")
        return NodeCheck(name, [silent])
    try:
        health = await client.call(hive, "GET", "/v1/health")
    except RbeeError as error:
        return NodeCheck(name, [Check("hive", False, error.message)])
    checks = [
        Check("hive", health.get("status") == "healthy", f"{health.get('status')}, API {health.get('api_version')}"),
        _version(str(health.get("version", ""))),
    ]
    try:
        checks.append(
            _backends(await client.call(hive, "GET", "/v1/capabilities", waits=(0.0,), limit_s=PROBE_LIMIT_S))
        )
    except RbeeError as error:
        checks.append(Check("backends", False, error.message))
    try:
        checks.append(_resources(await client.call(hive, "GET", "/v1/resources")))
    except RbeeError as error:
        checks.append(Check("resources", False, error.message))
    return NodeCheck(name, checks)


def new_enough(version: str, least: str) -> bool:
    """Whether a version is at least another, by its numbers."""
    try:
        return [int(part) for part in version.split(".")] >= [int(part) for part in least.split(".")]
    except ValueError:
        return False


def _version(version: str) -> Check:
    fits = new_enough(version, LEAST_HIVE_VERSION) and versions_fit(__version__, version)
    found = f"{version}; the queen is {__version__} and wants >={LEAST_HIVE_VERSION}"
    return Check("version", fits, found, "" if fits else "bring the node to the queen's version: 'rbee node install'")


def _backends(answer: Mapping[str, object]) -> Check:
    found = answer.get("backends")
    names = [str(name) for name in found] if isinstance(found, list) else []
    return Check("backends", bool(names), ", ".join(names) or "none", "" if names else "run 'rbee doctor' there")


def _resources(answer: Mapping[str, object]) -> Check:
    def size(field: str) -> str:
        value = answer.get(field)
        return f"{value / 2**30:.1f}" if isinstance(value, int) else "?"

    gpus = answer.get("gpus")
    ram = f"{size('ram_available_bytes')} of {size('ram_total_bytes')} GiB of memory free"
    disk = f"{size('disk_available_bytes')} of {size('disk_total_bytes')} GiB of disk free"
    count = len(gpus) if isinstance(gpus, list) else 0
    return Check("resources", isinstance(answer.get("ram_total_bytes"), int), f"{ram}, {disk}, {count} GPUs")
