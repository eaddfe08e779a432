"""Tickets that let another hive copy one model for a while: no token of this machine is given away for it."""

import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from rbee.wire.auth import CHALLENGE, Secret
from rbee.wire.errors import InvalidApiKey, MissingApiKey

LASTS_S = 6 * 3600.0
_MOST = 256


@dataclass(frozen=True, slots=True)
class _Given:
    secret: Secret
    expires_unix: float


class Tickets:
    """The tickets that are in force, the oldest forgotten first; a new life of the hive knows none of them.

    ``clock`` gives seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._given: OrderedDict[str, list[_Given]] = OrderedDict()

    def give(self, model_id: str) -> tuple[Secret, float]:
        """A new ticket for a model, and when it expires (seconds since the epoch)."""
        given = _Given(Secret(secrets.token_urlsafe(32)), self._clock() + LASTS_S)
        self._given[model_id] = [*self._in_force(model_id)[-7:], given]
        self._given.move_to_end(model_id)
        while len(self._given) > _MOST:
            self._given.popitem(last=False)
        return given.secret, given.expires_unix

    def check(self, model_id: str, header: str | None) -> None:
        """Raise MissingApiKey or InvalidApiKey unless the Authorization header holds a ticket for the model."""
        if header is None:
            raise MissingApiKey(
                "the files of a model take a ticket of this hive: the queen gets one for the other hive"
            )
        scheme, _, presented = header.partition(" ")
        matches = [
            hmac.compare_digest(given.secret.reveal().encode(), presented.encode("utf-8", "surrogatepass"))
            for given in self._in_force(model_id)
        ]
        if scheme != CHALLENGE or not any(matches):
            raise InvalidApiKey(
                "the ticket is not in force for this model: order the copy again", details={"reason": "unknown_ticket"}
            )

    def _in_force(self, model_id: str) -> list[_Given]:
        now = self._clock()
        return [given for given in self._given.get(model_id, []) if given.expires_unix > now]
