"""The supervisor that is systemd itself, over D-Bus: subscribe, list, then hear; nothing is polled.

A signal marks its unit dirty and leaves its values in a shadow; a moment later the unit's state is read again and the
watcher hears what was read, because signals lie for a moment (``failed`` comes before an automatic restart). One
signal is passed on at once: ``active/running`` of a life that was not reported yet. That is READY=1, and a request may
be waiting for it. Sources: org.freedesktop.systemd1(5), systemd's src/core/dbus-unit.c for the order of signals.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence

from dbus_fast import Message, MessageType

from rbee.host.units import bus_names
from rbee.host.units.bus import Bus, UnitRow
from rbee.host.units.facts import UnitFacts, UnitWatcher
from rbee.host.units.properties import PropertyValue, complete, facts_from, wanted, worker_of_path
from rbee.wire.backoff import delays
from rbee.wire.errors import RbeeError, SystemdUnavailable
from rbee.wire.log import log
from rbee.wire.names import unit_of, worker_of
from rbee.wire.tasks import TaskOwner

LOGGER = logging.getLogger(__name__)
SETTLE_S = 0.02
CALL_LIMIT_S = 10.0
_REPLACE = "replace"


class SystemdUnits:
    """UnitSupervisor over the system bus. ``on_failure`` hears of a defect; ``reconnects`` counts bus losses."""

    def __init__(
        self,
        on_failure: Callable[[BaseException], None],
        *,
        bus_address: str | None = None,
        on_reconnect: Callable[[], None] | None = None,
    ) -> None:
        self._bus_address = bus_address
        self._on_reconnect = on_reconnect
        self._tasks = TaskOwner(on_failure)
        self._watcher: UnitWatcher | None = None
        self._bus: Bus | None = None
        self._systemd = ""
        self._shadow: dict[str, dict[str, PropertyValue]] = {}
        self._known: dict[str, UnitFacts] = {}
        self._job_results: dict[str, str] = {}
        self._paths: dict[str, str] = {}
        self._ready_told: dict[str, str] = {}
        self._dirty: set[str] = set()
        self._relist = False
        self._reloading = False
        self._wake = asyncio.Event()
        self._refreshing = asyncio.Lock()

    async def start(self, watcher: UnitWatcher) -> None:
        """Connect and list; raises SystemdUnavailable when the bus or systemd is not there."""
        self._watcher = watcher
        await self._connect()
        self._tasks.start(self._keep_connected(), "bus connection")
        self._tasks.start(self._settle(), "unit reader")

    async def close(self) -> None:
        """Stop watching and leave the bus; units are not touched."""
        await self._tasks.close()
        if self._bus is not None:
            await self._bus.close()
            self._bus = None

    async def list(self) -> "list[UnitFacts]":
        """Read every worker's unit again."""
        await self._refresh_all(trust_shadow=False)
        return [*self._known.values()]

    async def read(self, worker_id: str) -> UnitFacts:
        """Read one unit again."""
        await self._refresh({worker_id})
        return self._known.get(worker_id) or UnitFacts(worker_id=worker_id)

    async def start_unit(self, worker_id: str) -> None:
        """StartUnit; returns when the job is queued. Raises WorkerNotFound, Conflict (masked)."""
        self._job_results.pop(worker_id, None)
        await self._connected().order(worker_id, "StartUnit", "ss", _REPLACE)

    async def stop_unit(self, worker_id: str) -> None:
        """StopUnit; returns when the job is queued."""
        await self._connected().order(worker_id, "StopUnit", "ss", _REPLACE)

    async def restart_unit(self, worker_id: str) -> None:
        """RestartUnit; returns when the job is queued."""
        self._job_results.pop(worker_id, None)
        await self._connected().order(worker_id, "RestartUnit", "ss", _REPLACE)

    async def reset_failed(self, worker_id: str) -> None:
        """ResetFailedUnit."""
        await self._connected().order(worker_id, "ResetFailedUnit", "s")

    def _connected(self) -> Bus:
        if self._bus is None:
            raise SystemdUnavailable(
                "the connection to the system bus is lost and being made again; try again in a second",
                retry_after_s=1.0,
            )
        return self._bus

    async def _connect(self) -> None:
        bus = await Bus.connect(self._bus_address, self._on_message, CALL_LIMIT_S)
        try:
            self._systemd = await bus.owner()
            await bus.subscribe()
            self._bus = bus
            self._reloading = False
            await self._refresh_all(trust_shadow=False)
        except BaseException:
            self._bus = None
            await bus.close()
            raise

    async def _keep_connected(self) -> None:
        while True:
            why = await self._connected().lost()
            self._bus = None
            log(LOGGER, logging.WARNING, "the system bus is lost, connecting again", why=why)
            await self._reconnect()
            log(LOGGER, logging.INFO, "the system bus is back: subscribed and listed again")
            self._tell_resync()

    async def _reconnect(self) -> None:
        waits = delays(1000, 0.02, 1.5, 0.2, random.random, most_s=1.0)
        while True:
            await asyncio.sleep(next(waits, 1.0))
            try:
                return await self._connect()
            except RbeeError as error:
                log(LOGGER, logging.DEBUG, "the system bus is not back yet", why=error.message)

    def _tell_resync(self) -> None:
        if self._on_reconnect is not None:
            self._on_reconnect()
        if self._watcher is not None:
            self._watcher.on_resync()

    # What comes over the bus. The sender is compared with systemd's own unique name: the bus lets any client send a
    # signal straight to this connection.

    def _on_message(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL:
            return
        if message.sender == bus_names.DBUS:
            if message.member == "NameOwnerChanged" and message.body[0] == bus_names.SYSTEMD:
                self._on_owner(message.body[2])
        elif message.sender == self._systemd:
            if message.member == "PropertiesChanged":
                self._on_properties(message.path or "", message.body[0], message.body[1])
            elif message.interface == bus_names.MANAGER:
                self._on_manager(message)

    def _on_owner(self, owner: str) -> None:
        """Systemd left the bus or came back (daemon-reexec): list again once it is there."""
        self._systemd = owner
        self._reloading = False
        if owner:
            self._relist = True
            self._wake.set()

    def _on_manager(self, message: Message) -> None:
        if message.member == "Reloading":
            # Between true and false every loaded unit is removed and added: that means nothing.
            self._reloading = bool(message.body[0])
            if not self._reloading:
                self._relist = True
                self._wake.set()
            return
        if message.member == "UnitRemoved":
            worker = worker_of(message.body[0])
            self._paths.pop(message.body[1], None)
        elif message.member == "JobRemoved":
            worker, result = worker_of(message.body[2]), message.body[3]
            if worker is not None:
                self._take_job_result(worker, result)
        else:
            return
        if worker is not None:
            self._mark(worker)

    def _take_job_result(self, worker: str, result: str) -> None:
        # a start that failed shows in the unit itself, and `systemctl reset-failed` is to end that
        if result in ("done", "canceled", "failed"):
            self._job_results.pop(worker, None)
        else:
            self._job_results[worker] = result

    def _on_properties(self, path: str, interface: str, changed: dict[str, object]) -> None:
        worker = self._paths.get(path) or worker_of_path(path)
        if worker is None:
            return
        self._paths[path] = worker
        shadow = self._shadow.setdefault(worker, {})
        shadow.update(wanted(changed))
        if interface == bus_names.UNIT and shadow.get("ActiveState") == "active":
            self._tell_ready_at_once(worker, shadow)
        self._mark(worker)

    def _tell_ready_at_once(self, worker: str, shadow: dict[str, PropertyValue]) -> None:
        facts = facts_from(worker, shadow, self._job_results.get(worker, ""))
        if facts.running and facts.invocation_id and self._ready_told.get(worker) != facts.invocation_id:
            self._tell(facts)

    def _mark(self, worker: str) -> None:
        self._dirty.add(worker)
        self._wake.set()

    # Reading again.

    async def _settle(self) -> None:
        """Read dirty units a moment after the first signal, all that gathered in one call."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(SETTLE_S)
            self._wake.clear()
            if self._reloading or self._bus is None:
                continue  # Reloading(false), or the new connection, lists everything
            dirty, self._dirty = self._dirty, set()
            try:
                if self._relist:
                    self._relist = False
                    await self._connected().subscribe()
                    await self._refresh_all(trust_shadow=True)
                else:
                    await self._refresh(dirty)
            except RbeeError as error:
                log(LOGGER, logging.WARNING, "units could not be read, trying again", why=error.message)
                self._relist = True
                await asyncio.sleep(1.0)
                self._wake.set()

    async def _refresh_all(self, *, trust_shadow: bool) -> None:
        async with self._refreshing:
            if not trust_shadow:
                self._shadow.clear()
            rows = await self._rows([bus_names.WORKER_UNITS])
            await self._take(rows, set(rows) | set(self._known) | set(self._job_results))

    async def _refresh(self, workers: set[str]) -> None:
        if not workers:
            return
        async with self._refreshing:
            rows = await self._rows([unit_of(worker) for worker in workers])
            await self._take(rows, workers)

    async def _rows(self, patterns: Sequence[str]) -> dict[str, UnitRow]:
        rows = await self._connected().list_units(patterns)
        return {worker: row for row in rows if (worker := worker_of(row[0])) is not None}

    async def _take(self, rows: dict[str, UnitRow], workers: Iterable[str]) -> None:
        """Hold the listing against the shadows, read what does not fit, and tell the watcher."""
        unclear = []
        for worker in workers:
            row = rows.get(worker)
            if row is None:
                self._forget(worker)
                continue
            shadow = self._shadow.setdefault(worker, {})
            shadow["LoadState"] = row[1]
            if not complete(shadow) or (shadow["ActiveState"], shadow["SubState"]) != (row[2], row[3]):
                unclear.append(worker)
            else:
                self._tell(facts_from(worker, shadow, self._job_results.get(worker, "")))
        done = await asyncio.gather(*(self._read(worker) for worker in unclear), return_exceptions=True)
        for error in done:
            if error is not None:
                raise error

    async def _read(self, worker: str) -> None:
        # Signals that come while this reads are newer than what is read: they win.
        newer: dict[str, PropertyValue] = {}
        self._shadow[worker] = newer
        properties = await self._connected().read_properties(worker) | newer
        if properties.get("LoadState") == "not-found" and properties.get("ActiveState") == "inactive":
            self._forget(worker)
            return
        self._shadow[worker] = properties
        self._tell(facts_from(worker, properties, self._job_results.get(worker, "")))

    def _forget(self, worker: str) -> None:
        """Systemd does not hold the unit: it is inactive, and its last life is what was known of it."""
        self._shadow.pop(worker, None)
        self._ready_told.pop(worker, None)
        job_result = self._job_results.pop(worker, "")
        if worker in self._known or job_result:
            known = self._known.get(worker) or UnitFacts(worker_id=worker)
            self._tell(known.unloaded(job_result))
            self._known.pop(worker, None)

    def _tell(self, facts: UnitFacts) -> None:
        if self._known.get(facts.worker_id) == facts:
            return
        self._known[facts.worker_id] = facts
        if facts.running:
            self._ready_told[facts.worker_id] = facts.invocation_id
        if self._watcher is not None:
            self._watcher.on_facts(facts)
