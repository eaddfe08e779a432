"""HTTP to a partner daemon: pooled keep-alive connections, a token per hop, and a time limit on every call."""

import asyncio
import json
import socket
import ssl
from typing import Any, TypeVar

import aiohttp
import msgspec

from rbee.wire import context
from rbee.wire.auth import Secret
from rbee.wire.errors import ConnectionTimeout, ErrorBody, ProtocolError, RbeeError, Unavailable
from rbee.wire.http.middleware import CORRELATION_HEADER

T = TypeVar("T")
CALLER_HEADER = "X-Rbee-Caller"
PEER_LIMIT_S = 5
_PROBE_AFTER_S, _PROBE_EVERY_S = 2, 1
_CONNECT_TIMEOUT_S = 10.0
_MOST_ANSWER_BYTES = 16 << 20


class RemoteError(RbeeError):
    """An error that a partner daemon answered: its own code, status, sentence and details, carried on unchanged."""

    def __init__(self, code: str, status: int, message: str, details: dict[str, Any]) -> None:
        super().__init__(message, details=details)
        self.code = code  # type: ignore[misc]
        self.status = status  # type: ignore[misc]


def client_session(
    *,
    token: Secret | None = None,
    unix_socket: str | None = None,
    connections: int = 100,
    proxies: bool = False,
    tls: ssl.SSLContext | None = None,
    watched: bool = False,
) -> aiohttp.ClientSession:
    """A session to one partner (or, over TCP, to several with the same token).

    No cookies, the environment's proxies only with ``proxies``, no total time limit: each call brings its own. At
    most ``connections`` are open at once; a call past that waits within its time limit. The loop sets TCP_NODELAY.
    ``tls`` is what is shown and asked for at https addresses (default: the machine's own authorities, no certificate
    of ours). ``watched``: its TCP connections end when their peer's machine is gone, see :func:`notice_death`.
    """
    connector: aiohttp.BaseConnector
    if unix_socket is not None:
        connector = aiohttp.UnixConnector(unix_socket, limit=connections, keepalive_timeout=60.0)
    else:
        connector = aiohttp.TCPConnector(
            limit=connections,
            keepalive_timeout=60.0,
            ttl_dns_cache=60,
            ssl=tls or True,
            socket_factory=_watched_socket if watched else None,
        )
    headers = {} if token is None else {"Authorization": f"Bearer {token.reveal()}"}
    return aiohttp.ClientSession(
        connector=connector,
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=proxies,
        auto_decompress=False,
        requote_redirect_url=False,  # a signed URL that is quoted anew is another URL
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
    )


def notice_death(connection: socket.socket, limit_s: int = PEER_LIMIT_S) -> None:
    """Have the kernel end a TCP connection whose peer's machine acknowledges nothing for ``limit_s`` seconds (>= 3).

    A machine that lost its power or its cable closes nothing: without this, who waits for its answer waits until a
    limit of his own. A peer that is there and silent is not touched, for its kernel answers, unless
    it reads nothing of what waits to be sent to it for as long (TCP_USER_TIMEOUT of tcp(7)).
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_EVERY_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, (limit_s - _PROBE_AFTER_S) // _PROBE_EVERY_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_s * 1000)


def _watched_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    notice_death(made)
    return made


def request_headers() -> dict[str, str]:
    """Headers that carry the request in hand on to the next hop: its correlation id and its caller's fingerprint."""
    headers = {}
    correlation = context.correlation_id.get()
    if correlation is not None:
        headers[CORRELATION_HEADER] = correlation
    caller = context.caller.get()
    if caller is not None:
        headers[CALLER_HEADER] = caller
    return headers


async def fetch_json(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    kind: type[T],
    *,
    body: object = None,
    timeout_s: float,
) -> T:
    """Call and decode the answer into ``kind``.

    Raises ConnectionTimeout when nothing came within ``timeout_s``, Unavailable when no connection could be made,
    ProtocolError when the answer does not decode (with the position), RemoteError for an error the partner answered.
    """
    data = None if body is None else msgspec.json.encode(body)
    headers = request_headers() | ({"Content-Type": "application/json"} if data is not None else {})
    try:
        async with (
            asyncio.timeout(timeout_s),
            session.request(method, url, data=data, headers=headers, allow_redirects=False) as response,
        ):
            answer = await _read_whole(response)
            status = response.status
    except TimeoutError:
        raise ConnectionTimeout(f"no answer within {timeout_s:g} s", details={"timeout_s": timeout_s}) from None
    except aiohttp.ClientError as error:
        raise Unavailable(f"the connection failed: {type(error).__name__}") from error
    if status >= 400:
        raise remote_error(status, answer)
    return decode_answer(answer, kind)


async def _read_whole(response: aiohttp.ClientResponse) -> bytes:
    # StreamReader.read(n) answers with what has arrived so far, not with n bytes
    answer = bytearray()
    async for chunk in response.content.iter_any():
        answer += chunk
        if len(answer) > _MOST_ANSWER_BYTES:
            raise ProtocolError("the answer is over 16 MiB")
    return bytes(answer)


def remote_error(status: int, answer: bytes) -> RemoteError:
    """The error that a partner answered, from its body; a body of another shape gives the status alone."""
    try:
        info = msgspec.json.decode(answer, type=ErrorBody).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return RemoteError("PROTOCOL_ERROR", status, f"the partner answered HTTP status {status}", {})
    return RemoteError(info.code, status, info.message, info.details)


def decode_answer(answer: bytes, kind: type[T]) -> T:
    """Decode a partner's answer; raises ProtocolError that names the position or the field."""
    try:
        return msgspec.json.decode(answer, type=kind)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the answer does not fit the protocol: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ProtocolError(f"the answer is not valid JSON: {_position(answer)}") from None


def _position(answer: bytes) -> str:
    try:
        json.loads(answer)
    except json.JSONDecodeError as error:
        return f"line {error.lineno} column {error.colno}"
    except UnicodeDecodeError as error:
        return f"byte {error.start}"
    except RecursionError:
        return "it is nested too deeply"
    return "it does not decode"
