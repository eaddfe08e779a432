"""Takes the steps of a plan: several nodes at once, each one's steps in order; what fails stops no other node."""

import asyncio
import enum
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import aiohttp
import msgspec

from rbee.keeper import lifecycle, models, session
from rbee.keeper.fleet.file import FleetFile
from rbee.keeper.fleet.look import scope
from rbee.keeper.fleet.plan import Action, Step
from rbee.keeper.models import Place, PullScreen
from rbee.keeper.nodes import enlist, install, queen, reach
from rbee.keeper.nodes.remote import Root
from rbee.keeper.nodes.steps import Steps
from rbee.keeper.render import say
from rbee.keeper.text import size
from rbee.wire.declarations import Declaration, DeclaredModel
from rbee.wire.errors import ConnectionTimeout, RbeeError
from rbee.wire.model_messages import ModelRow, Pin, PullRequest, Removed
from rbee.wire.model_reference import parse


class Outcome(enum.StrEnum):
    """What became of a step; ``left``: it was not tried, because one before it failed."""

    DONE = "done"
    FAILED = "failed"
    LEFT = "left"


class Result(msgspec.Struct, frozen=True):
    """A step, what became of it, the seconds it took, and what it said or why it failed."""

    step: Step
    outcome: Outcome
    seconds: float = 0.0
    told: str = ""


class Apply:
    """Takes steps towards ``fleet``; ``told`` is called with each result as it comes, by any thread."""

    def __init__(self, fleet: FleetFile, told: Callable[[Result], None]) -> None:
        self._fleet = fleet
        self._told = told
        self._stopped = threading.Event()
        self._ways: dict[Action, Callable[[Step], str]] = {
            Action.ADD: self._add,
            Action.UPDATE: self._update,
            Action.INSTALL: self._install,
            Action.PULL: self._pull,
            Action.PIN: lambda step: self._pin(step, pinned=True),
            Action.UNPIN: lambda step: self._pin(step, pinned=False),
            Action.RESTART: self._restart,
            Action.DECLARE: self._declare,
            Action.UNDECLARE: self._undeclare,
            Action.REMOVE_MODEL: self._remove_model,
            Action.REMOVE_NODE: self._remove_node,
        }

    def run(self, steps: Sequence[Step], at_once: int) -> list[Result]:
        """Every step's result, in the order of the steps; at most ``at_once`` nodes at a time.

        Workers are restarted one after the other once every node is set up: none of a node that is not, and none after
        one that did not come up. Nothing is removed unless all before it was done. Ctrl+C lets steps that run end, and
        begins none.
        """
        results: list[Result] = []
        lanes: dict[str, list[Step]] = {}
        for step in steps:
            if step.node is not None and step.action is not Action.RESTART and not step.action.removes:
                lanes.setdefault(step.node, []).append(step)
        inside = scope()

        def lane(of_node: list[Step]) -> list[Result]:
            with inside():
                return self._in_order(of_node)

        with ThreadPoolExecutor(at_once, thread_name_prefix="node") as threads:
            running: list[Future[list[Result]]] = [threads.submit(lane, of_node) for of_node in lanes.values()]
            try:
                for one in running:
                    results += one.result()
            except BaseException:
                self._stopped.set()
                say("broken off: steps that run are brought to their end")
                raise
        results += self._restarts([step for step in steps if step.action is Action.RESTART], results)
        results += [self._take(step) for step in steps if step.action is Action.DECLARE]
        whole = all(result.outcome is Outcome.DONE for result in results)
        removals = [step for step in steps if step.action.removes]
        return results + [self._take(step) if whole else self._leave(step) for step in removals]

    def _in_order(self, steps: Sequence[Step]) -> list[Result]:
        results: list[Result] = []
        for step in steps:
            go_on = not self._stopped.is_set() and all(one.outcome is Outcome.DONE for one in results)
            results.append(self._take(step) if go_on else self._leave(step))
        return results

    def _restarts(self, steps: Sequence[Step], before: Sequence[Result]) -> list[Result]:
        undone = {result.step.node for result in before if result.outcome is not Outcome.DONE}
        results: list[Result] = []
        for step in steps:
            go_on = step.node not in undone and all(one.outcome is not Outcome.FAILED for one in results)
            results.append(self._take(step) if go_on else self._leave(step))
        return results

    def _leave(self, step: Step) -> Result:
        result = Result(step, Outcome.LEFT, told="not tried, because of what failed before it")
        self._told(result)
        return result

    def _take(self, step: Step) -> Result:
        began = time.monotonic()
        try:
            told = step.obstacle or self._ways[step.action](step)
            outcome = Outcome.FAILED if step.obstacle else Outcome.DONE
        except RbeeError as error:
            told, outcome = f"{error.message} ({error.code})", Outcome.FAILED
        result = Result(step, outcome, round(time.monotonic() - began, 3), told)
        self._told(result)
        return result

    # the ways

    def _add(self, step: Step) -> str:
        node = enlist.add(step.subject, self._wanted(step.subject), confirm=_nobody, tell=_teller(step.subject))
        return f"{node.status.value}, addresses {', '.join(node.details.addresses)}"

    def _update(self, step: Step) -> str:
        known = queen.one(step.subject)
        enlist.update(known, self._wanted(step.subject), confirm=_nobody, tell=_teller(step.subject))
        return ""

    def _install(self, step: Step) -> str:
        name = step.subject
        wanted = self._fleet.machines[name]
        node = queen.one(name)
        steps = Steps(tell=_teller(name))
        with reach.connect(node, tell=_teller(name)) as ssh:
            plan = install.plan_of(node, wanted.packages or None, wanted.keyring, wanted.hive.keys())
            install.install(Root(ssh), plan, steps)
        return ", ".join(one.name for one in steps.done if one.changed)

    def _pull(self, step: Step) -> str:
        with PullScreen(terminal=False, tell=_teller(step.node or "")) as screen:
            last = session.run(models.pull(Place(step.node), PullRequest(step.subject, None, copy=True), screen))
        return size(last.bytes_total)

    def _pin(self, step: Step, *, pinned: bool) -> str:
        path = f"models/{parse(step.subject).model_id}/pin"
        session.run(Place(step.node).call("PUT", path, ModelRow, body=Pin(pinned)))
        return ""

    def _restart(self, step: Step) -> str:
        node = queen.one(step.node or "")
        with reach.connect(node, tell=_teller(node.details.name)) as ssh:
            root = Root(ssh)

            async def order() -> None:
                unit = f"rbee-worker@{step.subject}.service"
                await asyncio.to_thread(root.run, ["systemctl", "try-restart", "--no-block", "--", unit])

            ran = session.run(lifecycle.begin_anew(session.queen(), step.subject, node.details.name, order))
        return "" if ran else "it had ended meanwhile"

    def _declare(self, step: Step) -> str:
        session.run(_put(step.subject, self._fleet.declarations[step.subject]))
        return ""

    def _undeclare(self, step: Step) -> str:
        session.run(_delete(step.subject))
        return ""

    def _remove_model(self, step: Step) -> str:
        answer = session.run(Place(step.node).call("DELETE", f"models/{step.subject}", Removed))
        return f"{size(answer.freed_bytes)} freed"

    def _remove_node(self, step: Step) -> str:
        queen.remove(step.subject)
        return "its credentials count no longer"

    def _wanted(self, name: str) -> enlist.Wanted:
        node = self._fleet.machines[name]
        return enlist.Wanted(
            node.host,
            node.port,
            node.user,
            None if node.key is None else Path(node.key),
            node.host_key,
            tuple(node.addresses or ()),
            node.packages or None,
            node.tls,
        )


def _teller(name: str) -> Callable[[str], None]:
    return lambda line: say(f"{name}: {line.strip()}")


def _nobody(host: str, print_of: str) -> bool:
    """Nobody is asked about a host key while several nodes are at work: it is named in the file, or known."""
    return False


def _declaration(model: str) -> str:
    return f"/v2/declarations/{quote(model, safe='/')}"


async def _put(model: str, declared: DeclaredModel) -> Declaration:
    async with session.queen() as daemon:
        return await daemon.call("PUT", _declaration(model), Declaration, body=declared)


async def _delete(model: str) -> None:
    async with session.queen() as daemon:
        try:
            await daemon.send("DELETE", _declaration(model), timeout_s=session.settings().timeout_s)
        except (TimeoutError, aiohttp.ClientError):
            raise ConnectionTimeout(
                f"the queen does not answer at {daemon.place.label}", details={"unit": daemon.place.unit}
            ) from None
