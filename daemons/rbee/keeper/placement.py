"""Whether the queen can be trusted with a request that is bound to a node, a backend or a device."""

from collections.abc import Sequence
from dataclasses import dataclass

from rbee.keeper.client import Daemon
from rbee.keeper.failure import CommandFailed
from rbee.wire.errors import ModelNotFound, NodeNotFound
from rbee.wire.messages import WorkerReport
from rbee.wire.nodes import NodeList


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where a request may run; None leaves it open."""

    node: str | None = None
    backend: str | None = None
    device: int | None = None

    @property
    def given(self) -> bool:
        """Whether anything is bound at all."""
        return (self.node, self.backend, self.device) != (None, None, None)

    def hold(self, worker: WorkerReport) -> bool:
        """Whether ``worker`` lies within."""
        return (
            self.node in (None, worker.hive_id)
            and self.backend in (None, worker.backend and worker.backend.value)
            and self.device in (None, worker.device)
        )


def node_unknown(name: str) -> NodeNotFound:
    """The error of a node that is not in the registry, with the command that adds it."""
    return NodeNotFound(
        f"there is no node {name} in the registry: add it with 'rbee node add {name} --host ADDRESS'",
        details={"node": name},
    )


async def check_node(queen: Daemon, workers: Sequence[WorkerReport], node: str | None) -> None:
    """Raise NodeNotFound for a node that the queen does not know and whose hive reports no worker."""
    if node is None or any(worker.hive_id == node for worker in workers):
        return
    listing = await queen.call("GET", "/v2/registry/beehives/list", NodeList)
    if all(known.details.name != node for known in listing.nodes):
        raise node_unknown(node)


def check(workers: Sequence[WorkerReport], model: str, bounds: Bounds) -> None:
    """Raise unless each worker that the queen may choose for ``model`` lies within ``bounds``.

    The queen places a request on any worker of its model; a bound that she might break is refused, never ignored.
    """
    of_model = [worker for worker in workers if model in (worker.model, worker.model_ref)]
    within = [worker for worker in of_model if bounds.hold(worker)]
    if not within:
        raise ModelNotFound(
            "no worker of that model lies within --node, --backend and --device: see 'rbee worker list', start one with"
            " 'rbee worker spawn'",
            details={"model": model, "workers": len(of_model)},
        )
    outside = [worker for worker in of_model if worker not in within]
    if outside:
        raise CommandFailed(
            f"the queen could choose {outside[0].hive_id}/{outside[0].worker_id} as well, which lies outside --node,"
            f" --backend and --device: ask the wanted worker itself with --worker-url {within[0].url or 'URL'}"
        )
