"""How fast a model's workers serve, and how many tries anew the queen may spend: numbers that decisions rest on."""

import math
from collections import OrderedDict
from dataclasses import dataclass

MOST_MODELS = 4096
_LEAST_SEEN = 5
_SHARE = 0.1
_MOST_LEAP = 8.0
_LEAST_S = 0.001
MOST_RETRY_AFTER_S = 60
UNKNOWN_RETRY_AFTER_S = 5


@dataclass(slots=True)
class _Service:
    seen: int = 0
    seconds: float = 0.0


class ServiceTimes:
    """Seconds that a request of each model holds a slot: an average in which the latest counts for a tenth.

    One request counts for eight times the average at most: a worker that hung once must not have the next hundred
    refused, and where all have become slow the average is there after some ten of them.
    """

    def __init__(self) -> None:
        self._models: OrderedDict[str, _Service] = OrderedDict()

    def note(self, model: str, seconds: float) -> None:
        """A request of the model ended after ``seconds`` at its worker."""
        service = self._models.get(model)
        if service is None:
            service = self._models[model] = _Service()
            if len(self._models) > MOST_MODELS:
                self._models.popitem(last=False)
        if service.seen >= _LEAST_SEEN:
            seconds = min(seconds, _MOST_LEAP * max(service.seconds, _LEAST_S))
        service.seen += 1
        share = max(_SHARE, 1.0 / service.seen)
        service.seconds += share * (seconds - service.seconds)

    def wait_s(self, model: str, ahead: int, slots: int) -> float | None:
        """Seconds until ``ahead`` requests and one more have got one of ``slots``; None where too few were seen."""
        service = self._models.get(model)
        if service is None or service.seen < _LEAST_SEEN or slots < 1:
            return None
        return (ahead + 1) * service.seconds / slots


def retry_after_s(wait_s: float | None) -> int:
    """What Retry-After says: the expected wait in whole seconds, 1 to 60; 5 where nothing is known yet."""
    if wait_s is None:
        return UNKNOWN_RETRY_AFTER_S
    return min(MOST_RETRY_AFTER_S, max(1, math.ceil(wait_s)))


class RetryBudget:
    """Tries anew as a share of requests, so that failing workers are not asked twice as much for it.

    Each request pays ``share`` of a try in; at most ``reserve`` are saved up, which is also what there is at first.
    """

    def __init__(self, share: float, reserve: float) -> None:
        self._share = share
        self._reserve = reserve
        self._saved = reserve

    def configure(self, share: float, reserve: float) -> None:
        """Put other limits in force; what is saved above the new ones is lost."""
        self._share, self._reserve = share, reserve
        self._saved = min(self._saved, reserve)

    def deposit(self) -> None:
        """A request came."""
        self._saved = min(self._reserve, self._saved + self._share)

    def spend(self) -> bool:
        """Take one try; False when none is left."""
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True
