"""Structured log records: a sentence, and the facts beside it as fields.

The handlers of :mod:`rbee.host.journal` write a field ``worker`` as the journal field ``RBEE_WORKER`` and as
``worker=...`` where a person reads text.
"""

import logging

FIELDS = "rbee_fields"
ALERT = 55
"""Level of a record that a person should act upon: journal priority 1 (alert)."""

logging.addLevelName(ALERT, "ALERT")


def log(logger: logging.Logger, level: int, message: str, **fields: object) -> None:
    """Write one record. ``fields`` become journal fields; None values are left out. Never pass a secret."""
    if logger.isEnabledFor(level):
        known = {key: value for key, value in fields.items() if value is not None}
        logger.log(level, message, extra={FIELDS: known}, stacklevel=2)


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """The fields of a record made by :func:`log`; empty for records of libraries."""
    fields = getattr(record, FIELDS, None)
    return fields if isinstance(fields, dict) else {}


class Pace:
    """Lets ``most`` records of a kind through a second, and counts those that it holds back."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._second = 0
        self._let = 0
        self._left_out = 0

    def passes(self, logger: logging.Logger, level: int, now: float, *, counted: str) -> bool:
        """Whether one more record, which callers bring about, is to be written at ``now`` (seconds).

        The journal takes 10,000 in 30 s from a unit and drops what is more, errors too. Those held back are counted in
        a record of their own, with the words ``counted``, before the next one that is not.
        """
        second = int(now)
        if second != self._second:
            self._second, self._let = second, 0
        if self._let >= self._most:  # asked first: on a busy daemon nearly all are held back
            self._left_out += 1
            return False
        if not logger.isEnabledFor(level):
            return False
        self._let += 1
        unnamed, self._left_out = self._left_out, 0
        if unnamed:
            log(logger, level, counted, requests=unnamed)
        return True
