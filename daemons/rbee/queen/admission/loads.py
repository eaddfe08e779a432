"""How long loads took, and so how long one that is under way will still take."""

import statistics
from collections import OrderedDict, deque

from rbee.queen.registry.rows import Change
from rbee.queen.routing.decision import Key
from rbee.wire.messages import WorkerReport, WorkerState

KEPT = 5
MOST_WORKERS = 4096


class LoadTimes:
    """The last loads of each worker in seconds, from the start of its unit to READY=1, by its hive's clock."""

    def __init__(self) -> None:
        self._loads: OrderedDict[Key, deque[float]] = OrderedDict()
        self._loading: set[Key] = set()

    def watch(self, change: Change) -> None:
        """A worker changed: one that was loading and is ready now is noted."""
        report = change.worker.report
        if report.state is WorkerState.LOADING and not change.removed:
            self._loading.add(change.worker.key)
        elif change.worker.key in self._loading:
            self._loading.discard(change.worker.key)
            if report.state.ready:
                self.note(report)

    def note(self, report: WorkerReport) -> None:
        """A worker became ready."""
        took_s = report.load_s
        if not took_s:
            return
        key = Key(report.hive_id, report.worker_id)
        self._loads.setdefault(key, deque(maxlen=KEPT)).append(took_s)
        self._loads.move_to_end(key)
        if len(self._loads) > MOST_WORKERS:
            self._loads.popitem(last=False)

    def usual_s(self, key: Key) -> float | None:
        """The median of the worker's last loads; None where there was none."""
        loads = self._loads.get(key)
        return statistics.median(loads) if loads else None

    def eta_s(self, report: WorkerReport, elapsed_s: float) -> float | None:
        """Seconds that a load which began ``elapsed_s`` ago will still take, 0 at least; None where nothing tells.

        The last loads tell it; at a worker's first one, how far it has come does.
        """
        usual = self.usual_s(Key(report.hive_id, report.worker_id))
        if usual is not None:
            return max(0.0, usual - elapsed_s)
        share = progress_share(report)
        return elapsed_s * (1.0 - share) / share if share else None


def progress_share(report: WorkerReport) -> float | None:
    """How far the load is, 0 to 1; None where the worker does not say."""
    progress = report.progress
    return min(1.0, progress.done / progress.total) if progress is not None and progress.total else None
