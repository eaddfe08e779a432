"""What admission asks of the models for which a worker can be placed, and the answers where there are none."""

from typing import Protocol

from rbee.queen.registry.rows import Worker


class Declared(Protocol):
    """Models that a worker can be placed for when they are asked for."""

    def __contains__(self, model: str) -> bool: ...

    def begin(self, model: str) -> None:
        """Begin to place a worker unless that is under way; ``Admission.place_settled`` is called in the end."""

    def takes_over(self, model: str, worker: Worker) -> bool:
        """Whether the worker's node is silent, and one of the model may start on another instead."""

    def may_take_over(self, model: str, worker: Worker, now: float) -> bool:
        """Whether that is to be expected: the node missed a word at ``now`` (monotonic seconds)."""


class NoneDeclared:
    """No model has a worker placed for it."""

    def __contains__(self, model: str) -> bool:
        return False

    def begin(self, model: str) -> None:
        """Nothing begins."""

    def takes_over(self, model: str, worker: Worker) -> bool:
        """No."""
        return False

    def may_take_over(self, model: str, worker: Worker, now: float) -> bool:
        """No."""
        return False
