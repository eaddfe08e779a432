"""One request on the straight way: sent to a worker, its answer passed on, and accounted for exactly once."""

import asyncio
import logging
from typing import Protocol

from rbee.queen.admission.waiting import Lease
from rbee.queen.express import framing
from rbee.queen.express.heads import AnswerHead
from rbee.queen.express.upstreams import Upstreams, WorkerConnection
from rbee.queen.requests import relay
from rbee.queen.requests.dispatch import Refused
from rbee.queen.requests.explain import Trail
from rbee.queen.requests.explanations import What
from rbee.queen.requests.stories import OpenAiStory
from rbee.wire.errors import ProtocolError, RbeeError, RequestTimeout, WorkerFailed, WorkerUnreachable
from rbee.wire.log import log
from rbee.wire.tasks import TaskOwner

LOGGER = logging.getLogger(__name__)


class Client(Protocol):
    """The connection that a request came by. ``is_ending`` tells that its handlers take no request any more."""

    @property
    def is_ending(self) -> bool: ...

    def write(self, data: bytes) -> None:
        """Send bytes."""

    def go_the_long_way(self, trail: Trail) -> None:
        """Nothing has been sent: let the request's handler answer it."""

    def over(self, *, keep: bool) -> None:
        """The answer is whole, or broken where ``keep`` is False."""


class House(Protocol):
    """What an exchange uses of the queen."""

    upstreams: Upstreams
    owner: TaskOwner

    def head(self, trail: Trail, status: int, passed_on: str, framed: str) -> bytes:
        """The head of an answer, with the lines that its worker gave and the one that frames its body."""

    def error(self, trail: Trail, error: RbeeError) -> bytes:
        """A whole answer that is an error."""

    def account(self, trail: Trail, status: int, outcome: str, code: str | None) -> None:
        """Count a request that is over."""

    def elsewhere(self, refused: Refused, lease: Lease) -> RbeeError | None:
        """The reason to place a request anew that a worker refused, or None where that is the client's answer."""

    def doubt(self, lease: Lease, why: str) -> None:
        """Route nothing more to the worker until a trial."""

    def answered(self, lease: Lease) -> None:
        """The worker has begun to answer."""


class Exchange:
    """A request that holds ``lease``; ``request`` is all its bytes, ``limit_s`` the worker's longest silence."""

    __slots__ = (
        "_answer", "_client", "_connection", "_done", "_events", "_house", "_lease", "_limit_s", "_opening", "_pieces",
        "_request", "_sent", "_stream", "_trail",
    )  # fmt: skip

    def __init__(
        self, house: House, client: Client, lease: Lease, trail: Trail, request: bytes, *, stream: bool, limit_s: float
    ) -> None:
        self._house = house
        self._client = client
        self._lease = lease
        self._trail = trail
        self._request = request
        self._stream = stream
        self._limit_s = limit_s
        self._connection: WorkerConnection | None = None
        self._opening: asyncio.Task[None] | None = None
        self._answer: AnswerHead | None = None
        self._pieces: list[bytes] | None = None
        self._events: relay.WholeEvents | None = None
        self._sent = False
        self._done = False

    def begin(self) -> None:
        """Send it, by a kept connection or a new one."""
        connection = self._house.upstreams.take(self._lease.url)
        if connection is not None:
            self._send(connection)
            return
        self._opening = self._house.owner.start(self._open(), "connect to worker")
        if self._opening is None:
            self._the_long_way()

    async def _open(self) -> None:
        try:
            connection = await self._house.upstreams.open(self._lease.url)
        except (OSError, TimeoutError) as error:
            self._turned_away(type(error).__name__)
            return
        if self._done:
            connection.abort()
        else:
            self._send(connection)

    def _send(self, connection: WorkerConnection) -> None:
        self._connection = connection
        connection.send(self._request, self, self._limit_s)

    # what the worker says

    def answer_begins(self, head: AnswerHead) -> None:
        """Its head: a small answer, or an error, is held back, for until it is whole another worker may give it."""
        self._answer = head
        if head.status < 400:
            self._trail.answers(head.status)
            self._house.answered(self._lease)
        if head.status >= 400 or (head.length is not None and head.length <= relay.WHOLE_BYTES):
            self._pieces = []
        elif head.events:
            self._events = relay.WholeEvents()

    def piece(self, payload: bytes) -> None:
        """Bytes of its body; the limit starts anew before they go out, for a client that is slow suspends it."""
        if self._pieces is not None:
            self._pieces.append(payload)
            if sum(map(len, self._pieces)) > relay.WHOLE_BYTES:
                self._drop()
                self.lost()
            return
        out = self._fed(payload)
        if self._connection is not None and self._stream and not self._done:
            self._connection.allow(self._limit_s)
        if out:
            self._pass_on(out)

    def _fed(self, payload: bytes) -> bytes:
        if self._events is None:
            return payload
        try:
            return self._events.feed(payload)
        except ProtocolError as error:
            self._drop()
            self._break_off(error)
            return b""

    def _pass_on(self, out: bytes, last: bytes = b"") -> None:
        """Send a piece on, the head before the first one; a body of known length goes as it is."""
        head = self._answer
        if head is None:
            return
        sized = head.length is not None
        data = out if sized or not out else framing.chunk(out)
        if not self._sent:
            self._sent = True
            framed = "Transfer-Encoding: chunked" if head.length is None else f"Content-Length: {head.length}"
            data = self._house.head(self._trail, head.status, head.passed_on, framed) + data
        self._client.write(data + last if not sized else data)

    def whole(self, payload: bytes) -> None:
        """The last bytes of its body; the connection that brought them may serve another request from now on."""
        self._connection = None
        head = self._answer
        if head is None:
            return
        if self._pieces is not None:
            body = b"".join((*self._pieces, payload)) if self._pieces else payload
            self._answered(head, body)
            return
        out = self._fed(payload)
        if self._done:
            return
        if self._events is not None and not self._events.ended:
            if out:
                self._pass_on(out)
            self.lost()
            return
        self._pass_on(out, framing.LAST_CHUNK)
        self._end(head.status, "ok", None)

    def _answered(self, head: AnswerHead, body: bytes) -> None:
        """A body that was held back is whole."""
        refused = None if head.status < 400 else Refused(head.status, "", None, body, "")
        if refused is not None:
            problem = self._house.elsewhere(refused, self._lease)
            if problem is not None:
                self._trail.turned_away(What.REFUSED, problem.message, head.status)
                self._the_long_way()
                return
            self._trail.answers(head.status)
        framed = f"Content-Length: {len(body)}"
        self._client.write(self._house.head(self._trail, head.status, head.passed_on, framed) + body)
        if refused is None:
            self._end(head.status, "ok", None)
        else:
            self._end(head.status, "error", refused.info(None).code)

    def lost(self) -> None:
        """The worker's connection ended before the answer did."""
        if self._sent:
            self._house.doubt(self._lease, "broke off within an answer")
            self._break_off(relay.broken(self._trail.worker or ""))
            return
        self._turned_away("the connection ended", doubt=self._answer is not None or not self._reused())

    def late(self) -> None:
        """The worker has been silent for too long."""
        error: RbeeError
        if self._stream:
            error = relay.stalled(self._trail.worker or "", self._limit_s)
            self._house.doubt(self._lease, "broke off within an answer")
        else:
            error = RequestTimeout(
                f"the answer did not come within {self._limit_s:g} s: ask for less, or for a stream",
                details={"limit_s": self._limit_s},
            )
        self._break_off(error)

    # its ends

    def _reused(self) -> bool:
        return self._connection is not None and self._connection.used

    def _turned_away(self, why: str, *, doubt: bool = True) -> None:
        """No answer came: a kept connection may have been closed in the very moment of its use, a new one may not."""
        if self._done:
            return
        self._trail.turned_away(What.UNREACHABLE, why)
        if doubt:
            self._house.doubt(self._lease, "does not answer")
        self._the_long_way()

    def _the_long_way(self) -> None:
        if self._client.is_ending:
            why = "the worker went away or refused the request, and the queen stops: ask again"
            self._break_off(WorkerUnreachable(why, retry_after_s=2))
            return
        self._done = True
        self._lease.release()
        self._client.go_the_long_way(self._trail)

    def _break_off(self, error: RbeeError) -> None:
        """Tell the error: as an answer where none has begun, as the one last event, or by the connection's end."""
        if self._done:
            return
        log(
            LOGGER, logging.ERROR, "answer ended with an error", code=error.code, model=self._trail.model,
            why=error.message, correlation_id=self._trail.correlation_id,
        )  # fmt: skip
        if isinstance(error, WorkerFailed):
            self._trail.turned_away(What.BROKE_OFF, error.message)
        keep = True
        if not self._sent:
            self._client.write(self._house.error(self._trail, error))
        elif self._events is not None:
            event = OpenAiStory().error(error.openai_info(self._trail.correlation_id))
            self._client.write(framing.chunk(event) + framing.LAST_CHUNK)
        else:
            keep = False
        self._end(error.status if not self._sent else 200, "error", error.code, keep=keep)

    def _end(self, status: int, outcome: str, code: str | None, *, keep: bool = True) -> None:
        self._done = True
        self._lease.release()
        self._house.account(self._trail, status, outcome, code)
        self._client.over(keep=keep)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.forget()

    # what the client does

    def client_gone(self, status: int) -> None:
        """Nobody waits any more: the worker is told by the end of its connection, now."""
        if self._done:
            return
        self._done = True
        if self._opening is not None:
            self._opening.cancel()
        self._drop()
        self._lease.release()
        self._house.account(self._trail, status, "cancelled", None)

    def client_slow(self) -> None:
        """It does not read: what comes waits at the worker, not here."""
        if self._connection is not None:
            self._connection.pause()

    def client_reads(self) -> None:
        """It reads again."""
        if self._connection is not None and not self._done:
            self._connection.resume(self._limit_s)
