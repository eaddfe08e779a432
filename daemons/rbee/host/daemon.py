"""How each daemon runs: loop, signals, watchdog, reload, exit codes."""

import asyncio
import contextlib
import gc
import logging
import signal
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

import uvloop

from rbee.host.notify import Notifier
from rbee.wire import context
from rbee.wire.errors import ConfigError, OutOfMemory, ProviderUnavailable, RbeeError
from rbee.wire.log import log
from rbee.wire.shortage import EXIT_NO_MEMORY

LOGGER = logging.getLogger(__name__)
EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_UNAVAILABLE = 69
EXIT_CONFIG = 78
_RELOAD_LIMIT_S = 30.0
_COLLECT_AFTER = (10_000, 50, 100)
"""Objects, and rounds of the generations below, after which garbage in cycles is looked for."""


class Daemon(Protocol):
    """What a room gives to :func:`run_daemon`.

    ``start`` returns once READY=1 was sent or will be sent by the daemon itself; ``wait`` returns when the daemon ends
    on its own (and raises why), and otherwise never; ``healthy`` is asked before each WATCHDOG=1.
    """

    async def start(self) -> None: ...

    async def wait(self) -> None: ...

    async def reload(self) -> None: ...

    async def stop(self) -> None: ...

    def healthy(self) -> bool: ...

    def summary(self) -> str: ...


def run_daemon(make: Callable[[Notifier], Awaitable[Daemon]], *, debug: bool = False) -> int:
    """Run a daemon to its end and return the exit code.

    0, 1, 69 (provider absent), 71 (its memory does not suffice) or 78 (configuration wrong).

    ``make`` builds it from its configuration. SIGTERM and SIGINT stop it, SIGHUP reloads it between RELOADING=1 and
    READY=1. The sentence of an error that ends it goes to the log and to STATUS=, which `systemctl status` shows.
    """
    notifier = Notifier.from_environment()
    life = str(uuid.uuid4())
    try:
        return uvloop.run(_run(make, notifier, life), debug=debug)
    except ConfigError as error:
        return _ended(notifier, error, EXIT_CONFIG, life)
    except ProviderUnavailable as error:
        return _ended(notifier, error, EXIT_UNAVAILABLE, life)
    except OutOfMemory as error:
        return _ended(notifier, error, EXIT_NO_MEMORY, life)
    except RbeeError as error:
        return _ended(notifier, error, EXIT_FAILURE, life)
    finally:
        notifier.close()


@contextlib.contextmanager
def _of_life(life: str) -> Iterator[None]:
    """Records within carry the correlation id of this life: its configuration's load and reloads are one chain."""
    token = context.correlation_id.set(life)
    try:
        yield
    finally:
        context.correlation_id.reset(token)


def _ended(notifier: Notifier, error: RbeeError, code: int, life: str) -> int:
    notifier.status(error.message, force=True)
    log(
        LOGGER,
        logging.ERROR,
        error.message,
        code=error.code,
        event="startup_failed",
        exit_status=code,
        field=error.details.get("field"),
        error_kind=error.details.get("error_kind"),
        correlation_id=life,
    )
    return code


async def _run(make: Callable[[Notifier], Awaitable[Daemon]], notifier: Notifier, life: str) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    hang_up = asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, hang_up.set)

    with _of_life(life):
        daemon = await make(notifier)
    watchdog = asyncio.create_task(_feed_watchdog(daemon, notifier), name="watchdog")
    started = asyncio.Event()
    reloads = asyncio.create_task(_reload_on_signal(daemon, notifier, started, hang_up, life), name="reload")
    try:
        return await _until_stopped(daemon, started, stop)
    finally:
        await _cancel(reloads)  # its READY=1 has no place in a drain
        notifier.stopping("stopping")
        try:
            await daemon.stop()
        finally:
            await _cancel(watchdog)


def look_for_garbage_seldom() -> None:
    """What lives as long as the process is not searched again and again, nor the rest after each 700 objects.

    Nearly all garbage goes by its count of references.
    """
    gc.set_threshold(*_COLLECT_AFTER)
    gc.freeze()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _until_stopped(daemon: Daemon, started: asyncio.Event, stop: asyncio.Event) -> int:
    """Start, then wait for a signal or for the daemon's own end, whichever is first; a start can be stopped too."""

    async def live() -> None:
        await daemon.start()
        look_for_garbage_seldom()
        started.set()
        await daemon.wait()

    living = asyncio.create_task(live(), name="daemon")
    stopping = asyncio.create_task(stop.wait(), name="signal")
    try:
        await asyncio.wait((living, stopping), return_when=asyncio.FIRST_COMPLETED)
        if living.done():
            living.result()
            return EXIT_OK
        log(LOGGER, logging.INFO, "stop asked for by signal")
        return EXIT_OK
    finally:
        stopping.cancel()
        if not living.done():
            living.cancel()
        await asyncio.gather(living, stopping, return_exceptions=True)


async def _feed_watchdog(daemon: Daemon, notifier: Notifier) -> None:
    """Send WATCHDOG=1 from the loop that serves: a loop that blocks, or a daemon that is not healthy, sends none."""
    interval = notifier.watchdog_interval_s
    if interval is None:
        return
    while True:
        if daemon.healthy():
            notifier.watchdog()
        else:
            log(LOGGER, logging.ERROR, "not healthy: WATCHDOG=1 is withheld, systemd will restart this service")
        await asyncio.sleep(interval)


async def _reload_on_signal(
    daemon: Daemon, notifier: Notifier, started: asyncio.Event, hang_up: asyncio.Event, life: str
) -> None:
    await started.wait()  # READY=1 ends a reload: before the start has ended it would be untrue
    while True:
        await hang_up.wait()
        hang_up.clear()
        notifier.reloading()
        with _of_life(life):
            notifier.ready(await _reload(daemon))


async def _reload(daemon: Daemon) -> str:
    """Reload, and return the STATUS= line: the daemon's own, or why the reload was refused."""
    try:
        async with asyncio.timeout(_RELOAD_LIMIT_S):
            await daemon.reload()
    except (RbeeError, TimeoutError) as error:
        reason = error.message if isinstance(error, RbeeError) else "it took too long"
        log(LOGGER, logging.ERROR, "reload refused, the old configuration stays in force", why=reason)
        return f"reload refused: {reason}"
    except Exception:
        # a defect: told with its stack, and the next reload finds somebody who listens
        LOGGER.exception("reload failed")
        return "reload refused: something failed inside, the journal has the reason"
    log(LOGGER, logging.INFO, "reloaded")
    return daemon.summary()


def exit_process(code: int) -> None:
    """End the process with ``code`` after flushing what was written."""
    logging.shutdown()
    sys.stdout.flush()
    sys.exit(code)
