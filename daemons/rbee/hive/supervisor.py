"""Who runs a hive's workers, and where their records are read: systemd and its journal, or child processes."""

import os
import sys
from collections.abc import Callable

from rbee.hive.config import HiveConfig, SupervisorKind
from rbee.hive.logs import JournalLogs, KeptLogs, LogSource
from rbee.host.units.facts import UnitSupervisor

_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "PYTHONPATH")


def supervisor_of(
    config: HiveConfig, on_failure: Callable[[BaseException], None], on_reconnect: Callable[[], None]
) -> tuple[UnitSupervisor, LogSource]:
    """What ``config`` names; ``on_failure`` hears what ends it, ``on_reconnect`` of each new connection to systemd."""
    # each is imported where it is used: neither pays the memory of the other
    if config.supervisor is SupervisorKind.SYSTEMD:
        from rbee.host.units.systemd import SystemdUnits

        return SystemdUnits(on_failure, on_reconnect=on_reconnect), JournalLogs()
    from rbee.host.units.child import ChildUnits
    from rbee.host.units.child_life import ChildSettings

    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    units = ChildUnits(
        on_failure,
        command=lambda worker_id: _command(config, worker_id),
        environment={**environment, "ORT_DISABLE_TELEMETRY": "1"},
        settings=ChildSettings(),
    )
    return units, KeptLogs(units.lines)


def _command(config: HiveConfig, worker_id: str) -> list[str]:
    """A worker's command line; its folders change with a restart of the hive only."""
    return [
        sys.executable, "-m", "rbee.worker.main", "--id", worker_id, "--config-dir", config.config_dir,
        "--state-dir", config.state_dir, "--run-dir", config.run_dir,
    ]  # fmt: skip
