"""Load for an HTTP server from this process: requests that were written beforehand, on connections that stay open.

Nothing of an answer is read but its status and length: what the client costs is little, and is on the clients' core.
"""

import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

_LIMIT_S = 120.0
_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds from the first request to the last answer, and those of each request in the order of their ends."""

    seconds: float
    each: list[float]


def request(port: int, path: str, body: bytes, token: str, headers: Mapping[str, str] | None = None) -> bytes:
    """A POST as it goes over the wire."""
    head = {"Host": f"127.0.0.1:{port}", "Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in {**head, **(headers or {})}.items())]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


class Connection:
    """One client's connection."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_LIMIT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(_CHUNK)

    def ask(self, message: bytes) -> bytes:
        """Send a request and return its answer's body; raises AssertionError unless it is 200."""
        self._socket.sendall(message)
        received = bytearray()
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += self._receive()
        head = bytes(received[:end]).lower()
        assert head.startswith(b"http/1.1 200"), f"the server answered {bytes(received[:500])!r}"
        if b"transfer-encoding: chunked" in head:
            while not received.endswith(b"0\r\n\r\n"):
                received += self._receive()
            return bytes(received[end + 4 :])
        length = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        while len(received) < end + 4 + length:
            received += self._receive()
        return bytes(received[end + 4 :])

    def _receive(self) -> memoryview:
        count = self._socket.recv_into(self._buffer)
        if not count:
            raise ConnectionError("the server closed the connection in the middle of an answer")
        return memoryview(self._buffer)[:count]

    def close(self) -> None:
        self._socket.close()


def all_of(port: int, messages: Sequence[bytes], clients: int) -> Took:
    """Send every message once, each client its next one as soon as it has its answer."""
    waiting: SimpleQueue[bytes] = SimpleQueue()
    for message in messages:
        waiting.put(message)
    return _measured(port, clients, waiting, None)


def during(port: int, message: bytes, clients: int, seconds: float) -> Took:
    """Send the same message again and again, for so long."""
    return _measured(port, clients, message, seconds)


def _measured(port: int, clients: int, source: "SimpleQueue[bytes] | bytes", seconds: float | None) -> Took:
    connections = [Connection(port) for _ in range(clients)]
    each: list[float] = []
    failures: list[BaseException] = []
    started = time.perf_counter()

    def run(connection: Connection) -> None:
        try:
            while seconds is None or time.perf_counter() - started < seconds:
                message = source if isinstance(source, bytes) else source.get_nowait()
                asked = time.perf_counter()
                connection.ask(message)
                each.append(time.perf_counter() - asked)
        except Empty:
            return
        except (OSError, AssertionError) as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(connection,)) for connection in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_LIMIT_S)
    took = time.perf_counter() - started
    for connection in connections:
        connection.close()
    if failures:
        raise failures[0]
    return Took(took, each)
