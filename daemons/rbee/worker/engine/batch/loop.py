"""The thread that steps a batch: it takes rows in, steps while there is work, and hands out what was chosen."""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from rbee.wire.errors import InferenceError, InternalError, RbeeError
from rbee.worker.engine.batch.mailbox import Mailbox, post
from rbee.worker.engine.batch.row import Row
from rbee.worker.engine.batch.stepper import Outcome, Stepper
from rbee.worker.engine.sampling import Choice

LOGGER = logging.getLogger(__name__)


class BatchLoop:
    """Owns the stepper and its one thread. ``on_failure`` is called from that thread where it cannot go on."""

    def __init__(self, stepper: Stepper, on_failure: Callable[[Exception], None]) -> None:
        self._stepper = stepper
        self._on_failure = on_failure
        self._mailbox = Mailbox()
        self._step_began: float | None = None
        self._thread = threading.Thread(target=self._live, name="batch", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def close(self) -> None:
        """Take no more; the thread ends after its present step."""
        self._mailbox.close()

    def submit(self, row: Row) -> None:
        """Take a row in, from the event loop's thread; raises InferenceError where the thread has ended."""
        if not self._mailbox.submit(row):
            raise _ended()

    def cancel(self, row: Row) -> None:
        """Let a row go before the next step, if it still runs."""
        self._mailbox.cancel(row)

    def wake(self) -> None:
        """A row that was held back may go on."""
        self._mailbox.wake()

    def step_s(self) -> float:
        """How long the step that runs has been running, in seconds; 0 between steps."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    def _live(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:  # noqa: BLE001 - the thread's last edge (a library's panic is no Exception)
            self._fail(error)

    def _turn(self) -> bool:
        """Take what came and make a step; False where the mailbox is closed."""
        news = self._mailbox.take(self._stepper.has_work)
        if news.closed:
            return False
        for row in news.submitted:
            self._stepper.submit(row)
        for row in news.cancelled:
            self._stepper.drop(row)
        self._step_began = time.monotonic()
        try:
            self._stepper.step(_tell)
        finally:
            self._step_began = None
        return True

    def _fail(self, error: BaseException) -> None:
        LOGGER.critical("the batch's thread failed", exc_info=error)
        lost = [*self._stepper.rows, *self._mailbox.close()]
        if lost:
            _tell([(row, _ended()) for row in lost])
        self._on_failure(error if isinstance(error, RbeeError) else InternalError(f"the engine failed: {error!r}"))


def _ended() -> InferenceError:
    return InferenceError("the worker's engine failed and the worker restarts: try again in a moment")


def _tell(came: Sequence[tuple[Row, Outcome]]) -> None:
    """Hand out what came of a step, with one call into the event loop."""
    post(came[0][0].stream.loop, lambda: _deliver(came))


def _deliver(came: Sequence[tuple[Row, Outcome]]) -> None:
    for row, outcome in came:
        if isinstance(outcome, Choice):
            row.stream.put(outcome)
        else:
            row.stream.fail(outcome)
