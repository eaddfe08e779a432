"""The live screen: drawn when something changed, left by q or Ctrl+C, the terminal as it was before."""

import asyncio
import contextlib
import os
import sys
import termios
import tty
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rbee.keeper.client import Daemon
from rbee.keeper.text import printable
from rbee.keeper.top import rows
from rbee.keeper.top.picture import Fleet, Picture
from rbee.keeper.top.watch import follow, keep_figures

_PAUSE_S = 0.25
"""The screen is drawn at most once in so long."""
_LEAVE = b"qQ"
_COLOURS = {"idle": "green", "busy": "cyan", "loading": "yellow", "failed": "red", "unhealthy": "red", "stale": "red"}


async def run(queen: Daemon, every_s: float) -> None:
    """Show the fleet until the person leaves."""
    fleet, changed, left = Fleet(), asyncio.Event(), asyncio.Event()
    with Live(draw(fleet.picture()), console=Console(), screen=True, auto_refresh=False) as live, _keys(left):
        async with queen, asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(follow(queen, fleet, changed.set)),
                tasks.create_task(keep_figures(queen, fleet, changed.set, every_s)),
                tasks.create_task(_redraw(live, fleet, changed)),
            ]
            await left.wait()
            for task in running:
                task.cancel()


async def _redraw(live: Live, fleet: Fleet, changed: asyncio.Event) -> None:
    while True:
        await changed.wait()
        changed.clear()
        live.update(draw(fleet.picture()), refresh=True)
        await asyncio.sleep(_PAUSE_S)


def draw(picture: Picture) -> RenderableType:
    """The picture for a terminal."""
    parts: list[RenderableType] = [Text(printable(rows.headline(picture)), style="bold")]
    parts += [Text(printable(line), style="yellow") for line in rows.troubles(picture)]
    for heads, cells in rows.tables(picture):
        table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
        for head in heads:
            table.add_column(head, overflow="ellipsis", no_wrap=True)
        for row in cells:
            table.add_row(*[Text(printable(cell), style=_COLOURS.get(cell, "")) for cell in row])
        parts += [Text(""), table]
    return Group(*parts, Text(""), Text("q leaves", style="dim"))


@contextlib.contextmanager
def _keys(left: asyncio.Event) -> Iterator[None]:
    """Let q end the screen; a terminal's settings are put back however it ends."""
    terminal = sys.stdin.fileno()
    if not os.isatty(terminal):
        yield
        return
    loop = asyncio.get_running_loop()
    before = termios.tcgetattr(terminal)

    def read() -> None:
        pressed = os.read(terminal, 64)
        if not pressed or set(pressed) & set(_LEAVE):
            left.set()

    tty.setcbreak(terminal)
    loop.add_reader(terminal, read)
    try:
        yield
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
