"""What the configuration says about waiting and routing, for all models and for each that has words of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rbee.queen.config import ModelPolicy, QueenConfig
from rbee.queen.routing.decision import Key


@dataclass(frozen=True, slots=True)
class WaitLimits:
    """Bounds of waiting: seconds for a slot, for a cold model, and while all workers are out of reach; and requests."""

    admission_s: float = 30.0
    cold_s: float = 300.0
    silent_s: float = 10.0
    most_waiting: int = 1000


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of admission and placement in force."""

    limits: WaitLimits = WaitLimits()
    most_waiting: int = 10_000
    affinity: bool = True
    affinity_slack: float = 0.5
    weights: Mapping[str, float] = field(default_factory=dict)
    models: Mapping[str, ModelPolicy] = field(default_factory=dict)

    @classmethod
    def of(cls, config: QueenConfig) -> "Policy":
        """The rules that a configuration states."""
        requests, routing = config.requests, config.routing
        limits = WaitLimits(
            requests.admission_timeout_s,
            requests.cold_wait_s,
            requests.silent_wait_s,
            requests.max_waiting_per_model,
        )
        return cls(
            limits, requests.max_waiting, routing.affinity, routing.affinity_slack, routing.weights, routing.models
        )

    def waits(self, model: str) -> WaitLimits:
        """The bounds of waiting for a model."""
        own = self.models.get(model)
        if own is None:
            return self.limits
        return WaitLimits(
            own.admission_timeout_s or self.limits.admission_s,
            own.cold_wait_s or self.limits.cold_s,
            self.limits.silent_s,
            own.max_waiting or self.limits.most_waiting,
        )

    def has_affinity(self, model: str) -> bool:
        """Whether prompts for the model go where their beginning was computed."""
        own = self.models.get(model)
        return self.affinity if own is None or own.affinity is None else own.affinity

    def weight(self, key: Key) -> float:
        """The weight of a worker: its own, else that of its hive, else 1."""
        return self.weights.get(str(key)) or self.weights.get(key.hive_id) or 1.0
