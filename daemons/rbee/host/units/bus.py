"""One connection to the system bus: connect and subscribe, calls with a time limit, errors as sentences."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from dbus_fast import BusType, DBusFastError, Message, MessageType
from dbus_fast.aio import MessageBus

from rbee.host.units import bus_names
from rbee.host.units.properties import PropertyValue, path_of_worker, wanted
from rbee.wire.errors import Conflict, RbeeError, SystemdUnavailable, WorkerNotFound
from rbee.wire.names import unit_of

# dbus-daemon allows 128 calls in flight for one connection (max_replies_per_connection).
CALLS_IN_FLIGHT = 64
UnitRow = tuple[str, str, str, str]


class BusCallError(Exception):
    """The bus or systemd answered a call with an error; ``name`` is its D-Bus name."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


class Bus:
    """One life of a connection; made anew after a loss. Not reused once ``lost`` has returned."""

    def __init__(self, connection: MessageBus, call_limit_s: float) -> None:
        self._connection = connection
        self._call_limit_s = call_limit_s
        self._slots = asyncio.Semaphore(CALLS_IN_FLIGHT)
        self._ended = asyncio.create_task(self._end(), name="end of the bus connection")

    @classmethod
    async def connect(cls, address: str | None, handler: Callable[[Message], None], call_limit_s: float) -> "Bus":
        """Connect and ask for the signals; they reach ``handler`` from then on. Raises SystemdUnavailable."""
        connection = MessageBus(bus_address=address, bus_type=BusType.SYSTEM, auth_timeout=call_limit_s)
        try:
            async with asyncio.timeout(call_limit_s):
                await connection.connect()
        except (OSError, TimeoutError, EOFError, DBusFastError) as error:
            raise SystemdUnavailable(
                f"the system bus does not answer ({type(error).__name__}); "
                "start it (systemctl start dbus.socket), or run with supervisor: child"
            ) from error
        bus = cls(connection, call_limit_s)
        connection.add_message_handler(handler)
        try:
            for match in bus_names.MATCHES:
                await bus._call_bus("AddMatch", "s", [match])
        except (SystemdUnavailable, BusCallError) as error:
            await bus.close()
            raise SystemdUnavailable(f"the system bus refused a subscription ({error})") from error
        return bus

    async def close(self) -> None:
        """End the connection and wait until its reader is gone."""
        self._connection.disconnect()
        await asyncio.wait({self._ended}, timeout=self._call_limit_s)
        self._ended.cancel()

    async def lost(self) -> str:
        """Wait for the end of the connection; returns why, in words."""
        return await asyncio.shield(self._ended)

    async def _end(self) -> str:
        # the library's future is one for all: awaited here alone, because a cancelled waiter would cancel it
        try:
            await self._connection.wait_for_disconnect()  # type: ignore[no-untyped-call]
        except (OSError, EOFError, DBusFastError) as error:
            return f"{type(error).__name__} {error}".strip()
        return "closed"

    async def owner(self) -> str:
        """The unique name of systemd on this bus; raises SystemdUnavailable."""
        try:
            reply = await self._call_bus("GetNameOwner", "s", [bus_names.SYSTEMD])
        except BusCallError as error:
            raise SystemdUnavailable(
                "systemd is not on the system bus: it is not PID 1 here; run with supervisor: child"
            ) from error
        return str(reply[0])

    async def subscribe(self) -> None:
        """Tell systemd to send signals; having subscribed before is success."""
        try:
            await self.manager("Subscribe")
        except BusCallError as error:
            if error.name != bus_names.ALREADY_SUBSCRIBED:
                raise _explained(error, "Subscribe", "systemd") from error

    async def list_units(self, patterns: Sequence[str]) -> list[UnitRow]:
        """(unit, load state, active state, sub state) of the loaded units whose name fits a pattern."""
        try:
            reply = await self.manager("ListUnitsByPatterns", "asas", [[], list(patterns)])
        except BusCallError as error:
            raise _explained(error, "ListUnitsByPatterns", "systemd") from error
        return [(row[0], row[2], row[3], row[4]) for row in reply[0]]

    async def read_properties(self, worker_id: str) -> dict[str, PropertyValue]:
        """Everything that UnitFacts needs about one unit, by individual pipelined reads."""
        path = path_of_worker(worker_id)
        try:
            async with asyncio.TaskGroup() as group:
                reads = {
                    name: group.create_task(
                        self._call(bus_names.SYSTEMD, path, bus_names.PROPERTIES, "Get", "ss", [interface, name])
                    )
                    for interface, name in bus_names.READ_PROPERTIES
                }
        except* (SystemdUnavailable, BusCallError) as group_error:
            raise _explained(_first(group_error), "Get", unit_of(worker_id)) from group_error
        return wanted({name: read.result()[0] for name, read in reads.items()})

    async def order(self, worker_id: str, verb: str, signature: str, *arguments: object) -> None:
        """Ask systemd to do ``verb`` with a worker's unit; errors are explained to the person who asked."""
        unit = unit_of(worker_id)
        try:
            await self.manager(verb, signature, [unit, *arguments])
        except BusCallError as error:
            raise _explained(error, verb, unit) from error

    async def manager(self, member: str, signature: str = "", body: Sequence[object] = ()) -> list[Any]:
        """One call of systemd's Manager; raises BusCallError or SystemdUnavailable."""
        return await self._call(bus_names.SYSTEMD, bus_names.SYSTEMD_PATH, bus_names.MANAGER, member, signature, body)

    async def _call_bus(self, member: str, signature: str, body: Sequence[object]) -> list[Any]:
        return await self._call(bus_names.DBUS, bus_names.DBUS_PATH, bus_names.DBUS, member, signature, body)

    async def _call(
        self, destination: str, path: str, interface: str, member: str, signature: str, body: Sequence[object]
    ) -> list[Any]:
        message = Message(
            destination=destination, path=path, interface=interface, member=member, signature=signature,
            body=list(body),
        )  # fmt: skip
        async with self._slots:
            if not self._connection.connected:
                raise _gone()
            try:
                async with asyncio.timeout(self._call_limit_s):
                    reply = await self._connection.call(message)
            except TimeoutError:
                raise SystemdUnavailable(
                    f"systemd did not answer {member} within {self._call_limit_s:g} s; "
                    "see systemctl status and the journal of systemd"
                ) from None
            except (OSError, EOFError, DBusFastError) as error:
                raise _gone() from error
        # The library resolves the calls in flight with nothing when the connection ends without an error.
        if reply is None:
            raise _gone()
        if reply.message_type is MessageType.ERROR:
            text = reply.body[0] if reply.body and isinstance(reply.body[0], str) else ""
            raise BusCallError(reply.error_name or "unknown", text)
        return list(reply.body)


def _gone() -> SystemdUnavailable:
    return SystemdUnavailable(
        "the connection to the system bus is lost and being made again; try again in a second",
        retry_after_s=1.0,
    )


def _first(group: ExceptionGroup[Exception]) -> Exception:
    error: Exception = group
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _explained(error: Exception, verb: str, unit: str) -> RbeeError:
    """The error of a call as a sentence that says what to do."""
    if isinstance(error, RbeeError):
        return error
    name = error.name if isinstance(error, BusCallError) else ""
    if name in (bus_names.NO_SUCH_UNIT, bus_names.LOAD_FAILED, bus_names.BAD_UNIT_SETTING):
        return WorkerNotFound(
            f"systemd cannot load {unit}: install the worker (apt install rbee-worker), or see systemctl status {unit}"
        )
    if name == bus_names.UNIT_MASKED:
        return Conflict(f"{unit} is masked by the operator: systemctl unmask {unit}")
    if name in (bus_names.ACCESS_DENIED, bus_names.AUTHORIZATION_REQUIRED):
        return SystemdUnavailable(
            f"systemd refused {verb} of {unit} to this user: the polkit rule of rbee is missing "
            "(apt install --reinstall rbee-hive), or this hive does not run as rbee-hive"
        )
    return SystemdUnavailable(f"systemd refused {verb} of {unit}: {error}")
