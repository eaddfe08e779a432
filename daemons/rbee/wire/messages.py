"""Messages between the daemons: what a hive tells a queen, and what a worker leaves for its hive.

Times named ``*_unix`` are seconds since the epoch (float); ``*_monotonic_us`` are microseconds of CLOCK_MONOTONIC on
the machine that wrote them. Everything decodes strictly; a field that is unknown is ignored between daemons so that
a newer hive can speak to an older queen.
"""

import enum
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from rbee.wire.worker_spec import Backend, Task

API_VERSION = "v1"

WorkerId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]{1,64}\Z")]
HiveId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?\Z")]
Text = Annotated[str, Meta(max_length=512)]
Url = Annotated[str, Meta(pattern=r"^https?://[A-Za-z0-9.\[\]:_-]+\Z", max_length=300)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""No more than SQLite, which keeps some of these, has bits for."""


class WorkerState(enum.StrEnum):
    """What a worker is, as its hive and the queen see it.

    ``idle`` and ``busy`` are ready (routable); ``unhealthy`` has a running unit whose HTTP does not answer; ``stale``
    is the queen's own word for a worker whose hive went silent.
    """

    LOADING = "loading"
    IDLE = "idle"
    BUSY = "busy"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"
    UNHEALTHY = "unhealthy"
    STALE = "stale"

    @property
    def ready(self) -> bool:
        """Whether a worker in this state takes requests."""
        return self is _IDLE or self is _BUSY

    @property
    def ended(self) -> bool:
        """Whether a worker in this state does not run any more, or never did."""
        return self is _STOPPED or self is _FAILED


# an enum's member costs a look-up by name each time
_IDLE, _BUSY = WorkerState.IDLE, WorkerState.BUSY
_STOPPED, _FAILED = WorkerState.STOPPED, WorkerState.FAILED


class Progress(msgspec.Struct, frozen=True):
    """How far loading is: a stage's name and done of total in ``unit`` (bytes, steps)."""

    stage: Text
    done: Count = 0
    total: Count = 0
    unit: Text = "steps"


class WorkerFacts(msgspec.Struct, frozen=True):
    """What a worker writes to ``run_dir/workers/ID/worker.json`` when it listens and, whole, just before READY=1.

    ``model`` is the name that clients use, ``model_ref`` where it came from, ``ready_monotonic_us`` the clock right
    before READY=1 is sent, 0 while it loads. ``memory_bytes`` is what the process has in RAM then,
    ``memory_peak_bytes`` the most that it had until then.
    """

    worker_id: WorkerId
    url: Url
    socket: str
    model: Text
    model_ref: Text
    task: Task
    backend: Backend
    device: Count
    slots_total: Count
    version: Text
    pid: Count
    invocation_id: str
    ready_monotonic_us: Count
    capabilities: list[Text] = []
    memory_bytes: Count = 0
    memory_peak_bytes: Count = 0


class WorkerReport(msgspec.Struct, frozen=True):
    """One worker at one moment, as its hive reports it: in a callback, a state change, and each heartbeat.

    ``revision`` orders reports within ``boot_id`` (one life of the hive). ``invocation_id`` is the life of the worker's
    unit; empty outside systemd. ``result`` is systemd's (success, exit-code, signal, watchdog, oom-kill, timeout ...).
    ``reason`` says why in one word or sentence (idle, crashed, LOADING_TIMEOUT, requested). ``spawned_unix`` and
    ``ready_unix`` are when the unit began to start and became active. ``last_log`` is the last line that a life which
    ended badly wrote to its log; it may come with a later report than the end itself. ``memory_bytes`` is what it held
    when it became ready, ``memory_peak_bytes`` the most until then: of RAM, and of one that runs on a GPU that GPU's
    memory alone, which a later report has; 0 where that is not known, or it does not run.
    ``memory_settings`` stands for the settings of its definition, besides its slots, that this depends on: empty where
    all are the defaults, alike where they are alike.
    """

    worker_id: WorkerId
    hive_id: HiveId
    boot_id: Text
    revision: Count
    state: WorkerState
    url: Url | None = None
    model: Text | None = None
    model_ref: Text | None = None
    task: Task | None = None
    backend: Backend | None = None
    device: Count = 0
    slots_total: Count = 0
    slots_available: Count = 0
    invocation_id: Text = ""
    pid: Count = 0
    progress: Progress | None = None
    status_text: Text = ""
    result: Text = ""
    exit_status: int = 0
    exit_signal: int = 0
    restarts: Count = 0
    reason: Text = ""
    last_log: Text = ""
    managed: bool = True
    version: Text = ""
    capabilities: list[Text] = []
    since_unix: float = 0.0
    spawned_unix: float | None = None
    ready_unix: float | None = None
    memory_bytes: Count = 0
    memory_peak_bytes: Count = 0
    memory_settings: Text = ""
    sent_unix: float = 0.0

    @property
    def load_s(self) -> float | None:
        """Seconds from the start of the unit until the worker was ready; None where one of the two is not known."""
        if self.ready_unix is None or self.spawned_unix is None:
            return None
        return max(0.0, self.ready_unix - self.spawned_unix)


class ReadyCallback(WorkerReport, frozen=True):
    """POST /v2/workers/ready: a report in which what a ready worker must have is required by the queen's edge."""


class CallbackAnswer(msgspec.Struct, frozen=True):
    """The queen's answer to a callback; ``message`` says what it did (stored, ignored as older ...)."""

    success: bool
    message: str


class GpuFacts(msgspec.Struct, frozen=True):
    """One GPU: memory in bytes, temperature in degrees Celsius where known."""

    index: Count
    name: Text
    uuid: Text
    memory_total_bytes: Count
    memory_used_bytes: Count
    temperature_c: int | None = None
    compute_capability: Text = ""


class MachineFacts(msgspec.Struct, frozen=True):
    """A machine's resources in bytes, its cores, its GPUs, and the words that its hive's configuration gives it."""

    hostname: Text
    cores: Count
    ram_total_bytes: Count
    ram_available_bytes: Count
    disk_total_bytes: Count
    disk_available_bytes: Count
    gpus: list[GpuFacts] = []
    driver: Text = ""
    labels: list[Text] = []


class Heartbeat(msgspec.Struct, frozen=True):
    """POST /v2/hives/HIVE/heartbeat: the whole picture of one machine, every ``interval_s``.

    ``workers`` holds every worker that the hive knows, the stopped ones with a definition included. ``api_url`` is
    where the queen reaches the hive. ``revoked`` is the SHA-256 (hex) of the list of revoked certificates that the hive
    has, empty where it has none yet, None where it speaks without certificates.
    """

    hive_id: HiveId
    boot_id: Text
    revision: Count
    version: Text
    interval_s: float
    sent_unix: float
    api_url: Url | None
    machine: MachineFacts
    workers: list[WorkerReport]
    revoked: Text | None = None


class HeartbeatAnswer(msgspec.Struct, frozen=True):
    """``instance_id`` names one life of the queen; a hive that sees a new one sends its whole picture at once.

    ``revoked`` is the list of revoked certificates (PEM), where the hive has another one.
    """

    success: bool
    message: str
    instance_id: str
    version: str
    revoked: str | None = None


class WorkerList(msgspec.Struct, frozen=True):
    """GET /v1/workers/list of a hive, GET /v2/workers/list of a queen."""

    workers: list[WorkerReport]


class SpawnRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/workers/spawn of a hive (and /v2/workers/spawn of a queen, which adds where).

    With ``model_ref`` the hive writes a definition first (kept over a reboot unless ``ephemeral``); without it the
    worker's definition must exist. ``device`` None: the queen chooses one, a hive takes the first.
    """

    worker_id: WorkerId
    model_ref: str | None = None
    name: Text | None = None
    task: Task = Task.AUTO
    backend: Annotated[str, Meta(max_length=32)] = "cpu"
    device: int | None = None
    slots: Annotated[int, Meta(ge=1, le=256)] = 4
    idle_limit_s: Annotated[float, Meta(ge=0)] | None = None
    ephemeral: bool = False
    hive_id: HiveId | None = None


class ShutdownRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v2/workers/shutdown of a queen: drain and stop one worker."""

    worker_id: WorkerId
    hive_id: HiveId | None = None


class ExternalReady(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/workers/ready of a hive: a worker that runs outside systemd says that it is ready."""

    worker_id: WorkerId
    url: Url
    model_ref: Text
    backend: Annotated[str, Meta(max_length=32)]
    device: int = 0
    model: Text | None = None
    task: Task = Task.GENERATE
    slots_total: Annotated[int, Meta(ge=1, le=256)] = 1


class WorkerHealth(msgspec.Struct, frozen=True):
    """GET /health of a worker: open, cheap, no activity. ``tokens_total`` are those written, of texts under way too."""

    status: str
    state: WorkerState
    worker_id: WorkerId
    version: str
    slots_total: Count
    slots_busy: Count
    idle_s: float
    requests_total: Count
    tokens_total: Count = 0


Message = TypeVar("Message")


def decode_json(data: bytes, kind: type[Message]) -> Message:
    """Decode a message of ``kind`` from JSON; raises msgspec.ValidationError or msgspec.DecodeError."""
    return msgspec.json.decode(data, type=kind)
