"""The receiving end of sd_notify: one process is heard, what it said early included, and nobody else."""

import asyncio
import os
import socket
import sys

from rbee.host.units.notify_socket import NotifySocket


def say(address: str, text: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(text, "\0" + address[1:])


async def test_what_a_process_said_before_its_pid_was_known_is_heard() -> None:
    heard: list[dict[str, str]] = []
    notify = NotifySocket(lambda message: heard.append(dict(message)))
    say(notify.address, b"READY=1\nSTATUS=early")
    await asyncio.sleep(0)
    notify.listen_to(os.getpid())
    say(notify.address, b"WATCHDOG=1")
    notify.close()
    assert heard == [{"READY": "1", "STATUS": "early"}, {"WATCHDOG": "1"}]


async def test_another_process_is_not_heard() -> None:
    heard: list[object] = []
    notify = NotifySocket(heard.append)
    notify.listen_to(os.getpid())
    code = f"import socket; socket.socket(1, 2).sendto(b'READY=1', {chr(0) + notify.address[1:]!r})"
    stranger = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await asyncio.wait_for(stranger.wait(), 30) == 0
    notify.close()
    assert heard == []


async def test_a_socket_that_never_had_a_process_closes() -> None:
    notify = NotifySocket(lambda message: None)
    say(notify.address, b"READY=1")
    notify.close()
