"""Warm times: windows of the week in which workers of a declared model are kept, as a declaration writes them."""

import re
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

FORM = "[DAYS] HH:MM[:SS]-HH:MM[:SS] [ZONE], such as 'Mon-Fri 08:00-18:00 Europe/Berlin' or 'Sat,Sun 22:00-06:00'"
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_DAY = f"(?:{'|'.join(DAYS)})"
_SPAN = f"{_DAY}(?:-{_DAY})?"
_CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9])?"
PATTERN = (
    rf"^(?:({_SPAN}(?:,{_SPAN})*) )?({_CLOCK})-({_CLOCK}|24:00(?::00)?)(?: ([A-Za-z][A-Za-z0-9_+-]*"
    r"(?:/[A-Za-z0-9_+-]+)*))?$"
)
"""What a window looks like; of a zone it says no more than which characters it has."""
_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Window:
    """A time that comes on some days of the week.

    ``days`` are those on which it opens, 0 being Monday. ``opens`` and ``closes`` are seconds by the clock on the wall
    since the midnight before it opens: one that goes past midnight closes after 86400. ``zone`` None is the machine's.
    """

    days: frozenset[int]
    opens: int
    closes: int
    zone: ZoneInfo | None

    def on(self, day: date) -> tuple[float, float] | None:
        """When the window of that day opens and closes (Unix seconds); None where that day has none.

        A time of day that a change of the clocks skips or repeats has two meanings: a window opens at the earlier one
        and closes at the later one.
        """
        if day.weekday() not in self.days:
            return None
        return min(self._meanings(day, self.opens)), max(self._meanings(day, self.closes))

    def _meanings(self, day: date, seconds: int) -> tuple[float, float]:
        local = datetime.combine(day, time(), self.zone) + timedelta(seconds=seconds)
        return local.timestamp(), local.replace(fold=1).timestamp()


def parse_window(text: str) -> Window:
    """Read a window; raises ValueError, which says what is expected, for one that is not of :data:`FORM`."""
    found = re.match(PATTERN, text)
    if found is None or text.endswith("\n"):
        raise ValueError(f"{text[:64]!r} is no window: expected {FORM}")
    days, opens, closes = _days(found[1]), _seconds(found[2]), _seconds(found[3])
    if opens == closes:
        raise ValueError(f"{text[:64]!r} opens and closes at once: the whole day is 00:00-24:00")
    return Window(days, opens, closes if closes > opens else closes + _DAY_S, _zone(found[4]))


def _days(text: str | None) -> frozenset[int]:
    """The days of a list of days and of spans of them, which may go past Sunday; every day where none is named."""
    if text is None:
        return frozenset(range(len(DAYS)))
    found: set[int] = set()
    for span in text.split(","):
        first, _, last = span.partition("-")
        begin = DAYS.index(first)
        length = (DAYS.index(last or first) - begin) % len(DAYS)
        found |= {(begin + step) % len(DAYS) for step in range(length + 1)}
    return frozenset(found)


def _seconds(clock: str) -> int:
    hours, minutes, *seconds = map(int, clock.split(":"))
    return hours * 3600 + minutes * 60 + sum(seconds)


def _zone(name: str | None) -> ZoneInfo | None:
    if name is None:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"no time zone {name[:64]!r} is known here: use a name of the IANA database, such as Europe/Berlin or UTC, "
            "and have the package tzdata"
        ) from None
