"""Which texts share a run: the plan alone, held against what it promises for any lengths."""

from hypothesis import given
from hypothesis import strategies as st

from rbee.wire.worker_spec import Backend
from rbee.worker.engine.token_batches import Budget, Pick, budget_for, next_batch

LENGTHS = st.lists(st.lists(st.integers(1, 600), min_size=1, max_size=40), min_size=1, max_size=20)


@given(LENGTHS, st.integers(1, 4096), st.integers(0, 512))
def test_a_batch_keeps_its_promises(waiting: list[list[int]], tokens: int, run_tokens: int) -> None:
    budget = Budget(tokens, run_tokens)
    picks = next_batch(waiting, budget)
    lengths = [waiting[pick.job][pick.row] for pick in picks]
    assert Pick(0, 0) in picks, "the first job's first row is not passed over"
    assert len(set(picks)) == len(picks)
    assert len(picks) == 1 or len(picks) * max(lengths) <= tokens, "the budget counts padding"
    padding = len(picks) * max(lengths) - sum(lengths)
    assert padding <= run_tokens * (len(picks) - 1), "padding costs no more than the runs that it saves"


@given(LENGTHS, st.integers(1, 4096), st.integers(0, 512))
def test_every_row_runs_once_and_no_job_waits_for_ever(waiting: list[list[int]], tokens: int, run_tokens: int) -> None:
    budget, left, runs = Budget(tokens, run_tokens), [list(enumerate(lengths)) for lengths in waiting], 0
    ran: list[tuple[int, int]] = []
    while any(left):
        line = [job for job, rows in enumerate(left) if rows]
        picks = next_batch([[length for _, length in left[job]] for job in line], budget)
        ran += [(line[pick.job], left[line[pick.job]][pick.row][0]) for pick in picks]
        for position, job in enumerate(line):
            taken = {pick.row for pick in picks if pick.job == position}
            left[job] = [row for at, row in enumerate(left[job]) if at not in taken]
        runs += 1
    assert sorted(ran) == [(job, row) for job, lengths in enumerate(waiting) for row in range(len(lengths))]
    assert runs <= len(ran)


def test_like_lengths_share_a_run_whosever_they_are() -> None:
    waiting = [[10, 100, 11], [12, 300], [10]]
    picks = next_batch(waiting, Budget(1000, 4))
    assert set(picks) == {Pick(0, 0), Pick(0, 2), Pick(1, 0), Pick(2, 0)}
    assert set(next_batch(waiting, Budget(25, 4))) == {Pick(0, 0), Pick(2, 0)}
    assert next_batch([[5000], [1]], Budget(1000, 4)) == [Pick(0, 0)]


def test_a_gpus_runs_are_larger_and_a_definition_may_say_otherwise() -> None:
    cpu, cuda = budget_for(Backend.CPU, 2, None), budget_for(Backend.CUDA, 2, None)
    assert cpu.tokens < cuda.tokens
    assert cpu.run_tokens < cuda.run_tokens
    assert budget_for(Backend.CPU, 2, 77).tokens == 77
