"""Text from elsewhere, made safe for a terminal."""

import unicodedata

_KEPT = "\n\t"


def printable(text: str) -> str:
    """``text`` without the control characters that a terminal would obey (escape sequences, bells, returns)."""
    if text.isprintable():
        return text
    return "".join(c for c in text if c in _KEPT or unicodedata.category(c) != "Cc")


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 0.4 s, 12 s, 3 min 5 s, 2 h 4 min, 3 d 1 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for unit, smaller, size, small_size in (
        ("min", "s", 60, 1),
        ("h", "min", 3600, 60),
    ):
        if whole < size * (60 if unit == "min" else 24):
            return f"{whole // size} {unit} {whole % size // small_size} {smaller}"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size(count: float) -> str:
    """Bytes as a person reads them, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
