"""The steps of an installation, each shown as it runs, with its time and whether it changed anything."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec

from rbee.keeper.render import say
from rbee.keeper.text import duration


class Step(msgspec.Struct, frozen=True):
    """A step that ended: seconds it took, what it found or did, and whether anything is otherwise than before."""

    name: str
    seconds: float
    told: str
    changed: bool


@dataclass(slots=True)
class Note:
    """What a running step says of itself."""

    told: str = ""
    changed: bool = False


@dataclass(slots=True)
class Steps:
    """The steps so far; ``tell`` gets a line when one begins and when it ends."""

    tell: Callable[[str], None] = say
    done: list[Step] = field(default_factory=list)
    clock: Callable[[], float] = time.monotonic

    @contextmanager
    def step(self, name: str) -> Iterator[Note]:
        """Run the block as a step: its name is shown when it begins, its time when it ends."""
        self.tell(f"  {name} ...")
        began, note = self.clock(), Note()
        yield note
        ended = Step(name, round(self.clock() - began, 3), note.told, note.changed)
        self.done.append(ended)
        change = "changed" if ended.changed else "as it was"
        self.tell(f"  {name}: {change}, {duration(ended.seconds)}" + (f": {ended.told}" if ended.told else ""))

    @property
    def changed(self) -> bool:
        """Whether any step changed anything."""
        return any(step.changed for step in self.done)
