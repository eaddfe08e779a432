"""Runs an encoder on rows of tokens: several requests' rows share its runs, each padded to the longest of its run."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rbee.wire.errors import ConfigError, InferenceError
from rbee.worker.engine.runner import Runner
from rbee.worker.engine.sessions import Array, RunOptions, Session, run_session
from rbee.worker.engine.shared_runs import RunCounts, SharedRuns
from rbee.worker.engine.token_batches import Budget, Pick, next_batch
from rbee.worker.engine.tokenise import TokenRow

Floats = NDArray[np.float32]
Mask = NDArray[np.int64]
SMALL = 1024
"""So many letters or tokens are read in less time than a thread takes to be woken and to answer."""
INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})


class Encoder:
    """A session whose runs are shared; ``finish`` makes one row of floats a text from the output and its mask."""

    def __init__(
        self,
        session: Session,
        output: str,
        finish: Callable[[Floats, Mask], Floats],
        runner: Runner,
        budget: Budget,
    ) -> None:
        self._session = session
        self._runner = runner
        self._output = output
        self._finish = finish
        self._inputs = [tensor.name for tensor in session.get_inputs()]
        unknown = set(self._inputs) - INPUTS
        if unknown:
            raise ConfigError(f"the encoder wants inputs that texts cannot give: {', '.join(sorted(unknown))}")

        def plan(waiting: Sequence[Sequence[TokenRow]]) -> list[Pick]:
            return next_batch([[len(row.ids) for row in rows] for rows in waiting], budget)

        self._runs: SharedRuns[TokenRow, Floats] = SharedRuns(
            runner, lambda rows, options: list(self.run(rows, options)), plan
        )

    @property
    def counts(self) -> RunCounts:
        """What was run so far."""
        return self._runs.counts

    async def rows(self, size: int, read: Callable[[], list[TokenRow]]) -> list[TokenRow]:
        """What ``read`` gives, called in a thread unless ``size``, its texts' letters or tokens, is small."""
        if size <= SMALL:
            return read()
        return await self._runner.step(lambda _: read())

    async def floats(self, rows: Sequence[TokenRow]) -> Floats:
        """One row of floats for each of ``rows``, in their order; raises InferenceError, also for what is no number."""
        # like lengths side by side: the runs of a long list take them in that order
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
        results = await self._runs.results([rows[index] for index in order])
        found = np.empty((len(rows), results[0].shape[-1]), np.float32)
        for index, result in zip(order, results, strict=True):
            found[index] = result
        if not np.isfinite(found).all():
            raise InferenceError("the model gave values that are no numbers (NaN or infinite) for this input")
        return found

    def run(self, rows: Sequence[TokenRow], options: RunOptions | None = None) -> Floats:
        """One run on all of ``rows``, in the calling thread."""
        width = max(len(row.ids) for row in rows)
        ids, mask, types = (np.zeros((len(rows), width), np.int64) for _ in INPUTS)
        for at, row in enumerate(rows):
            length = len(row.ids)
            ids[at, :length] = row.ids
            mask[at, :length] = 1
            if row.types is not None:
                types[at, :length] = row.types
        known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        feeds: dict[str, Array] = {name: known[name] for name in self._inputs}
        (found,) = run_session(self._session, [self._output], feeds, options)
        return self._finish(found.astype(np.float32, copy=False), mask)
