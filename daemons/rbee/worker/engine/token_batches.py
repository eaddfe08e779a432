"""Decides which texts share the next run: some of like length, within a budget, and the one whose turn it is."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from rbee.wire.worker_spec import Backend

CPU_TOKENS, CUDA_TOKENS = 1024, 16384
CPU_RUN_TOKENS, CUDA_RUN_TOKENS = 8, 2048


@dataclass(frozen=True, slots=True)
class Budget:
    """How much one run may hold, in tokens with padding, and what a run costs beside its tokens.

    ``run_tokens`` is that fixed cost in the time of so many tokens: padding is worth while it saves a run.
    """

    tokens: int
    run_tokens: int


class Pick(msgspec.Struct, frozen=True):
    """One row of the next run: whose it is, and its place among that one's rows."""

    job: int
    row: int


def budget_for(backend: Backend, threads: int, tokens: int | None) -> Budget:
    """The budget of a device; ``tokens`` overrides its own.

    On a processor the time goes with the tokens from the first text on, and rows that leave its caches cost more; a GPU
    is filled by many rows only, and a run's launches cost it as much as a good many tokens.
    """
    if backend is Backend.CUDA:
        return Budget(tokens or CUDA_TOKENS, CUDA_RUN_TOKENS)
    return Budget(tokens or CPU_TOKENS, CPU_RUN_TOKENS * threads)


def next_batch(waiting: Sequence[Sequence[int]], budget: Budget) -> list[Pick]:
    """The rows of the next run, by the lengths of those that wait, the jobs in the order of their turns.

    The first job's first row is always among them, alone where it is over the budget by itself. From there the batch
    grows to its neighbours in length, the nearer one first, for as long as the padding that one brings costs no more
    than the run that it saves.
    """
    rows = sorted((length, job, row) for job, lengths in enumerate(waiting) for row, length in enumerate(lengths))
    low = high = rows.index((waiting[0][0], 0, 0))
    while True:
        longest, count = rows[high][0], high - low + 1
        down = longest - rows[low - 1][0] if low > 0 else None
        up = rows[high + 1][0] - longest if high + 1 < len(rows) else None
        if down is not None and (down > budget.run_tokens or (count + 1) * longest > budget.tokens):
            down = None
        if up is not None and (up * count > budget.run_tokens or (count + 1) * (longest + up) > budget.tokens):
            up = None
        if up is not None and (down is None or up <= down):
            high += 1
        elif down is not None:
            low -= 1
        else:
            return [Pick(job, row) for _, job, row in rows[low : high + 1]]
