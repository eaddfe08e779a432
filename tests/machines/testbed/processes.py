"""Processes and sockets inside another process's namespaces, used from the host."""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def children(pid: int) -> list[int]:
    """The host's process ids of the direct children of pid, oldest first."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(stat.parent.name))
    return sorted(found)


def wait_for_exit(pid: int, limit: float, *, kill: bool = False) -> bool:
    """Whether the process is gone within limit seconds; with kill it is sent SIGKILL first."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        if kill:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        return bool(select.select([handle], [], [], limit)[0])
    finally:
        os.close(handle)


@contextlib.contextmanager
def network_of(pid: int) -> Iterator[None]:
    """Sockets that this thread makes inside the block belong to the network of process pid."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        away = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            _set_network(away)
            try:
                yield
            finally:
                _set_network(home)
        finally:
            os.close(away)
    finally:
        os.close(home)


def _set_network(handle: int) -> None:
    if _LIBC.setns(handle, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@dataclass(frozen=True)
class Answer:
    """One HTTP answer: its status, its headers (names in lower case), its body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    def json(self) -> Any:  # noqa: ANN401
        """The body as JSON."""
        return json.loads(self.body)


class _Connection(HTTPConnection):
    """An HTTP connection over a socket that is connected already."""

    def __init__(self, connected: socket.socket, host: str) -> None:
        super().__init__(host)
        self.sock = connected


def exchange(
    connected: socket.socket, method: str, path: str, *, host: str, headers: dict[str, str], body: bytes | None
) -> Answer:
    """One HTTP request over the connected socket, which is closed afterwards."""
    with contextlib.closing(_Connection(connected, host)) as connection:
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, found, answer.read())
