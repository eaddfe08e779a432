"""Brings one file over HTTP: by range from where an earlier try ended, with a stall limit, verified at its end."""

import asyncio
import re
import threading
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

import aiohttp
import yarl

from rbee.hive.models.listing import RemoteFile
from rbee.hive.models.sink import Sink
from rbee.hive.models.threads import to_its_end
from rbee.hive.models.throttle import Throttle
from rbee.hive.models.tries import Tries
from rbee.wire.auth import Secret
from rbee.wire.errors import DownloadFailed, DownloadTimeout, ModelAccessDenied, ModelSourceNotFound, RbeeError
from rbee.wire.http.client import request_headers

_WRITE_CHUNK = 1 << 20
_RANGE = re.compile(r"bytes (\d{1,18})-")
_TRY_AGAIN = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
_MOST_REDIRECTS = 5


class Transfer:
    """Downloads of one model's files over one session.

    ``on_received`` hears how many bytes came over the network. A source may be silent for ``stall_s`` seconds;
    ``reserve`` bytes of the disk stay free. ``token`` goes to the host of the files, not to where it redirects.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        throttle: Throttle,
        tries: Tries,
        stall_s: float,
        reserve: int,
        token: Secret | None,
        on_received: Callable[[int], None],
    ) -> None:
        self._session = session
        self._throttle = throttle
        self._tries = tries
        self._stall_s = stall_s
        self._reserve = reserve
        self._token = token
        self._on_received = on_received

    async def fetch(self, file: RemoteFile, target: Path, on_size: Callable[[int], None]) -> tuple[int, str]:
        """Bring ``file`` to ``target``, telling ``on_size`` how many bytes are there; returns its size and SHA-256.

        Raises DownloadFailed or DownloadTimeout after six tries, ModelSourceNotFound, ModelAccessDenied,
        InsufficientDisk and StorageUnavailable at once.
        """

        async def attempt() -> tuple[int, str]:
            stopping = threading.Event()
            sink = Sink(target, file.size, file.digest, self._reserve)
            try:
                await to_its_end(lambda: sink.open(stopping), stopping.set)
                on_size(sink.size)
                if file.size is None or sink.size < file.size:
                    await self._receive(file, sink, on_size)
                return await _checked(sink, file)
            finally:
                await to_its_end(sink.close)

        return await self._tries.run(attempt, file.path)

    async def _receive(self, file: RemoteFile, sink: Sink, on_size: Callable[[int], None]) -> None:
        headers = request_headers() | bearer(self._token) | {"Accept-Encoding": "identity"}
        if sink.size:
            headers["Range"] = f"bytes={sink.size}-"
        try:
            async with asyncio.timeout(self._stall_s):
                response = await self._session.get(
                    yarl.URL(file.url, encoded=True), headers=headers, max_redirects=_MOST_REDIRECTS
                )
            async with response:
                await self._begin(response, sink)
                await self._body(response, file, sink, on_size)
        except TimeoutError:
            raise DownloadTimeout(
                f"the source sent nothing for {self._stall_s:g} s", details={"stall_limit_s": self._stall_s}
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise interrupted(error, sink.size) from error

    async def _begin(self, response: aiohttp.ClientResponse, sink: Sink) -> None:
        """Take the answer's head: whether it goes on from where we are, starts anew, or refuses."""
        if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            await asyncio.to_thread(sink.restart)
            raise DownloadFailed("the source has not the rest of what came before: beginning anew")
        if response.status >= HTTPStatus.BAD_REQUEST:
            raise refusal(response)
        if response.status != HTTPStatus.PARTIAL_CONTENT:
            if sink.size:
                await asyncio.to_thread(sink.restart)
            return
        match = _RANGE.match(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != sink.size:
            await asyncio.to_thread(sink.restart)
            raise DownloadFailed("the source sent another range than the one asked for: beginning anew")

    async def _body(
        self, response: aiohttp.ClientResponse, file: RemoteFile, sink: Sink, on_size: Callable[[int], None]
    ) -> None:
        buffer = bytearray()
        try:
            while chunk := await self._next(response):
                buffer += chunk
                self._on_received(len(chunk))
                size = sink.size + len(buffer)
                on_size(size)
                if file.size is not None and size > file.size:
                    raise DownloadFailed(f"the source sends more than the {file.size} bytes that it had told of")
                if len(buffer) >= _WRITE_CHUNK:
                    await _written(sink, buffer)
                await self._throttle.take(len(chunk))
        finally:
            # what came before the connection broke is worth keeping: the next try goes on from it
            if buffer:
                await _written(sink, buffer)

    async def _next(self, response: aiohttp.ClientResponse) -> bytes:
        async with asyncio.timeout(self._stall_s):
            return await response.content.readany()


async def _written(sink: Sink, buffer: bytearray) -> None:
    """Take what is in ``buffer`` to the file; taken out first, so that no way out of here writes it twice."""
    data = bytes(buffer)
    buffer.clear()
    await to_its_end(lambda: sink.write(data))


async def _checked(sink: Sink, file: RemoteFile) -> tuple[int, str]:
    """The size and SHA-256 of a whole file; one that is not what it should be is thrown away."""
    if file.size is not None and sink.size < file.size:
        raise DownloadFailed(f"the source ended the file after {sink.size} of {file.size} bytes")
    if sink.size > (file.size or sink.size) or not await asyncio.to_thread(sink.finish):
        await asyncio.to_thread(sink.restart)
        raise DownloadFailed(
            "the checksum of a file does not match, the file was deleted", details={"reason": "checksum_mismatch"}
        )
    return sink.size, sink.sha256


def bearer(token: Secret | None) -> dict[str, str]:
    """The header that presents ``token``."""
    return {} if token is None else {"Authorization": f"Bearer {token.reveal()}"}


def interrupted(error: Exception, size: int) -> DownloadFailed:
    """The error of a connection that broke after ``size`` bytes."""
    return DownloadFailed(
        f"the connection to the source broke at {size} bytes ({type(error).__name__})",
        details={"reason": "interrupted", "bytes": size},
    )


def refusal(response: aiohttp.ClientResponse) -> RbeeError:
    """What a source's refusal means for the person who asked: to try again, or what to mend."""
    return refusal_of(response.status, _seconds(response.headers.get("Retry-After")))


def refusal_of(status: int, retry_after_s: float | None = None) -> RbeeError:
    """The same from an HTTP status."""
    details = {"status": status}
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return ModelAccessDenied(
            f"the source refuses the model (HTTP {status}): it is private or gated; accept its terms there, "
            "and give the hive the token of your HF_TOKEN as the credential hf_token (see rbee-hive.yaml(5))",
            details=details,
        )
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return ModelSourceNotFound(
            f"the source does not have it (HTTP {status}): check the reference: its organisation, name and revision",
            details=details,
        )
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _TRY_AGAIN:
        return DownloadFailed(f"the source answered HTTP {status}", details=details, retry_after_s=retry_after_s)
    return ModelSourceNotFound(f"the source refuses the request (HTTP {status}): check the reference", details=details)


def _seconds(value: str | None) -> float | None:
    return float(value) if value is not None and value.isascii() and value.isdigit() and len(value) < 6 else None
