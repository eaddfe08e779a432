"""The end of a whole house: workers that systemd stops together with their hive are seen off by it, one by one.

A hive that goes alone (restart, upgrade) leaves its workers running and waits for nobody.
"""

import asyncio
import logging
import time

from rbee.hive.workers import WorkerTable
from rbee.host.units.facts import UnitSupervisor
from rbee.wire.errors import RbeeError
from rbee.wire.log import log
from rbee.wire.messages import WorkerReport, WorkerState

LOGGER = logging.getLogger(__name__)
TOGETHER_S = 1.0
_LIST_LIMIT_S = 2.0


def _goes(state: WorkerState) -> bool:
    return state.ended or state is WorkerState.DRAINING


def going_too(reports: list[WorkerReport], since_unix: float) -> set[str]:
    """The workers that began to stop, or have stopped, since ``since_unix``; those never started do not count."""
    return {
        report.worker_id
        for report in reports
        if report.managed and _goes(report.state) and report.since_unix >= since_unix and report.invocation_id
    }


async def see_off(table: WorkerTable, units: UnitSupervisor, news: asyncio.Event, limit_s: float) -> None:
    """Stay until the workers that stop with this hive have ended, and say how far it is; ``limit_s`` at most.

    ``news`` is set whenever the table changes. systemd does the stopping, the killing of laggards included.
    """
    since_unix = time.time() - TOGETHER_S
    try:
        async with asyncio.timeout(_LIST_LIMIT_S):
            await units.list()
    except (RbeeError, TimeoutError):
        return  # a bus that is gone tells of nobody's end
    leaving = going_too(table.reports(), since_unix)
    if not leaving:
        return
    log(LOGGER, logging.INFO, f"shutting down {len(leaving)}", workers=len(leaving))
    try:
        async with asyncio.timeout(limit_s):
            await _count(table, leaving, news)
    except TimeoutError:
        left = sorted(leaving - _ended(table, leaving))
        log(LOGGER, logging.WARNING, "workers are left after the limit", workers=", ".join(left), limit_s=limit_s)
    else:
        log(LOGGER, logging.INFO, "all workers are shut down", workers=len(leaving))


async def _count(table: WorkerTable, leaving: set[str], news: asyncio.Event) -> None:
    told = 0
    while True:
        news.clear()
        ended = len(_ended(table, leaving))
        for number in range(told + 1, ended + 1):
            log(LOGGER, logging.INFO, f"shut down {number}/{len(leaving)}")
        told = max(told, ended)
        if told == len(leaving):
            return
        await news.wait()


def _ended(table: WorkerTable, workers: set[str]) -> set[str]:
    """Those of ``workers`` that have ended, or are not known any more."""
    alive = {report.worker_id for report in table.reports() if not report.state.ended}
    return workers - alive
