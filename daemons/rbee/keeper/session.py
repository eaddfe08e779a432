"""What every command begins with: its settings, its connections, and one correlation id for all that it asks."""

import asyncio
import os
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import click

from rbee.keeper.client import CONNECTIONS, Daemon, Patience
from rbee.keeper.failure import InferenceStalled, StreamClosed
from rbee.keeper.render import say
from rbee.keeper.settings import Flags, Place, Settings, resolve
from rbee.wire import context
from rbee.wire.errors import ProtocolError
from rbee.wire.http.client import RemoteError

T = TypeVar("T")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def flags() -> Flags:
    """What was given on the command line before the command's name."""
    return click.get_current_context().find_object(Flags) or Flags()


def settings() -> Settings:
    """The settings of the command that runs; raises ConfigError."""
    return resolve(flags(), os.environ)


def connect(
    place: Place, chosen: Settings, tell: Callable[[str], None] = say, *, connections: int = CONNECTIONS
) -> Daemon:
    """A connection to ``place``, not open yet; at most ``connections`` calls run at once."""
    return Daemon(place, Patience(chosen.timeout_s), tell, connections)


def queen() -> Daemon:
    """A connection to the queen, not open yet; raises ConfigError."""
    chosen = settings()
    return connect(chosen.queen, chosen)


def hive() -> Daemon:
    """A connection to this machine's hive, not open yet; raises ConfigError."""
    chosen = settings()
    return connect(chosen.hive, chosen)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end; Ctrl+C cancels it and becomes KeyboardInterrupt once it has cleaned up."""

    async def correlated() -> T:
        identity = str(uuid.uuid4())
        context.correlation_id.set(identity)
        try:
            return await work
        except (RemoteError, ProtocolError, StreamClosed, InferenceStalled) as error:
            error.details.setdefault("correlation_id", identity)
            raise

    return asyncio.run(correlated())
