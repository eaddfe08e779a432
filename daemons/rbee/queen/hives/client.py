"""What the queen asks of a hive: start a worker, stop one, answer for its health."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from http import HTTPStatus

import aiohttp
import msgspec

from rbee import __version__
from rbee.host.audit.entries import SYSTEM, EventType
from rbee.host.audit.log import AuditLog
from rbee.queen.registry.registry import Hive
from rbee.wire import context
from rbee.wire.auth import Secret
from rbee.wire.errors import (
    ConnectionTimeout,
    HiveProtocolError,
    HiveUnreachable,
    ProtocolError,
    RbeeError,
    VersionMismatch,
)
from rbee.wire.http.client import RemoteError, decode_answer, remote_error, request_headers
from rbee.wire.log import log
from rbee.wire.messages import SpawnRequest

LOGGER = logging.getLogger(__name__)
TRY_LIMIT_S = 10.0
WAITS_S = (0.0, 0.2, 0.4)
"""Seconds before each of the three tries."""
_MOST_ANSWER_BYTES = 4 << 20
JsonObject = dict[str, object]


def versions_fit(ours: str, theirs: str) -> bool:
    """Whether two daemons may speak: the same major version, and below 1.0 the same minor as well."""
    mine, other = ours.split("."), theirs.split(".")
    parts = 2 if mine[0] == "0" else 1
    return mine[:parts] == other[:parts]


class HiveClient:
    """Calls to hives over one pool of connections; ``token`` (of a hive id) is asked for at each call.

    ``refused`` is told that a hive refused its token; where it says so, another one is there to be tried. What
    starts or stops a worker is written to ``audit``, with whoever caused it.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        audit: AuditLog,
        token: Callable[[str], Secret | None],
        refused: Callable[[str], bool] = lambda hive_id: False,
    ) -> None:
        self._session = session
        self._audit = audit
        self._token = token
        self._refused = refused

    async def spawn(self, hive: Hive, request: SpawnRequest) -> JsonObject:
        """POST /v1/workers/spawn; returns the hive's answer. Raises as :meth:`call` does."""
        order = msgspec.structs.replace(request, hive_id=None)
        with self._audited(EventType.WORKER_SPAWN, hive, request.worker_id, request.model_ref):
            return await self.call(hive, "POST", "/v1/workers/spawn", order)

    async def stop(self, hive: Hive, worker_id: str, *, forget: bool = False) -> JsonObject:
        """DELETE /v1/workers/W: drain and stop, and ``forget`` its definition. Raises as :meth:`call` does."""
        with self._audited(EventType.WORKER_STOP, hive, worker_id):
            return await self.call(hive, "DELETE", f"/v1/workers/{worker_id}{'?forget=true' if forget else ''}")

    @contextlib.contextmanager
    def _audited(
        self, event_type: EventType, hive: Hive, worker_id: str, model_ref: str | None = None
    ) -> Iterator[None]:
        """Write the order of the block to the audit log, with how it went."""
        outcome = "cancelled"
        try:
            yield
            outcome = "ok"
        except RbeeError as error:
            outcome = error.code
            raise
        finally:
            actor = context.caller.get() or SYSTEM
            self._audit.record(
                event_type, actor, worker_id=worker_id, model_ref=model_ref, node=hive.hive_id, outcome=outcome
            )

    async def health(self, hive: Hive) -> JsonObject:
        """GET /v1/health, one try. Raises as :meth:`call` does."""
        return await self.call(hive, "GET", "/v1/health", waits=(0.0,), limit_s=2.0)

    async def call(
        self,
        hive: Hive,
        method: str,
        path: str,
        body: object = None,
        *,
        waits: tuple[float, ...] = WAITS_S,
        limit_s: float = TRY_LIMIT_S,
    ) -> JsonObject:
        """Call a hive, with further tries when it cannot be reached.

        Raises HiveUnreachable (no address, no connection, no answer in time), HiveProtocolError (the answer is not
        JSON of the protocol), VersionMismatch, and RemoteError with what the hive itself refused.
        """
        url = _address(hive)
        for number, wait in enumerate(waits, start=1):
            await asyncio.sleep(wait)
            try:
                return await self._try(hive, method, f"{url}{path}", body, limit_s)
            except (ConnectionTimeout, aiohttp.ClientError) as error:
                log(
                    LOGGER, logging.WARNING, "hive did not answer", hive=hive.hive_id, attempt=number,
                    why=type(error).__name__,
                )  # fmt: skip
        raise HiveUnreachable(
            f"hive {hive.hive_id} did not answer in {len(waits)} tries of {limit_s:g} s: "
            "check on its machine with 'systemctl status rbee-hive'",
            details={"hive_id": hive.hive_id, "tries": len(waits), "timeout_s": limit_s},
            retry_after_s=10,
        )

    @contextlib.asynccontextmanager
    async def stream(
        self, hive: Hive, method: str, path: str, body: object = None, *, accept: str, head_limit_s: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open an answer that is passed on as it comes, in one try. Raises as :meth:`call` does."""
        url = _address(hive)
        headers = self._headers(hive) | {"Accept": accept}
        data = None
        if body is not None:
            data, headers["Content-Type"] = msgspec.json.encode(body), "application/json"
        try:
            async with asyncio.timeout(head_limit_s):
                response = await self._session.request(
                    method, f"{url}{path}", data=data, headers=headers, allow_redirects=False
                )
        except (TimeoutError, aiohttp.ClientError) as error:
            raise HiveUnreachable(
                f"hive {hive.hive_id} did not answer: check on its machine with 'systemctl status rbee-hive'",
                details={"hive_id": hive.hive_id, "timeout_s": head_limit_s},
                retry_after_s=10,
            ) from error
        async with response:
            if response.status >= 400:
                raise _refusal(hive, remote_error(response.status, await _read(response)))
            yield response

    def _headers(self, hive: Hive) -> dict[str, str]:
        headers = request_headers()
        token = self._token(hive.hive_id)
        if token is not None:
            headers["Authorization"] = f"Bearer {token.reveal()}"
        return headers

    async def _try(self, hive: Hive, method: str, url: str, body: object, limit_s: float) -> JsonObject:
        headers = self._headers(hive)
        data = None
        if body is not None:
            data, headers["Content-Type"] = msgspec.json.encode(body), "application/json"
        try:
            async with (
                asyncio.timeout(limit_s),
                self._session.request(method, url, data=data, headers=headers, allow_redirects=False) as response,
            ):
                answer = await _read(response)
        except TimeoutError:
            raise ConnectionTimeout(f"no answer within {limit_s:g} s") from None
        if response.status == HTTPStatus.UNAUTHORIZED and self._refused(hive.hive_id):
            return await self._try(hive, method, url, body, limit_s)
        if response.status >= 400:
            raise _refusal(hive, remote_error(response.status, answer))
        try:
            return decode_answer(answer, JsonObject) if answer else {}
        except ProtocolError as error:
            raise HiveProtocolError(
                f"hive {hive.hive_id} does not speak the protocol: {error.message}; "
                "restart it with 'systemctl restart rbee-hive'",
                details={"hive_id": hive.hive_id},
            ) from None


def _address(hive: Hive) -> str:
    """Where a hive is called; raises HiveUnreachable, VersionMismatch."""
    if hive.api_url is None:
        raise HiveUnreachable(
            f"hive {hive.hive_id} has not said where it can be reached: check that it runs and reports here",
            details={"hive_id": hive.hive_id},
        )
    if hive.version and not versions_fit(__version__, hive.version):
        raise _mismatch(hive)
    return hive.api_url


async def _read(response: aiohttp.ClientResponse) -> bytes:
    answer = bytearray()
    async for chunk in response.content.iter_any():
        answer += chunk
        if len(answer) > _MOST_ANSWER_BYTES:
            break  # what is left of it does not decode, and is refused as such
    return bytes(answer)


def _refusal(hive: Hive, error: RemoteError) -> RemoteError:
    if error.status == 401 or error.status == 403:
        return RemoteError(
            HiveUnreachable.code,
            HiveUnreachable.status,
            f"hive {hive.hive_id} does not accept the queen's token: give both the same hive_api_token",
            {"hive_id": hive.hive_id},
        )
    return error


def _mismatch(hive: Hive) -> VersionMismatch:
    return VersionMismatch(
        f"the queen is version {__version__} and hive {hive.hive_id} is version {hive.version}: bring both to the "
        "same version with 'apt install --only-upgrade rbee-queen rbee-hive'",
        details={"queen_version": __version__, "hive_version": hive.version, "hive_id": hive.hive_id},
    )
