"""How many workers of a declared model are kept now, by its warm times: pure decisions."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from rbee.wire.declarations import DeclaredModel
from rbee.wire.warm_times import Window, parse_window

LOOK_DAYS = 16
"""Windows are looked at so many days back and ahead: two weeks, for one change of the clocks can hide a gap of one."""
_ALWAYS_S = (LOOK_DAYS - 1) * 86_400.0
LEAD_FACTOR = 1.25
LEAD_MARGIN_S = 5.0
"""A start begins so much longer ahead of a window than the last one took: loads vary, and a place is to be found."""
MOST_LEAD_S = 3600.0
"""However long the last start took, one begins no sooner before a window than this."""


@dataclass(frozen=True, slots=True)
class Span:
    """A time in which a model is warm without a break, or is not: Unix seconds, infinite where that never changes."""

    warm: bool
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class Kept:
    """``least`` workers are kept, and that is so since ``since`` (Unix seconds)."""

    least: int
    since: float = -math.inf


def span_at(windows: Sequence[Window], now: float) -> Span:
    """Whether ``now`` (Unix seconds) is within one of ``windows``, at least one, and from when until when that is so.

    A window holds from its opening until before its closing; those that overlap or touch are one.
    """
    since, until = -math.inf, math.inf
    for opens, closes in _merged(windows, now):
        if closes <= now:
            since = closes
        elif now < opens:
            until = opens
            break
        else:
            return Span(
                True,
                opens if now - opens < _ALWAYS_S else -math.inf,
                closes if closes - now < _ALWAYS_S else math.inf,
            )
    return Span(False, since, until)


def _merged(windows: Sequence[Window], now: float) -> Iterator[tuple[float, float]]:
    """When the windows around ``now`` open and close, in order, those that overlap or touch as one."""
    times = sorted(time for window in windows for time in _around(window, now))
    opened, closed = times[0]
    for opens, closes in times[1:]:
        if opens > closed:
            yield opened, closed
            opened, closed = opens, closes
        else:
            closed = max(closed, closes)
    yield opened, closed


def _around(window: Window, now: float) -> Iterator[tuple[float, float]]:
    today = datetime.fromtimestamp(now, window.zone).date()
    for days in range(-LOOK_DAYS, LOOK_DAYS + 1):
        times = window.on(today + timedelta(days=days))
        if times is not None:
            yield times


def lead_s(load_s: float | None) -> float:
    """How long before a window opens a start begins, the last one having taken ``load_s``; 0 where nobody knows."""
    return 0.0 if load_s is None else min(MOST_LEAD_S, load_s * LEAD_FACTOR + LEAD_MARGIN_S)


def kept_at(declared: DeclaredModel, span: Span | None, load_s: float | None, now: float) -> Kept:
    """How many are kept at ``now`` (Unix seconds); ``span`` is that of its warm times, None where it has none."""
    if span is None:
        return Kept(declared.replicas.min)
    lead = lead_s(load_s)
    if span.warm:
        return Kept(most_kept(declared), span.since - lead)
    if now >= span.until - lead:
        return Kept(most_kept(declared), span.until - lead)
    return Kept(0, span.since)


def most_kept(declared: DeclaredModel) -> int:
    """How many are kept at the times when any is."""
    return max(1, declared.replicas.min) if declared.warm else declared.replicas.min


class WarmTimes:
    """The warm times of one declared model, looked at anew when what they said is over: the clock may be set too."""

    def __init__(self, declared: DeclaredModel) -> None:
        """``declared`` has windows, which are valid."""
        self._declared = declared
        self._windows = [parse_window(text) for text in declared.warm]
        self._span = Span(False, math.inf, -math.inf)

    def span(self, now: float) -> Span:
        """The span that ``now`` (Unix seconds) is in."""
        if not self._span.since <= now < self._span.until:
            self._span = span_at(self._windows, now)
        return self._span

    def note(self, load_s: float | None, now: float) -> str:
        """For a person: what the windows say at ``now``, the last start having taken ``load_s``."""
        span = self.span(now)
        kept = kept_at(self._declared, span, load_s, now).least
        if span.warm:
            return f"{kept} kept warm" + ("" if math.isinf(span.until) else f" until {self._written(span.until)}")
        opening = self._written(span.until)
        if kept:
            return f"{kept} started ahead, to be warm at {opening}"
        return f"on demand, {most_kept(self._declared)} kept warm from {opening}"

    def _written(self, moment: float) -> str:
        return f"{datetime.fromtimestamp(moment, UTC).astimezone(self._windows[0].zone):%a %d %b %H:%M %Z}"
