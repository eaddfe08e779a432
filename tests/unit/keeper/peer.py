"""A real HTTP listener that says exactly what a test wants, well-behaved or not, and remembers what it was asked."""

import json
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

Send = Callable[[bytes], None]
Script = Callable[["Asked", Send], None]


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401  what a test sends is what it looks into
        return json.loads(self.body)


class Peer:
    """Listens on a Unix socket (``path``) or on a free TCP port; ``script`` answers each request, one a connection."""

    def __init__(self, script: Script, path: Path | None = None) -> None:
        self.asked: list[Asked] = []
        self.connections = 0
        self._script = script
        self._listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self._listener.bind(str(path) if path else ("127.0.0.1", 0))
        self._listener.listen(16)
        self.url = "http://peer" if path else f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.closing = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as reader:
            asked = _read(reader)
            if asked is None:
                return
            self.asked.append(asked)
            try:
                self._script(asked, connection.sendall)
            except OSError:
                return


def _read(reader: IO[bytes]) -> Asked | None:
    first = reader.readline().decode()
    if not first:
        return None
    method, path, _ = first.split(" ", 2)
    headers = {}
    while (line := reader.readline().decode().strip()) != "":
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Asked(method, path, headers, reader.read(int(headers.get("content-length", "0"))))


def answer(body: object, status: int = 200) -> bytes:
    """A whole JSON answer."""
    return raw_answer(json.dumps(body).encode(), status)


def raw_answer(body: bytes, status: int = 200) -> bytes:
    """A whole answer of any body."""
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body


def error(code: str, message: str, status: int, **details: object) -> bytes:
    """An answer in the one error shape."""
    return answer({"error": {"code": code, "message": message, "details": details, "correlation_id": None}}, status)


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
)
STREAM_END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(name: str | None, data: object) -> bytes:
    """One server-sent event as a chunk; a str goes as it is."""
    text = data if isinstance(data, str) else json.dumps(data)
    return chunk((f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode())


def tokens(words: Iterable[str]) -> bytes:
    """A token event for each word."""
    return b"".join(event("token", {"text": word}) for word in words)
