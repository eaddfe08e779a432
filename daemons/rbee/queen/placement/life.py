"""What one declared model's workers go through, as far as the next step depends on what was before."""

from collections.abc import Sequence
from dataclasses import dataclass

from rbee.queen.placement.scaling import (
    CROWDED_SWEEPS,
    Drain,
    Further,
    Limits,
    Replica,
    Why,
    further,
    makes_way,
    pressed,
    replacement,
    surplus,
)
from rbee.queen.routing.decision import Key
from rbee.wire.messages import WorkerState

ENDED_AGAIN_S = 30.0
"""A replica that ended, or could not be started, is started again once in so long."""
CROWDED_AGAIN_S = 10.0
"""A further replica shows what it is worth for so long before the next one."""
REPLACE_AGAIN_S = 300.0
"""After a replacement that failed, the next one is tried so much later, or when the declaration changes again."""


@dataclass(frozen=True, slots=True)
class Replacing:
    """The replica ``number`` is on its way, and ``former`` ends when it is ready."""

    number: int
    former: Key


@dataclass(frozen=True, slots=True)
class Failed:
    """A replacement came to nothing; ``why`` is what the new worker's row says."""

    why: str


Move = Further | Drain | Failed


@dataclass(slots=True)
class Life:
    """The course of one model; times are monotonic seconds, given by the caller.

    ``problem`` is a sentence on why the workers are not what the declaration says, empty where they are or will be;
    ``stuck`` where that is a change of it whose new worker did not come up. ``load_s``: how long the latest start of
    one of its workers took, None where none was seen.
    """

    problem: str = ""
    stuck: bool = False
    replacing: Replacing | None = None
    load_s: float | None = None
    _crowded: int = 0
    _not_before: float = 0.0
    _replace_not_before: float = 0.0
    _pressed_at: float | None = None
    _over_since: float | None = None

    def look(self, limits: Limits, replicas: Sequence[Replica], now: float, waiting: int) -> None:
        """Take note of this second; ``waiting`` requests have no worker now."""
        self._crowded = self._crowded + 1 if waiting else 0
        ready = sum(one.state.ready for one in replicas)
        timed = [one for one in replicas if one.load_s is not None and (one.number is not None or one.former)]
        if timed:
            self.load_s = max(timed, key=lambda one: one.ready_unix).load_s
        if waiting or self._pressed_at is None or pressed(replicas):
            self._pressed_at = now
        if ready <= limits.most:
            self._over_since = None
        elif self._over_since is None:
            self._over_since = now

    def step(self, limits: Limits, replicas: Sequence[Replica], now: float) -> Move | None:
        """What is to be done now, after :meth:`look`, while no start of the model is under way."""
        move: Move | None = None
        if now >= self._not_before:
            move = self._start(limits, replicas, now)  # what is missing comes before what is not as it should be
        move = move or self._replace(limits, replicas, now)
        if move is not None or self.replacing is not None or any(one.former and one.up for one in replicas):
            return move
        return self._end(limits, replicas, now)

    def _replace(self, limits: Limits, replicas: Sequence[Replica], now: float) -> Move | None:
        if self.replacing is not None:
            return self._go_on(self.replacing, replicas)
        if any(one.former and one.state is WorkerState.DRAINING for one in replicas):
            return None  # its memory may be what the next one needs
        if now < self._replace_not_before:
            return None
        move = replacement(limits, replicas)
        if isinstance(move, Further) and move.replaces is not None:
            self.replacing = Replacing(move.number, move.replaces)
        return move

    def _go_on(self, replacing: Replacing, replicas: Sequence[Replica]) -> Move | None:
        former = next((one for one in replicas if one.key == replacing.former and one.up), None)
        if former is None:
            self.replacing = None
            return None
        if former.state is WorkerState.DRAINING:
            return None
        new = [one for one in replicas if one.number == replacing.number]
        if any(one.state.ready for one in new):
            self._well()
            return Drain(replacing.former, Why.REPLACED)
        if any(one.state in (WorkerState.LOADING, WorkerState.UNHEALTHY) for one in new):
            return None
        return Failed(next((one.reason for one in new if one.reason), "it is gone"))

    def _start(self, limits: Limits, replicas: Sequence[Replica], now: float) -> Further | None:
        crowded = self._crowded >= CROWDED_SWEEPS
        wanted = further(limits.least, limits.most, replicas, crowded=crowded)
        if wanted is not None and wanted.ended:
            self._not_before = now + ENDED_AGAIN_S
        elif wanted is not None and crowded:
            self._not_before = now + CROWDED_AGAIN_S
        return wanted

    def _end(self, limits: Limits, replicas: Sequence[Replica], now: float) -> Drain | None:
        over_s = 0.0 if self._over_since is None else now - self._over_since
        quiet_s = 0.0 if self._pressed_at is None else now - self._pressed_at
        move = surplus(limits, replicas, over_s=over_s, quiet_s=quiet_s)
        if move is not None:
            self._over_since, self._pressed_at = None, now  # the rest show for as long whether they are enough
        return move

    def make_way(self, replicas: Sequence[Replica], *, even_the_last: bool) -> Drain | None:
        """The end of the former one, before its replacement, where that fits only in its memory; None: it goes on."""
        if self.replacing is None:
            return None
        move = makes_way(self.replacing.former, replicas, even_the_last=even_the_last)
        if move is not None:
            self._well()
            self.replacing = None
        return move

    def failed(self, now: float, why: str) -> bool:
        """A start came to nothing, ``why`` being a sentence; whether that ended a replacement."""
        self._not_before = now + ENDED_AGAIN_S
        self.problem = why
        replaced, self.replacing = self.replacing is not None, None
        if replaced:
            self.stuck = True
            self._replace_not_before = now + REPLACE_AGAIN_S
            self.problem += ": those of the former one go on"
        return replaced

    def well(self) -> None:
        """A start was taken: what hindered one before is over."""
        if not self.stuck:
            self.problem = ""

    def _well(self) -> None:
        self.problem, self.stuck = "", False

    def renew(self, most_alike: int = 0) -> None:
        """The declaration changed: what failed before may work now.

        ``most_alike``: so many workers there may be that are those of the declaration before as well, which changed in
        how many there are, and when, alone; a replacement under way by one of them goes on.
        """
        self._well()
        if self.replacing is not None and self.replacing.number > most_alike:
            self.replacing = None
        self._not_before = self._replace_not_before = 0.0
