"""What the queen says of the workers, asked as an administrator; the same for a stack of processes and a house."""

from abc import ABC, abstractmethod
from typing import Any

from tests.behaviour.support.http import Http, until


class QueenList(ABC):
    """An rbee whose queen answers an administrator."""

    @property
    @abstractmethod
    def admin(self) -> Http:
        """An administrator at the queen's Unix socket."""

    @abstractmethod
    def define_worker(self, worker: str, model: str, **fields: object) -> object:
        """Write an operator's definition of a worker."""

    @abstractmethod
    def begin_worker(self, worker: str) -> None:
        """Have a defined worker started."""

    def rows(self) -> dict[str, dict[str, Any]]:
        """The queen's worker list by worker id."""
        return {row["worker_id"]: row for row in self.admin.get("/v2/workers/list").json["workers"]}

    def row(self, worker: str) -> dict[str, Any]:
        """The queen's row of one worker."""
        return self.rows()[worker]

    def wait_state(self, worker: str, *states: str, limit_s: float = 60.0) -> dict[str, Any]:
        """Wait until the queen's row of a worker has one of ``states`` and return it."""

        def there() -> dict[str, Any] | None:
            row = self.rows().get(worker)
            return row if row is not None and row["state"] in states else None

        found = until(there, limit_s)
        assert isinstance(found, dict)
        return found

    def run_worker(self, worker: str, model: str, **fields: object) -> dict[str, Any]:
        """Define, start and await a worker; returns the queen's row."""
        self.define_worker(worker, model, **fields)
        self.begin_worker(worker)
        return self.wait_state(worker, "idle", "busy")
