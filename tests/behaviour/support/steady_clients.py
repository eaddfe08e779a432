"""Clients who ask one request after the other, so that one which fails while something changes is seen."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.behaviour.support.http import Answer, until

PAUSE_S = 0.05


@dataclass
class SteadyClients:
    """Two who ``ask`` until they are stopped; ``answers`` are those that they had so far."""

    ask: Callable[[], Answer]
    answers: list[Answer] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Begin, and wait until some were answered."""
        self._threads = [threading.Thread(target=self._go_on, daemon=True) for _ in range(2)]
        for thread in self._threads:
            thread.start()
        until(lambda: len(self.answers) > 5)

    def _go_on(self) -> None:
        while not self._over.wait(PAUSE_S):
            self.answers.append(self.ask())

    def stop(self) -> list[Answer]:
        """Ask no more, and return every answer."""
        self._over.set()
        for thread in self._threads:
            thread.join(60.0)
        return self.answers
