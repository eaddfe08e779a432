"""What workers really took when they became ready, kept over restarts: the next start of one like them rests on it."""

from collections import OrderedDict
from collections.abc import Collection

from rbee.queen.database import MOST_MEASURED, MemoryRow, Setup
from rbee.queen.placement.decision import Need
from rbee.queen.routing.decision import Key
from rbee.queen.store import Store
from rbee.wire.errors import StorageUnavailable
from rbee.wire.messages import WorkerReport
from rbee.wire.model_reference import is_fetched


class Measured:
    """The latest figure of each setup, written to the store some time soon; ``loaded`` once it has been read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: OrderedDict[Setup, MemoryRow] = OrderedDict()
        self._lives: dict[Key, tuple[str, int]] = {}
        self.loaded = False

    async def load(self) -> None:
        """Read what was kept; while the database cannot be used there is nothing, and ``loaded`` stays false."""
        try:
            rows = await self._store.memory()
        except StorageUnavailable:
            return
        self.loaded = True
        measured_since, self._rows = self._rows, OrderedDict((row.setup, row) for row in rows)
        for row in measured_since.values():
            self._keep(row)

    def note(self, report: WorkerReport, size_bytes: int | None, now: float) -> None:
        """Take the figure of a ready worker's life at ``now`` (Unix time), once; ``size_bytes`` are its model's files.

        They are None where they are not known.
        """
        peak, key = report.memory_peak_bytes, Key(report.hive_id, report.worker_id)
        life = (report.invocation_id, peak)
        if not peak or report.model_ref is None or report.backend is None or self._lives.get(key) == life:
            return
        self._lives[key] = life
        setup = Setup(
            report.model_ref, _node(report.model_ref, report.hive_id), report.backend.value, report.slots_total,
            report.memory_settings,
        )  # fmt: skip
        known = self._rows.get(setup)
        if known is not None and known.peak_bytes == peak and size_bytes is None:
            return  # the same life, told to another life of the queen
        row = MemoryRow(setup, peak, size_bytes, now)
        self._keep(row)
        self._store.note_memory(row)

    def forget(self, key: Key) -> None:
        """The worker is gone; what it took is remembered."""
        self._lives.pop(key, None)

    def peak_of(self, need: Need, nodes: Collection[str]) -> int | None:
        """The most bytes that a worker of the need had at its last start on one of the nodes; None where not known.

        The figure of a fetched model holds for every node, as its files are the same there. One of a model whose files
        have another size by now does not hold.
        """
        found = []
        for node in {_node(need.model_ref, node) for node in nodes}:
            row = self._rows.get(Setup(need.model_ref, node, need.backend.value, need.slots, need.settings))
            if row is not None and (None in (row.size_bytes, need.size_bytes) or row.size_bytes == need.size_bytes):
                found.append(row.peak_bytes)
        return max(found, default=None)

    def _keep(self, row: MemoryRow) -> None:
        self._rows[row.setup] = row
        self._rows.move_to_end(row.setup)
        if len(self._rows) > MOST_MEASURED:
            self._rows.popitem(last=False)


def _node(model_ref: str, hive_id: str) -> str:
    """The node that a model is told apart by: a folder is another model on each machine."""
    return "" if is_fetched(model_ref) else hive_id
