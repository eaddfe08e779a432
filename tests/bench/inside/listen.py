"""Runs on the machine: a bare D-Bus listener that writes the monotonic microsecond at which a unit is active."""

import asyncio
import sys
import time

from dbus_fast import BusType, Message
from dbus_fast.aio import MessageBus

SYSTEMD = "org.freedesktop.systemd1"
DBUS = "org.freedesktop.DBus"


def path_of(unit: str) -> str:
    """systemd's object path of a unit."""
    escaped = "".join(char if char.isascii() and char.isalnum() else f"_{ord(char):02x}" for char in unit)
    return f"/org/freedesktop/systemd1/unit/{escaped}"


def on_message(message: Message) -> None:
    """Write the moment in which the unit is active."""
    if message.member != "PropertiesChanged":
        return
    state = message.body[1].get("ActiveState")
    if state is not None and state.value == "active":
        sys.stdout.write(f"{time.monotonic_ns() // 1000}\n")
        sys.stdout.flush()


async def main(unit: str) -> None:
    """Subscribe, then listen until killed."""
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    bus.add_message_handler(on_message)
    match = f"type='signal',sender='{SYSTEMD}',path='{path_of(unit)}',member='PropertiesChanged',arg0='{SYSTEMD}.Unit'"
    add = Message(
        destination=DBUS, path="/org/freedesktop/DBus", interface=DBUS, member="AddMatch", signature="s", body=[match]
    )
    await bus.call(add)
    manager = f"{SYSTEMD}.Manager"
    await bus.call(
        Message(destination=SYSTEMD, path="/org/freedesktop/systemd1", interface=manager, member="Subscribe")
    )
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


asyncio.run(main(sys.argv[1]))
