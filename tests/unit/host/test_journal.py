"""Log records as text and as journal entries: fields, one record a line, stacks with their lengths."""

import io
import logging
import struct

import pytest

from rbee.host.journal import JournalHandler, TextHandler
from rbee.wire import context
from rbee.wire.log import ALERT, log


@pytest.fixture
def logger() -> logging.Logger:
    found = logging.Logger("rbee.sample")
    found.propagate = False
    return found


def test_text_has_time_level_component_sentence_and_fields(logger: logging.Logger) -> None:
    handler, stream = TextHandler("queen"), io.StringIO()
    handler.setStream(stream)
    logger.addHandler(handler)
    token = context.correlation_id.set("c-1")
    log(logger, logging.WARNING, "worker failed", worker="a", why="it broke", absent=None)
    context.correlation_id.reset(token)
    line = stream.getvalue()
    assert line.endswith('WARNING queen: worker failed worker=a why="it broke" correlation_id=c-1\n')


@pytest.mark.parametrize("hostile", ["a\nERROR queen: forged", "a\x1b[31mred", "a\rb", "a\0b"])
def test_a_value_cannot_forge_a_second_record(logger: logging.Logger, hostile: str) -> None:
    handler, stream = TextHandler("queen"), io.StringIO()
    handler.setStream(stream)
    logger.addHandler(handler)
    log(logger, logging.INFO, "seen", value=hostile)
    assert stream.getvalue().count("\n") == 1
    assert not {"\x1b", "\r", "\0"} & set(stream.getvalue())


def test_a_sentence_cannot_forge_a_second_record(logger: logging.Logger) -> None:
    handler, stream = TextHandler("queen"), io.StringIO()
    handler.setStream(stream)
    logger.addHandler(handler)
    logger.info("the runtime says: %s", "two\n2026-01-01T00:00:00 ERROR queen: forged")
    assert [line[0] == " " for line in stream.getvalue().splitlines()] == [False, True]


def entries(handler: JournalHandler, record: logging.LogRecord) -> dict[str, str]:
    return handler._journal_fields(record)


def test_journal_entries_carry_fields_and_priorities(logger: logging.Logger) -> None:
    seen: list[logging.LogRecord] = []
    catcher = logging.Handler()
    catcher.emit = seen.append  # type: ignore[method-assign]
    logger.addHandler(catcher)
    log(logger, ALERT, "callbacks fail", alert=1, worker_id="w-1")
    try:
        raise ValueError("boom")
    except ValueError:
        logger.exception("broke")
    handler = JournalHandler("hive")
    first, second = (entries(handler, record) for record in seen)
    handler.close()
    assert (first["PRIORITY"], first["RBEE_WORKER_ID"], first["RBEE_ALERT"]) == ("1", "w-1", "1")
    assert first["RBEE_COMPONENT"] == "hive"
    assert second["PRIORITY"] == "3"
    assert "ValueError: boom" in second["RBEE_STACK"]


def test_values_of_several_lines_go_with_their_length() -> None:
    from rbee.host.journal import _entry

    assert _entry("A", "b") == b"A=b\n"
    assert _entry("A", "b\nc") == b"A\n" + struct.pack("<Q", 3) + b"b\nc\n"
