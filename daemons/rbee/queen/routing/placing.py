"""The choice of a worker for one request: the least loaded, or the one that has the beginning of its prompt."""

import itertools
import time
from collections.abc import Iterable

from rbee.queen.admission.policy import Policy
from rbee.queen.admission.waiting import Want
from rbee.queen.registry.registry import Registry
from rbee.queen.registry.rows import Worker
from rbee.queen.routing.affinity import Affinity, beginnings
from rbee.queen.routing.decision import Reason, prefers
from rbee.queen.routing.metrics import PlacingMetrics, Remembered
from rbee.queen.routing.placed import MOST_SEEN, Placement, Seen
from rbee.queen.routing.pool import Pool

_MOST_HOLDERS_ASKED = 8
_TIMED_EVERY = 8
"""Of so many choices one is timed: asking for the thread's clock costs a third of a choice."""


class Placer:
    """Chooses by the registry, the policy and what is remembered of prompts; nothing here waits."""

    def __init__(self, registry: Registry, policy: Policy, affinity: Affinity, metrics: PlacingMetrics) -> None:
        self.policy = policy
        self.affinity = affinity
        self._registry = registry
        self._metrics = metrics
        self._turns = itertools.count()

    def beginnings(self, model: str, body: bytes) -> tuple[int, ...]:
        """What is remembered of a prompt; nothing where there is no choice among workers, or the policy is against."""
        if len(self._registry.pool(model)) < 2 or not self.policy.has_affinity(model):
            return ()
        return beginnings(model, body)

    def place(self, want: Want, began: float) -> tuple[Worker, Placement] | None:
        """A free worker for the request, which came at ``began`` (monotonic seconds), and why it is that one."""
        timed = not next(self._turns) % _TIMED_EVERY
        started = time.thread_time() if timed else 0.0
        pool = self._registry.pool(want.model)
        least = None if want.shun is None else pool.least({*want.exclude, want.shun})
        least = least or pool.least(want.exclude)
        if least is None:
            return None
        affine = self._affine(want, pool, least) if want.prefixes else None
        chosen = least if affine is None else affine
        reason = Reason.PREFIX if affine is not None else Reason.TRIAL if least.on_trial else Reason.LEAST_WORK
        workers = len(pool)
        seen = (Seen.of(chosen),) if workers == 1 else looked_at(chosen, pool.rows())
        if want.prefixes:
            self.affinity.remember(want.prefixes, (chosen.key, chosen.report.invocation_id))
        waited_ms = (time.monotonic() - began) * 1000
        placement = Placement(chosen.key, reason, seen, workers, want.work, waited_ms, want.retries)
        if timed:
            self._metrics.route.observe(time.thread_time() - started)
        self._metrics.placed(reason)
        return chosen, placement

    def _affine(self, want: Want, pool: Pool[Worker], least: Worker) -> Worker | None:
        known = False
        for key, life in itertools.islice(self.affinity.holders(want.prefixes), _MOST_HOLDERS_ASKED):
            worker = pool.row(key)
            if worker is None or worker.report.invocation_id != life or key in want.exclude or key == want.shun:
                continue
            known = True
            if prefers(worker, least, self.policy.affinity_slack):
                self._metrics.looked_up(Remembered.HIT)
                return worker
        self._metrics.looked_up(Remembered.OVERLOADED if known else Remembered.MISS)
        return None


def looked_at(chosen: Worker, rows: Iterable[Worker]) -> tuple[Seen, ...]:
    """The chosen one and some of the others, as they are now; of ``rows`` no more are taken than these."""
    seen = [Seen.of(chosen)]
    for worker in rows:  # a generator expression is a list of all of them where this is compiled
        if worker is chosen:
            continue
        seen.append(Seen.of(worker))
        if len(seen) == MOST_SEEN:
            break
    return tuple(seen)
