"""Warm times of declared models: the decision on its own, and by a queen whose clock is set by hand."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.queen.conftest import Configured, RunningQueen
from tests.unit.queen.partners import HivePartner, report, until
from tests.unit.queen.test_placement import REFERENCE, hive_with

from rbee.queen.placement.life import Life
from rbee.queen.placement.replicas import worker_id_of
from rbee.queen.placement.scaling import Limits, Replica
from rbee.queen.placement.warm import (
    LEAD_FACTOR,
    LEAD_MARGIN_S,
    MOST_LEAD_S,
    Kept,
    Span,
    WarmTimes,
    kept_at,
    lead_s,
    span_at,
)
from rbee.wire.declarations import DeclaredModel
from rbee.wire.messages import WorkerReport, WorkerState
from rbee.wire.warm_times import Window, parse_window

IDLE, LOADING, STOPPED = WorkerState.IDLE, WorkerState.LOADING, WorkerState.STOPPED
NAME = "warm"
BODY = {"reference": REFERENCE, "idle_limit_s": 60, "warm": ["Mon-Fri 08:00-18:00 UTC"]}
DECLARED = msgspec.convert(BODY, DeclaredModel)
WORKER = worker_id_of(NAME, DECLARED)
LOAD_S = 40.0
LEAD_S = LOAD_S * LEAD_FACTOR + LEAD_MARGIN_S


def at(text: str) -> float:
    """Unix seconds of a time in UTC; 23 November 2026 is a Monday."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def windows(*texts: str) -> list[Window]:
    return [parse_window(text) for text in texts]


@pytest.mark.parametrize(
    ("texts", "now", "span"),
    [
        (["Mon-Fri 08:00-18:00 UTC"], "2026-11-23T08:00", (True, "2026-11-23T08:00", "2026-11-23T18:00")),
        (["Mon-Fri 08:00-18:00 UTC"], "2026-11-23T07:59", (False, "2026-11-20T18:00", "2026-11-23T08:00")),
        (["Mon-Fri 08:00-18:00 UTC"], "2026-11-27T18:00", (False, "2026-11-27T18:00", "2026-11-30T08:00")),
        (["Sun 22:00-06:00 UTC"], "2026-11-23T05:59", (True, "2026-11-22T22:00", "2026-11-23T06:00")),
        (["08:00-12:00 UTC", "12:00-14:00 UTC"], "2026-11-23T09:00", (True, "2026-11-23T08:00", "2026-11-23T14:00")),
        (["08:00-12:00 UTC", "09:00-10:00 UTC"], "2026-11-23T11:00", (True, "2026-11-23T08:00", "2026-11-23T12:00")),
        (["Mon 00:00-24:00 UTC", "Tue 00:00-01:00 UTC"], "2026-11-23T09:00",
         (True, "2026-11-23T00:00", "2026-11-24T01:00")),
        (["08:00-09:00 Asia/Tokyo", "08:00-09:00 UTC"], "2026-11-23T01:00",
         (False, "2026-11-23T00:00", "2026-11-23T08:00")),
        (["00:00-24:00 UTC"], "2026-11-23T09:00", (True, None, None)),
        (["Mon-Thu 00:00-24:00 UTC", "Fri-Sun 00:00-24:00 UTC"], "2026-11-23T00:00", (True, None, None)),
        # whose only gap, of an hour a week, is skipped by the clocks of the next Sunday
        (["Mon-Sat 00:00-24:00 Europe/Berlin", "Sun 00:00-02:00 Europe/Berlin", "Sun 03:00-24:00 Europe/Berlin"],
         "2026-03-28T12:00", (True, "2026-03-22T02:00", "2026-04-05T00:00")),
    ],
)  # fmt: skip
def test_a_span_goes_from_edge_to_edge(texts: list[str], now: str, span: tuple[bool, str | None, str | None]) -> None:
    warm, since, ends = span
    begins, over = -math.inf if since is None else at(since), math.inf if ends is None else at(ends)
    assert span_at(windows(*texts), at(now)) == Span(warm, begins, over)


ZONES = [
    None, *map(ZoneInfo, (
        "UTC", "Europe/Berlin", "America/New_York", "America/Sao_Paulo", "Australia/Lord_Howe", "Asia/Kathmandu",
        "Africa/Casablanca", "Pacific/Apia",
    )),
]  # fmt: skip
_DAY_S = 86_400


@st.composite
def some_window(draw: st.DrawFn) -> Window:
    opens = draw(st.integers(0, _DAY_S - 1))
    days = draw(st.frozensets(st.integers(0, 6), min_size=1))
    return Window(days, opens, opens + draw(st.integers(1, _DAY_S)), draw(st.sampled_from(ZONES)))


_WINDOWS = st.lists(some_window(), min_size=1, max_size=3)
_MOMENTS = st.floats(at("2010-01-10T00:00"), at("2030-01-01T00:00")).map(lambda moment: round(moment, 3))


def on_the_wall(window: Window, moment: float) -> bool:
    """Whether the clock on the wall shows a time of the window."""
    wall = datetime.fromtimestamp(moment, window.zone)
    seconds = (wall - wall.replace(hour=0, minute=0, second=0, microsecond=0)).total_seconds()
    today = wall.weekday() in window.days and window.opens <= seconds < window.closes
    yesterday = (wall.weekday() - 1) % 7 in window.days and seconds + _DAY_S < window.closes
    return today or yesterday


def changes_near(window: Window, moment: float) -> bool:
    """Whether the clocks are changed within the days around."""
    offsets = {
        datetime.fromtimestamp(moment + hours * 3600, UTC).astimezone(window.zone).utcoffset()
        for hours in range(-36, 37, 6)
    }
    return len(offsets) > 1


@given(_WINDOWS, _MOMENTS)
def test_a_model_is_warm_when_the_clock_on_the_wall_says_so(some: list[Window], moment: float) -> None:
    warm = span_at(some, moment).warm
    if any(on_the_wall(window, moment) for window in some):
        assert warm
    elif not any(changes_near(window, moment) for window in some):
        assert not warm


@given(_WINDOWS, _MOMENTS, st.floats(0, 1, exclude_max=True))
def test_spans_follow_one_another_and_every_moment_of_one_is_in_it(
    some: list[Window], moment: float, share: float
) -> None:
    span = span_at(some, moment)
    assert span.since <= moment < span.until
    if math.isinf(span.until):
        assert span.warm
        return
    after, before = span_at(some, span.until), span_at(some, math.nextafter(span.until, -math.inf))
    assert (after.warm, after.since) == (not span.warm, span.until)
    assert before == span
    if not math.isinf(span.since):
        assert span_at(some, span.since + share * (span.until - span.since) // 1) == span


_NOW = at("2026-11-23T07:00")
_KEEPS_TWO = msgspec.convert(BODY | {"replicas": {"min": 2, "max": 3}}, DeclaredModel)
_ALWAYS_TWO = msgspec.structs.replace(_KEEPS_TWO, warm=[])


@pytest.mark.parametrize(
    ("declared", "span", "load_s", "kept"),
    [
        (DECLARED, Span(True, _NOW - 60, _NOW + 60), None, Kept(1, _NOW - 60)),
        (_KEEPS_TWO, Span(True, _NOW - 60, _NOW + 60), LOAD_S, Kept(2, _NOW - 60 - LEAD_S)),
        (_KEEPS_TWO, Span(False, _NOW - 60, _NOW + LEAD_S), LOAD_S, Kept(2, _NOW)),
        (_KEEPS_TWO, Span(False, _NOW - 60, _NOW + LEAD_S + 1), LOAD_S, Kept(0, _NOW - 60)),
        (DECLARED, Span(False, _NOW - 60, _NOW + 1), None, Kept(0, _NOW - 60)),
        (_ALWAYS_TWO, None, LOAD_S, Kept(2)),
    ],
)
def test_how_many_are_kept(declared: DeclaredModel, span: Span | None, load_s: float | None, kept: Kept) -> None:
    assert kept_at(declared, span, load_s, _NOW) == kept


@given(st.floats(0, 1e9))
def test_a_start_begins_longer_ahead_than_the_last_one_took_within_a_bound(load_s: float) -> None:
    assert min(load_s, MOST_LEAD_S) <= lead_s(load_s) <= MOST_LEAD_S


def test_the_latest_start_of_the_declaration_s_workers_tells_how_long_one_takes() -> None:
    life, limits = Life(), Limits(1, 2)
    life.look(
        limits, [Replica(1, IDLE, ready_unix=2.0, load_s=7.0), Replica(2, IDLE, ready_unix=1.0, load_s=9.0)], 0, 0
    )
    assert life.load_s == 7.0
    life.look(limits, [Replica(None, IDLE, ready_unix=3.0, load_s=1.0), Replica(1, LOADING)], 1, 0)
    assert life.load_s == 7.0
    life.look(limits, [Replica(None, IDLE, former=True, ready_unix=4.0, load_s=3.0)], 2, 0)
    assert life.load_s == 3.0


def test_a_clock_that_is_set_is_followed_forth_and_back() -> None:
    times = WarmTimes(DECLARED)
    morning, night = at("2026-11-23T09:00"), at("2026-11-23T20:00")
    assert [times.span(moment).warm for moment in (morning, night, morning, at("2027-06-01T12:00"), night)] == [
        True, False, True, True, False,
    ]  # fmt: skip


def test_another_warm_time_makes_no_other_worker() -> None:
    assert worker_id_of(NAME, msgspec.structs.replace(DECLARED, warm=[])) == WORKER


# by a queen


@dataclass
class Case:
    """A queen with one hive, and her clock on the wall."""

    queen: RunningQueen
    hive: HivePartner
    seconds: float = 0.0

    def sweep(self, now: str | float) -> None:
        """Let her look at ``now`` by the clock on the wall; each look is 100 s after the one before by the other."""
        self.seconds += 100.0
        declared, moment = self.queen.core.declared, at(now) if isinstance(now, str) else now
        declared.clock = lambda: moment
        declared.sweep(self.seconds, self.queen.core.admission.waiting_for)

    @property
    def starts(self) -> bool:
        return bool(self.queen.core.declared._under_way)

    async def started(self) -> dict[str, Any]:
        """What the hive is asked to start; it has told of that, and then that it is ready."""
        asked = len(self.hive.spawned)
        await until(lambda: len(self.hive.spawned) > asked)
        await self.queen.tell(told(LOADING))
        await until(lambda: not self.starts)
        await self.queen.tell(told(IDLE))
        return self.hive.spawned[-1]

    async def warm(self) -> str:
        _, model = await self.queen.get(f"/v1/models/{NAME}")
        return str(model["warm"])


def told(state: WorkerState, **more: Any) -> WorkerReport:  # noqa: ANN401
    ready = {"spawned_unix": 1000.0, "ready_unix": 1000.0 + LOAD_S, "url": "http://127.0.0.1:9"}
    return report(state, worker=WORKER, model=NAME, **(ready if state is IDLE else {"url": None}) | more)


async def test_a_worker_is_kept_while_its_window_is_open_and_ends_idle_after_it(configured: Configured) -> None:
    async with configured(models={NAME: BODY}) as queen, hive_with(100) as hive:
        await queen.beat(api_url=hive.url)
        case = Case(queen, hive)
        case.sweep("2026-11-23T07:59:59")
        assert not case.starts
        assert await case.warm() == "on demand, 1 kept warm from Mon 23 Nov 08:00 UTC"
        assert await queen.metric("queen_rbee_kept_workers") == 0
        case.sweep("2026-11-23T08:00")  # nobody knows yet how long a start takes
        assert (await case.started())["idle_limit_s"] == 0
        case.sweep("2026-11-23T17:59:59")
        assert not queen.core.declared._drains.under_way
        assert not queen.core.declared.evictable()
        assert await case.warm() == "1 kept warm until Mon 23 Nov 18:00 UTC"
        assert await queen.metric("queen_rbee_kept_workers") == 1
        _, why = await queen.get(f"/v2/explain/{WORKER}")
        assert why["warm"] == await case.warm()
        case.sweep("2026-11-23T18:00")
        await until(lambda: hive.stopped == [WORKER])
        await queen.beat(api_url=hive.url)
        await until(lambda: not queen.core.declared._drains.under_way)
        case.sweep(at("2026-11-24T08:00") - LEAD_S - 1)
        assert not case.starts
        case.sweep(at("2026-11-24T08:00") - LEAD_S)
        assert await case.warm() == "1 started ahead, to be warm at Tue 24 Nov 08:00 UTC"
        assert (await case.started())["worker_id"] == WORKER


async def test_outside_of_its_window_a_worker_may_make_room(configured: Configured) -> None:
    async with configured(models={NAME: BODY}) as queen, hive_with(100) as hive:
        await queen.beat(told(IDLE), api_url=hive.url)
        queen.core.declared.clock = lambda: at("2026-11-23T20:00")
        assert [worker.key.worker_id for worker in queen.core.declared.evictable()] == [WORKER]


async def test_what_a_person_stops_stays_stopped_until_the_next_window(configured: Configured) -> None:
    async with configured(models={NAME: BODY}) as queen, hive_with(100) as hive:
        stopped = told(STOPPED, reason="requested", since_unix=at("2026-11-23T09:00"))
        await queen.beat(stopped, api_url=hive.url)
        case = Case(queen, hive)
        case.sweep("2026-11-23T17:00")
        assert not case.starts
        case.sweep("2026-11-24T08:00")
        assert case.starts
        await case.started()


async def test_a_window_in_which_nothing_can_be_started_is_told(configured: Configured) -> None:
    async with configured(models={NAME: BODY}) as queen, hive_with(1_000_000) as hive:
        await queen.beat(api_url=hive.url)
        case = Case(queen, hive)
        case.sweep("2026-11-23T08:00")
        await until(lambda: not case.starts)
        assert [sentence.split(":")[0] for sentence in queen.core.declared.problems()] == [f"model {NAME}"]
        queen.core.declared.clock = lambda: at("2026-11-23T20:00")
        assert queen.core.declared.problems() == []


async def test_warm_times_over_the_api_are_in_force_and_shown(queen: RunningQueen) -> None:
    async with queen.client.put(f"{queen.url}/v2/declarations/{NAME}", json=BODY) as response:
        assert (response.status, (await response.json())["declaration"]) == (200, BODY)
    _, listing = await queen.get("/v1/models")
    assert "kept warm" in listing["data"][0]["warm"]
    async with queen.client.put(f"{queen.url}/v2/declarations/{NAME}", json=BODY | {"warm": ["8-18"]}) as response:
        assert response.status == 400
        assert "warm[0]: '8-18' is no window" in await response.text()


async def test_what_was_found_out_of_the_calendar_holds_while_others_declare(configured: Configured) -> None:
    async with configured(models={NAME: BODY}) as queen:
        declared = queen.core.declared
        declared.sweep(0.0, queen.core.admission.waiting_for)
        warm = declared._warm[NAME]
        models = queen.core.config.models | {"another": DECLARED}
        queen.core.reconfigure(msgspec.structs.replace(queen.core.config, models=models))
        assert declared._warm[NAME] is warm
        changed = models | {NAME: msgspec.structs.replace(DECLARED, warm=["00:00-24:00"])}
        queen.core.reconfigure(msgspec.structs.replace(queen.core.config, models=changed))
        assert (await queen.get(f"/v1/models/{NAME}"))[1]["warm"] == "1 kept warm"
        assert set(declared._warm) == {NAME, "another"}
