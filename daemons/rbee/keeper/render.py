"""What a person sees: the answer on stdout as it comes, everything about it on stderr."""

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from rbee.keeper.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def say(line: str) -> None:
    """One line about what happens, on stderr."""
    sys.stderr.write(printable(line) + "\n")
    sys.stderr.flush()


def show_json(value: object) -> None:
    """``value`` as indented JSON on stdout."""
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    sys.stdout.flush()


def show_table(heads: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    """A table on stdout: drawn for a terminal, tab-separated for a pipe; ``empty`` is said where there is no row."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if not cells:
        say(empty)
        return
    if not sys.stdout.isatty():
        sys.stdout.write("\n".join("\t".join(row) for row in [list(heads), *cells]) + "\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in cells:
        table.add_row(*[Text(cell) for cell in row])
    Console().print(table)


class Screen:
    """Shows one inference: a bar while the model loads (on a terminal), then the text."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last = ""
        self._column = 0
        self._safe = sys.stdout.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_bar()
        self.end_line()

    def text(self, piece: str) -> None:
        """A piece of the answer, at once."""
        self._end_bar()
        sys.stdout.write(printable(piece) if self._safe else piece)
        sys.stdout.flush()
        if piece:
            self._column = 0 if piece.endswith("\n") else 1

    def end_line(self) -> None:
        """End the line that the answer left open."""
        if self._column:
            sys.stdout.write("\n")
            sys.stdout.flush()
            self._column = 0

    def say(self, line: str) -> None:
        """A line on stderr, never in the middle of one on stdout."""
        self._end_bar()
        if sys.stdout.isatty():
            self.end_line()
        say(line)

    def progress(self, kind: str, data: dict[str, Any]) -> None:
        """An event before the first token: queued and placing as lines, loading as a bar on a terminal."""
        facts = data.get("progress") if isinstance(data.get("progress"), dict) else data
        stage, done, total = (facts or {}).get("stage"), (facts or {}).get("done"), (facts or {}).get("total")
        if kind != "loading":
            if kind in ("queued", "placing") and sys.stderr.isatty():
                self._line(kind)
            return
        label = f"loading: {stage or data.get('state') or 'the model'}"
        if isinstance(done, int) and isinstance(total, int) and total > 0 and sys.stderr.isatty():
            self._draw(label, done, total)
        else:
            self._line(label)

    def _line(self, line: str) -> None:
        if line != self._last:
            self._last = line
            say(line)

    def _draw(self, label: str, done: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import Progress

        if self._bar is None:
            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(printable(label), total=total)
        if self._task is not None:
            self._bar.update(self._task, description=printable(label), completed=done, total=total)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
