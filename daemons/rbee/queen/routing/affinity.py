"""Which workers have the beginning of a prompt in their cache: a bounded table, keyed by hashes of that beginning.

A conversation sends its whole past with each turn, and many share a system prompt: a worker that has computed the same
beginning answers sooner. The beginning is taken from the body's bytes, without parsing: where ``"messages"`` or
``"prompt"`` stands, and from there 256, 512, 1024 ... bytes. The longest one that is known tells the worker. A wrong
guess costs a cache miss, never a wrong answer.
"""

from collections import OrderedDict
from collections.abc import Iterator

from rbee.queen.admission.work import prompt_at
from rbee.queen.routing.decision import Key

LENGTHS = tuple(256 << step for step in range(9))
"""Bytes of a beginning that are looked at: 256 to 65536."""
MOST_HOLDERS = 4

Holder = tuple[Key, str]
"""A worker and its life (invocation): one that was started again has an empty cache."""


def beginnings(model: str, body: bytes) -> tuple[int, ...]:
    """Hashes of the prompt's beginnings, the longest first; none for a body without a prompt, or a short one."""
    start = prompt_at(body)
    if start is None:
        return ()
    room = len(body) - start
    return tuple(hash((model, body[start : start + length])) for length in reversed(LENGTHS) if length <= room)


class Affinity:
    """Beginnings and the workers that have them, the least recently used let go above ``most``."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._holders: OrderedDict[int, tuple[Holder, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._holders)

    def holders(self, hashes: tuple[int, ...]) -> Iterator[Holder]:
        """Workers that have a beginning, those with the longest first."""
        for hashed in hashes:
            held = self._holders.get(hashed)
            if held is not None:
                self._holders.move_to_end(hashed)
                yield from reversed(held)

    def remember(self, hashes: tuple[int, ...], holder: Holder) -> None:
        """A prompt went to a worker: it has those beginnings from now on."""
        for hashed in hashes:
            held = self._holders.get(hashed, ())
            if not held or held[-1] != holder:
                others = tuple(one for one in held if one[0] != holder[0])
                self._holders[hashed] = (*others[-(MOST_HOLDERS - 1) :], holder)
            self._holders.move_to_end(hashed)
        while len(self._holders) > self.most:
            self._holders.popitem(last=False)
