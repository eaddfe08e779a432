"""The way of one inference request through the queen: opened at a worker, told about, passed on, and accounted for."""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from rbee.queen.metrics import QueenMetrics
from rbee.queen.requests import relay
from rbee.queen.requests.dispatch import TRIES, Call, Dispatcher, Refused, Upstream
from rbee.queen.requests.explain import Recent, Trail
from rbee.queen.requests.explanations import What
from rbee.queen.requests.reply import Sink
from rbee.queen.requests.stories import Story
from rbee.wire import context
from rbee.wire.errors import RbeeError, WorkerFailed
from rbee.wire.http.metrics import exemplar
from rbee.wire.log import log
from rbee.wire.messages import WorkerReport

LOGGER = logging.getLogger(__name__)


def _codes(kind: type[RbeeError]) -> Iterator[str]:
    yield kind.code
    for below in kind.__subclasses__():
        yield from _codes(below)


def code_label(code: str) -> str:
    """A code as a metric's label: one that is not of our tree (a worker's own) is OTHER, so that labels are bounded."""
    return code if code in set(_codes(RbeeError)) else "OTHER"


@dataclass(slots=True)
class Account:
    """How a request ended: ``outcome`` is ok, error or cancelled; ``code`` that of the error; ``trail`` its way."""

    trail: Trail
    outcome: str = "cancelled"
    code: str | None = None

    def ok(self) -> None:
        """The answer is whole."""
        self.outcome = "ok"

    def failed(self, code: str) -> None:
        """It ended with an error."""
        self.outcome, self.code = "error", code


@contextmanager
def accounted(metrics: QueenMetrics, recent: Recent, trail: Trail) -> Iterator[Account]:
    """Count and time one request by how it ended, and keep its trail, begun here or before, in ``recent``."""
    trail.correlation_id = context.correlation_id.get()
    account = Account(trail)
    began = time.perf_counter()
    metrics.requests.labels().inc()
    recent.keep(account.trail)
    try:
        yield account
    except RbeeError as error:
        account.failed(error.code)
        raise
    finally:
        account.trail.ends(account.outcome, account.code)
        metrics.request_duration.labels(trail.route, account.outcome).observe(time.perf_counter() - began, exemplar())
        if account.code is not None:
            metrics.errors.labels(code_label(account.code)).inc()


async def carry(dispatcher: Dispatcher, call: Call, sink: Sink, story: Story, account: Account) -> Refused | None:
    """Take ``call`` to a worker and its answer to ``sink``.

    Returns a refusal that came before the answer began, for the caller to answer with; raises RbeeError likewise.
    Once the answer began, an error is told as ``story``'s one terminal event. A caller that is cancelled takes the
    request at the worker with it. Raises ConnectionResetError when the client left, and when an answer without events
    had to be cut.
    """
    try:
        for number in range(1, TRIES + 1):
            answer = await _open(dispatcher, call, sink, story)
            if isinstance(answer, Refused):
                return await _refuse(answer, sink, story, account)
            try:
                await _pass_on(dispatcher, call, answer, sink, story)
            except RbeeError as error:
                if answer.passed and not answer.is_events:
                    raise _cut(error, call, sink, account) from None
                if answer.passed or number == TRIES or not relay.is_broken(error):
                    raise  # a client that has bytes of one worker gets none of another
            else:
                account.ok()
                return None
    except RbeeError as error:
        if not sink.begun:
            raise
        account.failed(error.code)
        log(LOGGER, logging.ERROR, "answer ended with an error", code=error.code, model=call.model, why=error.message)
        info = error.openai_info if story.openai else error.info
        await sink.write(story.queued() + story.error(info(context.correlation_id.get())))
        await sink.end()
    return None


def _cut(error: RbeeError, call: Call, sink: Sink, account: Account) -> ConnectionResetError:
    """Break off an answer that has no events to tell of its error in; the client sees that it is not whole."""
    account.failed(error.code)
    log(LOGGER, logging.ERROR, "answer cut short", code=error.code, model=call.model, why=error.message)
    sink.abort()
    return ConnectionResetError("the worker broke off within an answer that has no events")


async def _refuse(answer: Refused, sink: Sink, story: Story, account: Account) -> Refused | None:
    info = answer.info(context.correlation_id.get())
    account.failed(info.code)
    if not sink.begun:
        return answer
    await sink.write(story.queued() + story.error(info))
    await sink.end()
    return None


async def _open(dispatcher: Dispatcher, call: Call, sink: Sink, story: Story) -> Upstream | Refused:
    if call.stream and call.patient and not dispatcher.admission.at_once(call.model):
        return await _open_and_tell(dispatcher, call, sink, story)
    return await dispatcher.open(call)


async def _open_and_tell(dispatcher: Dispatcher, call: Call, sink: Sink, story: Story) -> Upstream | Refused:
    stirred = asyncio.Event()
    latest: dict[str, WorkerReport] = {}

    def news(report: WorkerReport) -> None:
        latest[report.worker_id] = report
        stirred.set()

    opening = asyncio.create_task(dispatcher.open(dataclasses.replace(call, news=news)), name="open")
    opening.add_done_callback(lambda _: stirred.set())
    used = False
    try:
        await asyncio.wait((opening,), timeout=story.first_word_s or 0.001)  # what is refused at once is an answer
        if not opening.done():
            await _say(sink, story.queued() or story.still())
        while not opening.done():
            quiet = await _quiet(stirred, story.still_s)
            stirred.clear()
            words = b"".join(story.news(report) for report in latest.values())
            latest.clear()
            if words or quiet:
                await _say(sink, words or story.still())
        used = True
        return opening.result()
    finally:
        if not used:
            await _discard(opening)


async def _quiet(stirred: asyncio.Event, limit_s: float) -> bool:
    try:
        async with asyncio.timeout(limit_s):
            await stirred.wait()
    except TimeoutError:
        return True
    return False


async def _discard(opening: "asyncio.Task[Upstream | Refused]") -> None:
    """Nobody wants the answer any more: stop asking for it, or close what was opened in that very turn."""
    opening.cancel()
    (answer,) = await asyncio.gather(opening, return_exceptions=True)
    if isinstance(answer, Upstream):
        answer.close()


async def _say(sink: Sink, words: bytes) -> None:
    if words:
        if not sink.begun:
            await sink.begin(None)
        await sink.write(words)


async def _pass_on(dispatcher: Dispatcher, call: Call, upstream: Upstream, sink: Sink, story: Story) -> None:
    prologue = b""
    if upstream.is_events:
        prologue = story.queued() + story.placed(upstream)
    whole = False
    try:
        async with aclosing(upstream.body()) as body:
            async for chunk in body:
                if not sink.begun:
                    await sink.begin(upstream)
                upstream.passed = True
                await sink.write(prologue + chunk if prologue else chunk)
                prologue = b""
        if not sink.begun:
            await sink.begin(upstream)
        await sink.end()
        whole = True
    except WorkerFailed as error:
        call.trail.turned_away(What.BROKE_OFF, error.message)
        dispatcher.broke(upstream)
        raise
    finally:
        upstream.close()
        if not whole:
            dispatcher.cancel(upstream.lease, call.request_id)
