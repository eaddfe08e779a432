"""Talks to one daemon: three tries with their time limit, each shown, and errors that say what to do."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
import msgspec

from rbee.host.credentials import load_secret
from rbee.keeper.settings import Place
from rbee.wire.errors import ConnectionTimeout, ProtocolError, Unavailable
from rbee.wire.http.client import client_session, fetch_json, notice_death, remote_error, request_headers

T = TypeVar("T")
CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class Patience:
    """How long one try may take and how long to wait before each try, in seconds."""

    timeout_s: float = 10.0
    waits_s: tuple[float, ...] = (0.0, 0.2, 0.4)


class Daemon:
    """A connection to the daemon at ``place``; ``say`` gets one line for each try that failed.

    Use it as an async context manager. Every call raises ConnectionTimeout after the last try, ProtocolError for an
    answer that does not decode, and RemoteError for an error that the daemon answered.
    """

    def __init__(
        self, place: Place, patience: Patience, say: Callable[[str], None], connections: int = CONNECTIONS
    ) -> None:
        self.place = place
        self._patience = patience
        self._say = say
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        token = load_secret(self.place.token_file) if self.place.token_file else None
        path = str(self.place.socket) if self.place.socket else None
        self._session = client_session(token=token, unix_socket=path, connections=self._connections)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(
        self, method: str, path: str, kind: type[T], *, body: object = None, timeout_s: float | None = None
    ) -> T:
        """Call ``path`` and decode the answer into ``kind``, each try within ``timeout_s``."""
        limit = timeout_s or self._patience.timeout_s

        async def once() -> T:
            return await fetch_json(self._open(), method, self.place.url + path, kind, body=body, timeout_s=limit)

        try:
            return await self._persist(once, limit, repeatable=method in ("GET", "DELETE"))
        except ProtocolError as error:
            raise ProtocolError(
                f"the {self.place.name} at {self.place.label} answered something else: {error.message}",
                details={"unit": self.place.unit},
            ) from None

    async def send(self, method: str, path: str, *, timeout_s: float) -> int:
        """One try without a body; returns the HTTP status. Raises TimeoutError, ClientError or RemoteError."""
        async with (
            asyncio.timeout(timeout_s),
            self._open().request(
                method, self.place.url + path, headers=request_headers(), allow_redirects=False
            ) as response,
        ):
            if response.status >= 300:
                raise remote_error(response.status, await response.read())
            return response.status

    @contextlib.asynccontextmanager
    async def stream(
        self, method: str, path: str, *, body: object = None, head_limit_s: float, accept: str = "*/*"
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open a stream: connect with the usual tries, wait at most ``head_limit_s`` for its head.

        A request that was sent is never sent twice. A network that drops is noticed by TCP keepalive within 5 s.
        """
        data = None if body is None else msgspec.json.encode(body)
        headers = request_headers() | {"Accept": accept} | ({"Content-Type": "application/json"} if data else {})
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._patience.timeout_s)

        async def once() -> aiohttp.ClientResponse:
            async with asyncio.timeout(head_limit_s):
                return await self._open().request(
                    method,
                    self.place.url + path,
                    data=data,
                    headers=headers,
                    timeout=timeout,
                    allow_redirects=False,
                )

        response = await self._persist(once, head_limit_s, repeatable=False)
        try:
            if response.status >= 300:
                async with asyncio.timeout(self._patience.timeout_s):
                    raise remote_error(response.status, await response.read())
            _watch_connection(response)
            yield response
        finally:
            response.close()

    async def _persist(self, once: Callable[[], Awaitable[T]], limit_s: float, *, repeatable: bool) -> T:
        """Run ``once`` until it succeeds; what reached the daemon is only tried again where it is ``repeatable``."""
        tries = len(self._patience.waits_s)
        for number, wait in enumerate(self._patience.waits_s, 1):
            await asyncio.sleep(wait)
            try:
                return await once()
            except (aiohttp.ClientError, ConnectionTimeout, Unavailable, TimeoutError) as error:
                why = _plain(error, limit_s)
                self._say(f"no answer from the {self.place.name}, try {number} of {tries}: {why}")
                if not (repeatable or _never_sent(error)):
                    raise self._unanswered(why, number) from error
        raise self._unanswered(why, tries)

    def _unanswered(self, why: str, tries: int) -> ConnectionTimeout:
        return ConnectionTimeout(
            f"the {self.place.name} does not answer at {self.place.label}: {why}, {tries} tries",
            details={"unit": self.place.unit, "tries": tries},
        )

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise Unavailable("the connection is not open")
        return self._session


def _root(error: BaseException) -> BaseException:
    return error.__cause__ if isinstance(error, Unavailable) and error.__cause__ is not None else error


def _never_sent(error: BaseException) -> bool:
    return isinstance(_root(error), aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)


def _plain(error: BaseException, limit_s: float) -> str:
    """Why a try failed, in a person's words."""
    root = _root(error)
    if isinstance(root, aiohttp.ClientConnectorError):
        number = root.os_error.errno
        return os.strerror(number).lower() if number else "no connection"
    if isinstance(root, aiohttp.ClientError):
        return "it closed the connection"
    return f"nothing within {limit_s:g} s"


def _watch_connection(response: aiohttp.ClientResponse) -> None:
    transport = response.connection.transport if response.connection else None
    raw = transport.get_extra_info("socket") if transport else None
    if raw is None or raw.family == socket.AF_UNIX:
        return
    notice_death(raw)
