"""Loads the model in a thread, stage by stage, and gives up when no stage makes progress."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rbee.wire.errors import InferenceError, LoadingTimeout, OutOfMemory, RbeeError
from rbee.wire.messages import Progress
from rbee.wire.worker_spec import Backend
from rbee.worker.definition import Definition
from rbee.worker.engine.cores import pin
from rbee.worker.engine.folder import ModelFolder, read_folder, read_through
from rbee.worker.engine.recognise import ModelFacts, recognise
from rbee.worker.engine.runtime import runtime, thread_count
from rbee.worker.engine.shortage import shortage
from rbee.worker.models import Model, build_model, build_runner
from rbee.worker.pressure import warn_of_busy_disks
from rbee.worker.progress import ProgressBoard, describe
from rbee.worker.vram import await_freed

LOGGER = logging.getLogger(__name__)
Report = Callable[[Progress], None]
STAGES = ("reading files", "importing the runtime", "creating the session", "warming up")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to serve: what it is, what serves it, and how long loading took in seconds."""

    facts: ModelFacts
    folder: ModelFolder
    model: Model
    seconds: float


def load_model(definition: Definition, report: Report) -> LoadedModel:
    """Load and warm up, calling ``report`` at each bit of progress.

    Blocking. Raises ConfigError for a model that cannot be served, ProviderUnavailable where the device is not there,
    OutOfMemory or MemoryError where the memory is too short.
    """
    started = time.monotonic()
    folder = read_folder(definition.folder)
    facts = recognise(folder.facts, definition.spec.task)
    warn_of_busy_disks(Path(definition.defaults.io_pressure_file), definition.defaults.io_pressure_percent)
    read_through(folder.weight_files, lambda done, total: report(Progress("reading files", done, total, "bytes")))
    if definition.spec.pin_cores:
        cores = pin(definition.spec.pin_cores)
        LOGGER.info("pinned to cores %s", ", ".join(map(str, sorted(cores))))
    report(Progress("importing the runtime", 1, len(STAGES)))
    runtime()
    if definition.spec.backend is Backend.CUDA:
        await_freed(definition.spec.device)
    report(Progress("creating the session", 2, len(STAGES)))
    runner = build_runner(definition.spec)
    model = build_model(definition, folder, facts, runner, thread_count(definition.spec.threads))
    report(Progress("warming up", 3, len(STAGES)))
    _warm_up(model)
    report(Progress("warmed up", len(STAGES), len(STAGES)))
    return LoadedModel(facts, folder, model, time.monotonic() - started)


def _warm_up(model: Model) -> None:
    try:
        model.served.warm_up()
    except OutOfMemory:
        raise
    except InferenceError as error:
        why = str(error.__cause__ or error).strip().splitlines()[:1]
        raise InferenceError(f"the model loads, and its first run fails: {''.join(why)[:300]}") from error


class Loader:
    """Owns the loading thread. The thread is a daemon: one that is stuck in a system call cannot hold the process."""

    def __init__(
        self, definition: Definition, board: ProgressBoard, on_progress: Report, on_end: Callable[[], None]
    ) -> None:
        self._definition = definition
        self._board = board
        self._on_progress = on_progress
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._result: asyncio.Future[LoadedModel] = self._loop.create_future()
        self._moved = asyncio.Event()
        self._started = time.monotonic()

    def start(self) -> None:
        """Begin to load."""
        threading.Thread(target=self._load, name="load", daemon=True).start()

    async def result(self) -> LoadedModel:
        """Await the model; raises what loading raised, or LoadingTimeout when it stalls past ``load_stall_s``."""
        while not self._result.done():
            self._moved.clear()
            try:
                async with asyncio.timeout(self._definition.spec.load_stall_s):
                    await self._moved.wait()
            except TimeoutError:
                raise self._stalled() from None
        return self._result.result()

    def _stalled(self) -> LoadingTimeout:
        spec, stage = self._definition.spec, self._board.current
        elapsed = time.monotonic() - self._started
        at = describe(stage) if isinstance(stage, Progress) else "its end"
        return LoadingTimeout(
            f"LOADING_TIMEOUT: no progress for {spec.load_stall_s:g} s at '{at}', {elapsed:.1f} s after the start: "
            f"look at 'journalctl -u rbee-worker@{self._definition.worker_id}', or raise load_stall_s",
            details={"stage": at, "elapsed_s": round(elapsed, 3), "load_stall_s": spec.load_stall_s},
        )

    def _load(self) -> None:
        try:
            model = load_model(self._definition, self._report)
        except OutOfMemory as error:
            self._tell(self._end, _out_of_memory(error))
        except MemoryError as error:
            self._tell(self._end, _out_of_memory(shortage(error, "the model", None)))
        except RbeeError as error:
            self._tell(self._end, error)
        except Exception as error:  # noqa: BLE001 - the thread's last edge: carried to the loop with its stack
            self._tell(self._end, error)
        else:
            self._tell(self._end, model)

    def _report(self, stage: Progress) -> None:
        self._tell(self._progress, stage)

    def _tell(self, call: Callable[..., None], value: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the daemon ended while the thread was loading
            self._loop.call_soon_threadsafe(call, value)

    def _progress(self, stage: Progress) -> None:
        if not self._result.done():
            self._moved.set()
            self._board.post(stage)
            self._on_progress(stage)

    def _end(self, outcome: LoadedModel | Exception) -> None:
        if self._result.done():
            return
        self._moved.set()
        self._on_end()
        if isinstance(outcome, LoadedModel):
            self._result.set_result(outcome)
        else:
            self._result.set_exception(outcome)


def _out_of_memory(error: OutOfMemory) -> OutOfMemory:
    """The end of a load whose memory ran out: its sentence begins with its code, by which the hive knows it."""
    return type(error)(f"{error.code}: {error.message}", details=error.details)
