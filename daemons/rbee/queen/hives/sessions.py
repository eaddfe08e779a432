"""Connections that hives hold open: their end is the first sign that one side is gone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rbee.queen.registry.registry import Registry
from rbee.queen.registry.rows import Liveness
from rbee.wire.errors import Conflict


@dataclass(slots=True, eq=False)
class Session:
    """One open connection of a hive; ``boot_id`` is the life that it belongs to, None until that is known."""

    boot_id: str | None


class Sessions:
    """The open sessions of each hive, and the rule that one hive id is one living hive."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._open: dict[str, list[Session]] = {}

    def is_open(self, hive_id: str) -> bool:
        """Whether the hive holds a session."""
        return bool(self._open.get(hive_id))

    def count(self) -> int:
        """Open sessions of all hives."""
        return sum(len(sessions) for sessions in self._open.values())

    def check(self, hive_id: str, boot_id: str, now: float) -> None:
        """Let a message of a life of a hive in, and bind sessions without a life to it.

        Raises Conflict when another life of that hive id holds a session and was heard within the limit of silence:
        two machines claim one id.
        """
        sessions = self._open.get(hive_id, [])
        if not sessions:
            return
        if not any(session.boot_id in (None, boot_id) for session in sessions) and self._heard_lately(hive_id, now):
            raise Conflict(
                f"hive id '{hive_id}' is in use by another hive that is alive: give this one its own hive_id in "
                "hive.yaml, or stop the other",
                details={"hive_id": hive_id},
            )
        for session in sessions:
            if session.boot_id is None:
                session.boot_id = boot_id

    def _heard_lately(self, hive_id: str, now: float) -> bool:
        hive = self._registry.hive(hive_id)
        if hive is None:
            return False
        return self._registry.limits.liveness(now - hive.heard, hive.interval_s) is Liveness.LIVE

    @contextmanager
    def hold(self, hive_id: str, boot_id: str | None, now: float) -> Iterator[Session]:
        """A session for the length of the block; raises Conflict as :meth:`check` does."""
        if boot_id is not None:
            self.check(hive_id, boot_id, now)
        session = Session(boot_id)
        self._open.setdefault(hive_id, []).append(session)
        try:
            yield session
        finally:
            self._open[hive_id].remove(session)
            if not self._open[hive_id]:
                del self._open[hive_id]
