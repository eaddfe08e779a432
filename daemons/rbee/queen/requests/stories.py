"""What a client is told while its request waits, and how it learns of an error after its answer began."""

from typing import Protocol

import msgspec

from rbee.queen.requests.dispatch import Upstream
from rbee.wire.errors import ErrorBody, ErrorInfo
from rbee.wire.messages import WorkerReport, WorkerState
from rbee.wire.sse import DONE, comment, encode


class Story(Protocol):
    """Events of one protocol; empty bytes mean that there is nothing to tell.

    ``openai`` says whether errors carry OpenAI's own fields, ``still_s`` how often silence is broken by a comment, and
    ``first_word_s`` how long a request may wait before its answer begins (and its status line is out).
    """

    first_word_s: float
    still_s: float
    openai: bool

    def queued(self) -> bytes: ...
    def news(self, report: WorkerReport) -> bytes: ...
    def placed(self, upstream: Upstream) -> bytes: ...
    def still(self) -> bytes: ...
    def error(self, info: ErrorInfo) -> bytes: ...


class OpenAiStory:
    """OpenAI's streams: comments after 5 s of waiting, and an error as data that OpenAI's clients raise."""

    first_word_s = 5.0
    still_s = 5.0
    openai = True

    def queued(self) -> bytes:
        """Nothing: the protocol has no word for it."""
        return b""

    def news(self, report: WorkerReport) -> bytes:
        """Nothing."""
        return b""

    def placed(self, upstream: Upstream) -> bytes:
        """Nothing."""
        return b""

    def still(self) -> bytes:
        """A comment line."""
        return comment("waiting for the model")

    def error(self, info: ErrorInfo) -> bytes:
        """``data: {"error": ...}`` and the end."""
        return encode(None, msgspec.json.encode(ErrorBody(info))) + DONE


class Queued(msgspec.Struct, frozen=True):
    """The event ``queued``: the request is taken, under the id by which it can be cancelled."""

    request_id: str
    model: str


class Placing(msgspec.Struct, frozen=True):
    """The event ``placing``: the worker that is to run the request."""

    request_id: str
    hive_id: str
    worker_id: str
    queue_ms: float | None = None


class Loading(msgspec.Struct, frozen=True):
    """The event ``loading``: how far the worker that the request waits for has come."""

    request_id: str
    hive_id: str
    worker_id: str
    state: WorkerState
    stage: str
    done: int
    total: int
    unit: str
    status_text: str


class TypedStory:
    """Typed events: queued, placing, loading, then the worker's own, exactly one end or error, ``[DONE]``."""

    first_word_s = 0.0
    still_s = 15.0
    openai = False

    def __init__(self, request_id: str, model: str) -> None:
        self._request_id = request_id
        self._model = model
        self._named: str | None = None
        self._queued = False

    def queued(self) -> bytes:
        """The event ``queued``, once."""
        if self._queued:
            return b""
        self._queued = True
        return _event("queued", Queued(self._request_id, self._model))

    def news(self, report: WorkerReport) -> bytes:
        """``loading`` (and ``placing`` before the first one of that worker)."""
        if report.state is not WorkerState.LOADING:
            return b""
        progress = report.progress
        loading = Loading(
            self._request_id,
            report.hive_id,
            report.worker_id,
            report.state,
            progress.stage if progress is not None else "",
            progress.done if progress is not None else 0,
            progress.total if progress is not None else 0,
            progress.unit if progress is not None else "steps",
            report.status_text,
        )
        return self._placing(report.hive_id, report.worker_id, None) + _event("loading", loading)

    def placed(self, upstream: Upstream) -> bytes:
        """``placing`` with the time in the queue, unless that worker was named while it loaded."""
        key = upstream.lease.worker.key
        return self._placing(key.hive_id, key.worker_id, round(upstream.queue_ms, 3))

    def _placing(self, hive_id: str, worker_id: str, queue_ms: float | None) -> bytes:
        name = f"{hive_id}/{worker_id}"
        if self._named == name:
            return b""
        self._named = name
        return _event("placing", Placing(self._request_id, hive_id, worker_id, queue_ms))

    def still(self) -> bytes:
        """A comment line."""
        return comment("waiting")

    def error(self, info: ErrorInfo) -> bytes:
        """The event ``error`` and the end."""
        return _event("error", ErrorBody(info)) + DONE


def _event(name: str, data: msgspec.Struct) -> bytes:
    return encode(name, msgspec.json.encode(data))
