"""How a declaration writes its warm times, and when a day's window opens and closes, where clocks change as well."""

import re
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.wire.declarations import DeclaredModel
from rbee.wire.warm_times import DAYS, PATTERN, parse_window

REFERENCE = "hf:org/repo"
MONDAY = date(2026, 11, 23)


@pytest.mark.parametrize(
    ("text", "days", "opens_h", "closes_h"),
    [
        ("08:00-18:00", {0, 1, 2, 3, 4, 5, 6}, 8, 18),
        ("00:00-24:00", {0, 1, 2, 3, 4, 5, 6}, 0, 24),
        ("Mon-Fri 08:00-18:00", {0, 1, 2, 3, 4}, 8, 18),
        ("Sat,Sun 22:00-06:00", {5, 6}, 22, 30),
        ("Sat-Mon 18:00-00:00", {5, 6, 0}, 18, 24),
        ("Mon,Wed-Thu,Mon 00:00-00:30:00", {0, 2, 3}, 0, 0.5),
        ("Wed-Wed 23:00-22:30", {2}, 23, 46.5),
    ],
)
def test_what_a_window_says(text: str, days: set[int], opens_h: float, closes_h: float) -> None:
    window = parse_window(text)
    assert (window.days, window.opens, window.closes) == (days, opens_h * 3600, closes_h * 3600)
    assert window.zone is None
    assert str(parse_window(f"{text} Europe/Berlin").zone) == "Europe/Berlin"


@pytest.mark.parametrize(
    "text",
    [
        "", "always", "8:00-18:00", "08:00", "08:00 - 18:00", "24:00-08:00", "08:00-24:30", "08:60-09:00",
        "mon 08:00-18:00", "Mon..Fri 08:00-18:00", "Mon- 08:00-18:00", "Mon, Tue 08:00-18:00", "Mon 08:00-18:00\n",
        "08:00-18:00 ../../etc/passwd", "08:00-18:00 /etc/localtime", "08:00-18:00 Europe/Berlin UTC",
    ],
)  # fmt: skip
def test_what_is_no_window_is_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no window: expected \[DAYS\] HH:MM"):
        parse_window(text)


@pytest.mark.parametrize("zone", ["Europe/Atlantis", "Europe", "Berlin"])
def test_a_zone_that_is_none_is_refused(zone: str) -> None:
    with pytest.raises(ValueError, match=f"no time zone '{zone}' is known here"):
        parse_window(f"08:00-18:00 {zone}")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"warm": ["08:00-18:00", "Mon 8-18"]}, "warm[1]: 'Mon 8-18' is no window: expected [DAYS] HH:MM"),
        ({"warm": ["08:00-08:00"]}, "warm[0]: '08:00-08:00' opens and closes at once"),
        ({"warm": ["08:00-18:00 Mars/Olympus"]}, "warm[0]: no time zone 'Mars/Olympus'"),
        ({"warm": ["08:00-18:00"], "idle_limit_s": 0}, "warm: with an idle_limit_s of 0"),
        ({"warm": ["08:00-18:00"] * 17}, "length <= 16"),
        ({"warm": "08:00-18:00"}, "$.warm"),
    ],
)
def test_a_declaration_names_what_is_wrong(more: dict[str, object], told: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=re.escape(told)):
        msgspec.convert({"reference": REFERENCE, **more}, DeclaredModel)


_CLOCKS = st.times().map(lambda at: at.strftime("%H:%M:%S"))
_DAY_LISTS = st.lists(st.sampled_from(DAYS), min_size=1, max_size=3).map(",".join)


@given(st.none() | _DAY_LISTS, _CLOCKS, _CLOCKS, st.sampled_from(["", " UTC", " America/Sao_Paulo", " Etc/GMT+5"]))
def test_what_is_read_is_of_the_form_that_the_schema_tells(
    days: str | None, opens: str, closes: str, zone: str
) -> None:
    text = f"{'' if days is None else days + ' '}{opens}-{closes}{zone}"
    assert re.search(PATTERN, text)
    if opens != closes:
        window = parse_window(text)
        assert 0 <= window.opens < window.closes < window.opens + 86_400


def test_the_schema_tells_the_form() -> None:
    items = msgspec.json.schema(DeclaredModel)["$defs"]["DeclaredModel"]["properties"]["warm"]["items"]
    assert (items["pattern"], "[DAYS] HH:MM" in items["description"]) == (PATTERN, True)


def between(times: tuple[float, float] | None) -> tuple[str, str]:
    assert times is not None
    opens, closes = (datetime.fromtimestamp(moment, UTC).isoformat()[:16] for moment in times)
    return opens, closes


@pytest.mark.parametrize(
    ("text", "day", "opens", "closes"),
    [
        ("08:00-18:00 Europe/Berlin", date(2026, 7, 1), "2026-07-01T06:00", "2026-07-01T16:00"),
        ("08:00-18:00 Europe/Berlin", date(2026, 12, 1), "2026-12-01T07:00", "2026-12-01T17:00"),
        # the clocks of Berlin skip 02:00 to 03:00 on 29 March 2026, and repeat it on 25 October
        ("22:00-06:00 Europe/Berlin", date(2026, 3, 28), "2026-03-28T21:00", "2026-03-29T04:00"),
        ("22:00-06:00 Europe/Berlin", date(2026, 10, 24), "2026-10-24T20:00", "2026-10-25T05:00"),
        ("02:30-04:00 Europe/Berlin", date(2026, 3, 29), "2026-03-29T00:30", "2026-03-29T02:00"),
        ("01:00-02:30 Europe/Berlin", date(2026, 3, 29), "2026-03-29T00:00", "2026-03-29T01:30"),
        ("02:15-02:45 Europe/Berlin", date(2026, 10, 25), "2026-10-25T00:15", "2026-10-25T01:45"),
    ],
)
def test_when_the_window_of_a_day_opens_and_closes(text: str, day: date, opens: str, closes: str) -> None:
    assert between(parse_window(text).on(day)) == (opens, closes)


def test_a_window_opens_on_its_days_alone() -> None:
    window = parse_window("Mon 22:00-06:00 UTC")
    assert between(window.on(MONDAY)) == ("2026-11-23T22:00", "2026-11-24T06:00")
    assert window.on(date(2026, 11, 24)) is None


@pytest.fixture
def in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("in_tokyo")
def test_without_a_zone_the_clock_of_the_machine_counts() -> None:
    assert between(parse_window("08:00-18:00").on(MONDAY)) == ("2026-11-22T23:00", "2026-11-23T09:00")
