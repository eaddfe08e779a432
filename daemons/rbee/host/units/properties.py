"""Turns what systemd says about a unit (property names and values) into UnitFacts; pure."""

import re
from collections.abc import Mapping

from rbee.host.units import bus_names
from rbee.host.units.facts import UnitFacts
from rbee.wire import names

PropertyValue = str | int | bytes
_ESCAPE = re.compile(r"_([0-9a-f]{2})")
_WANTED = frozenset(name for _, name in bus_names.READ_PROPERTIES)


def worker_of_path(path: str) -> str | None:
    """The worker whose unit has this object path, or None where it is not one of ours.

    systemd writes each byte that is not a letter or digit as ``_xx``.
    """
    if not path.startswith(bus_names.WORKER_PATH_PREFIX):
        return None
    label = path[len(bus_names.UNIT_ROOT) + 1 :]
    return names.worker_of(_ESCAPE.sub(lambda match: chr(int(match[1], 16)), label))


def path_of_worker(worker_id: str) -> str:
    """The object path of a worker's unit, by systemd's own escaping (no call is needed to find it)."""
    unit = names.unit_of(worker_id)
    # A leading digit would be escaped too; a unit name of ours never begins with one.
    label = "".join(c if c.isalnum() else f"_{ord(c):02x}" for c in unit)
    return f"{bus_names.UNIT_ROOT}/{label}"


def wanted(changed: Mapping[str, object]) -> dict[str, PropertyValue]:
    """The properties of a signal's payload that UnitFacts needs, of the types expected, variants unpacked."""
    found: dict[str, PropertyValue] = {}
    for name, variant in changed.items():
        if name in _WANTED:
            value = getattr(variant, "value", variant)
            if isinstance(value, str | int | bytes):
                found[name] = value
    return found


def complete(properties: Mapping[str, PropertyValue]) -> bool:
    """Whether every property that UnitFacts needs is known (LoadState comes with a listing, not with signals)."""
    return all(name in properties for name in _WANTED - {"LoadState"})


def facts_from(worker_id: str, properties: Mapping[str, PropertyValue], job_result: str = "") -> UnitFacts:
    """UnitFacts of what is known; what is not known has its default."""
    invocation = properties.get("InvocationID", b"")
    return UnitFacts(
        worker_id=worker_id,
        load_state=_text(properties, "LoadState", "loaded"),
        active_state=_text(properties, "ActiveState", "inactive"),
        sub_state=_text(properties, "SubState", "dead"),
        invocation_id=invocation.hex() if isinstance(invocation, bytes) else "",
        main_pid=_number(properties, "MainPID"),
        status_text=_text(properties, "StatusText", ""),
        result=_text(properties, "Result", "success"),
        restarts=_number(properties, "NRestarts"),
        exec_code=_number(properties, "ExecMainCode"),
        exec_status=_number(properties, "ExecMainStatus"),
        inactive_exit_monotonic_us=_number(properties, "InactiveExitTimestampMonotonic"),
        active_enter_monotonic_us=_number(properties, "ActiveEnterTimestampMonotonic"),
        job_result=job_result,
    )


def _text(properties: Mapping[str, PropertyValue], name: str, default: str) -> str:
    value = properties.get(name, default)
    return value if isinstance(value, str) else default


def _number(properties: Mapping[str, PropertyValue], name: str) -> int:
    value = properties.get(name, 0)
    return value if isinstance(value, int) else 0
