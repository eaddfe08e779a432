"""A plain HTTP client for scenarios: the standard library's, over TCP and Unix sockets, with streams as they come."""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from rbee.wire.sse import SseDecoder

Connect = Callable[[float], socket.socket]
"""Makes a connected socket; its argument is the time limit in seconds."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, connect: Connect, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._connect = connect
        self._limit_s = timeout

    def connect(self) -> None:
        self.sock = self._connect(self._limit_s)


def connect_unix(path: str) -> Connect:
    """Connects to the Unix socket at ``path``."""

    def connect(timeout_s: float) -> socket.socket:
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connected.settimeout(timeout_s)
        try:
            connected.connect(path)
        except OSError:
            connected.close()
            raise
        return connected

    return connect


def connect_tcp(url: str) -> Connect:
    """Connects to ``http://host:port``."""
    parts = urlsplit(url)
    return lambda timeout_s: socket.create_connection((parts.hostname, parts.port or 80), timeout_s)


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401 - scenarios look into whatever came
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The object under ``error``; fails where the answer is none."""
        found = self.json["error"]
        assert isinstance(found, dict)
        return found


@dataclass(frozen=True)
class Event:
    """One event of a stream and when it came (monotonic seconds)."""

    name: str
    data: bytes
    at: float
    id: str | None = None

    @property
    def json(self) -> Any:  # noqa: ANN401
        return json.loads(self.data)


class Stream:
    """An open answer whose events are read as they come; leaving the context closes the connection."""

    def __init__(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse, raw: socket.socket
    ) -> None:
        self._connection = connection
        self._raw = raw
        self._response = response
        self._decoder = SseDecoder()
        self.status = response.status
        self.headers = response.headers

    def __iter__(self) -> Iterator[Event]:
        while chunk := self._response.read1(65536):
            for event in self._decoder.feed(chunk):
                yield Event(event.event, event.data, time.monotonic(), event.id)

    def read(self) -> bytes:
        """The rest of the answer as bytes (for one that is no stream)."""
        return self._response.read()

    def break_off(self) -> None:
        """End the connection under a reader in another thread."""
        with contextlib.suppress(OSError):
            self._raw.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._connection.close()


class Http:
    """Calls to one address (URL, Unix path, or a maker of sockets), a connection each."""

    def __init__(self, address: str | Connect, token: str | None = None, timeout_s: float = 30.0) -> None:
        if not isinstance(address, str):
            self._connect = address
        else:
            self._connect = connect_unix(address) if address.startswith("/") else connect_tcp(address)
        self.token = token
        self._timeout_s = timeout_s

    def stream(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> Stream:
        """Call and return the open answer."""
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        sent = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        if data is not None:
            sent["Content-Type"] = "application/json"
        connection = _Connection(self._connect, self._timeout_s)
        connection.request(method, path, body=data, headers={**sent, **(headers or {})})
        raw = connection.sock
        return Stream(connection, connection.getresponse(), raw)

    def call(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> Answer:
        """Call and return the whole answer."""
        with self.stream(method, path, body, headers) as stream:
            return Answer(stream.status, stream.headers, stream.read())

    def get(self, path: str) -> Answer:
        return self.call("GET", path)

    def post(self, path: str, body: object) -> Answer:
        return self.call("POST", path, body)

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample of /metrics; 0 where there is no such sample yet."""
        for line in self.get("/metrics").body.decode().splitlines():
            sample, _, value = line.rpartition(" ")
            found, _, rest = sample.partition("{")
            if found == name and all(f'{key}="{label}"' in rest for key, label in labels.items()):
                return float(value)
        return 0.0


def until(condition: Callable[[], Any], limit_s: float = 10.0, every_s: float = 0.05) -> Any:  # noqa: ANN401
    """Return the first true value of ``condition``; fails after ``limit_s``: for a world that tells no event."""
    end = time.monotonic() + limit_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not so within {limit_s} s"
        time.sleep(every_s)
