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
