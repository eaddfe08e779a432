"""One text in the batch, and the bounded way of its tokens from the loop's thread to the task that reads them."""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from rbee.wire.errors import RbeeError
from rbee.worker.engine.batch.plan import RowView
from rbee.worker.engine.batch.prefix import Chain
from rbee.worker.engine.generation import GenerateRequest
from rbee.worker.engine.sampling import Choice

MOST_UNREAD = 256
"""Tokens that may wait for their reader before its row is held back."""
_KEYS = itertools.count()


class ChoiceStream:
    """The choices of one row. ``put`` and ``fail`` are called in the event loop's thread, as is what reads them.

    ``wake`` is called when a row that was held back has been read empty enough to go on.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.taken = 0
        self.held = False
        self._wake = wake
        self._choices: deque[Choice] = deque()
        self._failure: RbeeError | None = None
        self._arrived = asyncio.Event()

    def put(self, choice: Choice) -> None:
        """One more token was chosen."""
        self._choices.append(choice)
        self._arrived.set()

    def fail(self, error: RbeeError) -> None:
        """No token comes after those that are there."""
        self._failure = error
        self._arrived.set()

    async def next(self) -> Choice:
        """The next token; raises what ended the row."""
        while not self._choices:
            if self._failure is not None:
                raise self._failure
            self._arrived.clear()
            # no time limit of its own: the request's deadline and its client's absence cancel the task
            await self._arrived.wait()
        self.taken += 1
        if self.held:
            self._wake()
        return self._choices.popleft()


@dataclass(eq=False, slots=True)
class Row:
    """A text as the loop's thread sees it.

    ``tokens`` are the prompt's and those chosen, of which the first ``cached`` are in the cache. ``saved`` blocks of
    its chain are in the prefix cache or were looked for there.
    """

    request: GenerateRequest
    stream: ChoiceStream
    tokens: list[int]
    eos_ids: frozenset[int]
    chain: Chain = ()
    key: int = field(default_factory=lambda: next(_KEYS))
    cached: int = 0
    chosen: int = 0
    saved: int = 0
    looked_up: bool = False

    @property
    def pending(self) -> int:
        """Tokens to compute before the next choice."""
        return len(self.tokens) - self.cached

    def held(self) -> bool:
        """Whether its reader is so far behind that it gets no more for now."""
        # the flag goes up before the count is read: a reader that takes its last token in between sees it
        self.stream.held = True
        behind = self.chosen - self.stream.taken >= MOST_UNREAD
        self.stream.held = behind
        return behind

    def view(self, *, deferred: bool) -> RowView:
        """What planning needs to know."""
        return RowView(self.key, self.cached, self.pending, self.held() or deferred)

    def accept(self, choice: Choice) -> bool:
        """Take a choice; True where it is the last one."""
        self.tokens.append(choice.token_id)
        self.chosen += 1
        return choice.token_id in self.eos_ids or self.chosen >= self.request.max_tokens
