"""One inference that leaves nothing behind: what it needs and does not find runs for it alone.

Asked of systemd, here and over SSH, and of the queen's list; what was found running is not touched.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from rbee.keeper import lifecycle, session
from rbee.keeper.failure import CommandFailed
from rbee.keeper.nodes import queen, reach
from rbee.keeper.nodes.install import HIVE_UNITS, REPORT_LIMIT_S
from rbee.keeper.nodes.remote import Root
from rbee.keeper.nodes.ssh import Ssh
from rbee.keeper.nodes.units import Run, Units, here, workers_up
from rbee.keeper.nodes.wait import Since, await_hives, await_report, await_starts, hives
from rbee.keeper.render import say
from rbee.keeper.workers import all_workers
from rbee.wire.errors import RbeeError
from rbee.wire.messages import WorkerReport
from rbee.wire.nodes import Node, NodeStatus

QUEEN_UNITS = ("rbee-queen.socket", "rbee-queen.service")
_HERE = ("http://127.0.0.1:8080", "/run/rbee/queen.sock")
_AT_ONCE = 8
STARTS_LIMIT_S = 60.0
"""Facts of every hive are gathered, the order given, and its first report awaited for so long at most."""
_Key = tuple[str, str]


@dataclass(slots=True)
class Ends:
    """What was started, each with how it is stopped; ``left`` names what could not be.

    An act may add what it finds to be stopped, which is stopped next.
    """

    acts: list[tuple[str, Callable[[], None]]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def started(self, what: str, act: Callable[[], None]) -> None:
        """Note what was started, and say so; ``act`` stops it."""
        say(f"started {what} for this call")
        self.add(what, act)

    def add(self, what: str, act: Callable[[], None]) -> None:
        """Note what is to be stopped by ``act``, which is said then."""

        def end() -> None:
            act()
            say(f"stopped {what}")

        self.acts.append((what, end))

    def run(self) -> None:
        """Stop everything, the latest first; one that fails does not keep the others."""
        while self.acts:
            what, act = self.acts.pop()
            try:
                act()
            except RbeeError as error:
                self.left.append(what)
                say(f"{what} could not be stopped: {error.message}")


@contextmanager
def everything(model: str, node: str | None) -> Iterator[None]:
    """Have queen, hives and, by the request itself, a worker of ``model`` run for the block's length.

    ``node`` bounds it to one hive. What was started is stopped when the block is left, however it is: workers first,
    then hives, then the queen. Raises what SSH, systemd and the queen raise, and CommandFailed where something could
    not be stopped again; a second Ctrl+C leaves the rest as it is.
    """
    ends = Ends()
    try:
        fresh = _start_queen(ends)
        started = _start_hives(ends, model, node, fresh=fresh)
        before = {_key(worker) for worker in _up()}
        end_workers(ends, before, model, None if fresh else started)
        yield
    finally:
        ends.run()
    if ends.left:
        raise CommandFailed(
            f"still running: {', '.join(ends.left)}; stop them with 'systemctl stop' or 'rbee node stop'"
        )


# queen and hives


def _start_queen(ends: Ends) -> bool:
    """Start the queen where she is this machine's and does not run; whether that was so."""
    place = session.settings().queen
    units = Units(here, QUEEN_UNITS)
    if place.label not in _HERE or not units.installed:
        return False
    idle = units.idle()
    if QUEEN_UNITS[-1] not in idle:
        return False
    _start(units, idle)
    ends.started("the queen", lambda: units.stop(idle))
    return True


def _start(units: Units, idle: Sequence[str]) -> None:
    try:
        units.start(idle)
    except BaseException:
        units.stop(idle)  # a part of it may run
        raise


def _start_hives(ends: Ends, model: str, node: str | None, *, fresh: bool) -> set[str]:
    """Start the hives that do not run, unless a worker of the model is ready; the nodes whose hives were started.

    A queen that is ``fresh`` knows nothing yet: hives that run already are waited for.
    """
    if any(_is_of(worker, model) and worker.state.ready and node in (None, worker.hive_id) for worker in _up()):
        return set()
    nodes = [one for one in queen.all_nodes() if one.enrolled and node in (None, one.details.name)]
    if node is None or not nodes:
        _start_own_hive(ends, fresh=fresh)
    away = [one for one in nodes if one.status is not NodeStatus.ONLINE]
    since = Since.now()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        attempts = [pool.submit(_start_node, ends, one, reach.connect(one)) for one in away]
    started = set()
    for one, attempt in zip(away, attempts, strict=True):
        name = one.details.name
        try:
            starts = attempt.result()
            await_report(name, since, REPORT_LIMIT_S, restarted=starts)
            started |= {name} if starts else set()
        except RbeeError as error:
            if node is not None:
                raise
            say(f"going on without {name}: {error.message}")
    return started


def _start_own_hive(ends: Ends, *, fresh: bool) -> None:
    units = Units(here, HIVE_UNITS)
    if not units.installed:
        return
    idle = units.idle()
    starts = HIVE_UNITS[-1] in idle
    known = hives()
    if starts:
        before = workers_up(here)
        _start(units, idle)
        ends.started("this machine's hive", lambda: stop_hive(here, idle, before))
    if starts or (fresh and not known):
        await_hives(known + 1, REPORT_LIMIT_S)


def _start_node(ends: Ends, node: Node, ssh: Ssh) -> bool:
    """Start a node's hive; whether it did not run. In a thread of its own."""
    with ssh:
        run = _as_root(ssh)
        units = Units(run, HIVE_UNITS)
        idle = units.idle()
        if HIVE_UNITS[-1] not in idle:
            return False
        before = workers_up(run)
        units.start(idle)
    ends.started(f"the hive of {node.details.name}", lambda: _stop_node(node, idle, before))
    return True


def _stop_node(node: Node, names: Sequence[str], before: set[str]) -> None:
    with reach.connect(node) as ssh:
        stop_hive(_as_root(ssh), names, before)


def stop_hive(run: Run, names: Sequence[str], before: set[str]) -> None:
    """Stop a hive's units, then the workers there that did not run ``before``.

    A queen who keeps some of a model starts them anew as they are stopped, for as long as a hive takes her orders.
    """
    Units(run, HIVE_UNITS).stop(names)
    late = sorted(workers_up(run) - before)
    if late:
        Units(run, late).stop(late)
        say(f"stopped {', '.join(late)}")


def _as_root(ssh: Ssh) -> Run:
    root = Root(ssh)
    return lambda argv, limit_s, check: root.run(argv, limit_s=limit_s, check=check)


# workers


def _key(worker: WorkerReport) -> _Key:
    return worker.hive_id, worker.worker_id


def _is_of(worker: WorkerReport, model: str) -> bool:
    return model in (worker.model, worker.model_ref)


def _up() -> list[WorkerReport]:
    """The workers that the queen knows and that have not ended."""

    async def ask() -> list[WorkerReport]:
        async with session.queen() as daemon:
            return await all_workers(daemon)

    return [worker for worker in session.run(ask()) if not worker.state.ended]


def end_workers(ends: Ends, before: set[_Key], model: str, hives: set[str] | None) -> None:
    """Note that workers are to be stopped: those of the model, and those of ``hives`` (None: of every hive).

    Those that were up ``before`` are left alone. A start that the queen has begun for the call is waited for first: no
    list has its worker yet. Where that is in vain, those that are known are stopped all the same.
    """

    def find() -> None:
        for worker in _up():
            if _key(worker) not in before and (hives is None or worker.hive_id in hives or _is_of(worker, model)):
                ends.add(f"worker {worker.hive_id}/{worker.worker_id}", partial(_stop_worker, worker))

    ends.acts.append(("its workers", find))
    ends.acts.append(("a worker that is being started", lambda: await_starts(STARTS_LIMIT_S)))


def _stop_worker(worker: WorkerReport) -> None:
    session.run(lifecycle.stop(session.queen(), worker.worker_id, worker.hive_id, wait=True))
