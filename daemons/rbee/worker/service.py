"""What the routes know of their worker: its definition, its model once it is there, its state, what runs."""

import time
from dataclasses import dataclass, field

from aiohttp import web

from rbee import __version__
from rbee.wire import correlation_ids, names
from rbee.wire.deadline import DEADLINE_HEADER, Deadline, parse_deadline
from rbee.wire.errors import InvalidRequest, ModelLoading, ModelNotFound
from rbee.wire.http.client import CALLER_HEADER
from rbee.wire.messages import Progress, WorkerHealth, WorkerState
from rbee.wire.worker_spec import Task
from rbee.worker.definition import Definition
from rbee.worker.loading import LoadedModel
from rbee.worker.metrics import WorkerMetrics
from rbee.worker.progress import ProgressBoard
from rbee.worker.requests import RunningRequests

REQUEST_ID_HEADER = "X-Request-Id"
REQUEST_HEADERS = {
    REQUEST_ID_HEADER: "the request's id, a UUID: by it the request can be cancelled",
    DEADLINE_HEADER: "when nobody waits any more: ISO-8601 with an offset, or epoch milliseconds",
}
"""Headers that every route which runs the model takes, and what they say."""
MOST_NAMED = 64
ROUTES_BY_TASK = {
    Task.GENERATE: "/v1/inference, /v1/chat/completions or /v1/completions",
    Task.EMBED: "/v1/embeddings",
    Task.RANK: "/v1/rerank",
    Task.TENSOR: "/v2/models/MODEL/infer",
}


@dataclass
class WorkerService:
    """One worker, as its routes see it."""

    definition: Definition
    board: ProgressBoard
    metrics: WorkerMetrics
    requests: RunningRequests
    loaded: LoadedModel | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def state(self) -> WorkerState:
        """draining, loading, busy (a slot is in use) or idle."""
        if self.requests.draining:
            return WorkerState.DRAINING
        if self.loaded is None:
            return WorkerState.LOADING
        return WorkerState.BUSY if self.requests.busy else WorkerState.IDLE

    def healthy(self) -> bool:
        """Whether no step of inference has been running for longer than ``step_limit_s``."""
        if self.loaded is None:
            return True
        return self.loaded.model.runner.longest_step_s() <= self.definition.spec.step_limit_s

    def health(self) -> WorkerHealth:
        """The body of /health."""
        return WorkerHealth(
            status="healthy" if self.healthy() else "unhealthy",
            state=self.state,
            worker_id=self.definition.worker_id,
            version=__version__,
            slots_total=self.requests.slots,
            slots_busy=self.requests.busy,
            idle_s=round(self.requests.idle_s, 3),
            requests_total=self.requests.total,
            tokens_total=self.requests.tokens,
        )

    def model_for(self, *tasks: Task) -> LoadedModel:
        """The model, if it is loaded and of one of ``tasks``; raises ModelLoading, InvalidRequest naming the route."""
        if self.loaded is None:
            raise self._loading()
        if self.loaded.facts.task not in tasks:
            task = self.loaded.facts.task
            raise InvalidRequest(
                f"this worker's model does {task}: use {ROUTES_BY_TASK[task]}",
                details={"task": task.value, "routes": ROUTES_BY_TASK[task]},
            )
        return self.loaded

    def check_model(self, name: str | None) -> None:
        """Accept the model's name, its reference, this worker's id, or none; raises ModelNotFound."""
        known = (self.definition.model, self.definition.model_ref, self.definition.worker_id)
        if name is not None and name not in known:
            raise ModelNotFound(
                f"this worker serves {self.definition.model} and no other model",
                details={"model": self.definition.model},
            )

    def _loading(self) -> ModelLoading:
        stage = self.board.current
        details: dict[str, object] = {"state": self.state.value}
        if isinstance(stage, Progress):
            details["progress"] = {"stage": stage.stage, "done": stage.done, "total": stage.total, "unit": stage.unit}
        return ModelLoading(
            "the model is loading: try again in a moment, or follow /v1/loading/progress",
            details={"loading": details},
            retry_after_s=1.0,
        )


def request_id_of(request: web.Request) -> str:
    """The request's id: X-Request-Id where it is given (a UUID, else InvalidRequest), a new one otherwise."""
    header = request.headers.get(REQUEST_ID_HEADER)
    return correlation_ids.new() if header is None else names.request_id(header)


def deadline_of(request: web.Request) -> Deadline | None:
    """The request's deadline, if it brought one; raises InvalidRequest."""
    header = request.headers.get(DEADLINE_HEADER)
    return None if header is None else parse_deadline(header)


def client_of(request: web.Request) -> str | None:
    """Who asked the hop before this one, as that hop says; for the record only."""
    header = request.headers.get(CALLER_HEADER)
    return header[:MOST_NAMED] if header is not None and header.isascii() and header.isprintable() else None
