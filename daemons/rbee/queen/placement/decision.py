"""Where a worker starts: a pure decision from facts of the nodes, with the numbers behind it for each of them."""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from rbee.wire.declarations import Strategy
from rbee.wire.worker_spec import Backend

HOTTEST_C = 80
"""A GPU above this many degrees Celsius takes no further worker."""


class Obstacle(enum.StrEnum):
    """Why a worker cannot start on a node or a device of it."""

    BACKEND = "backend"
    DEVICE = "device"
    TOO_HOT = "too_hot"
    VRAM = "vram"
    RAM = "ram"
    DISK = "disk"


class Basis(enum.StrEnum):
    """What a need of memory rests on."""

    MEASURED = "measured"
    FILES = "files"
    NOTHING = "nothing"


def memory_of(size_bytes: int) -> int:
    """Bytes of memory that a worker of a model with files of ``size_bytes`` takes."""
    return -(-size_bytes * 6 // 5)


def memory_again(peak_bytes: int) -> int:
    """Bytes that a worker takes of which one like it had ``peak_bytes`` at its start: keys and values come later."""
    return -(-peak_bytes * 11 // 10)


@dataclass(frozen=True, slots=True)
class Need:
    """What a worker asks for.

    ``size_bytes`` is that of the model's files, None where nobody knows it yet; ``labels`` are a node's. ``slots`` and
    ``settings`` (a report's ``memory_settings``) tell with what else it runs, ``measured_bytes`` what one like it had
    at its last start, None where none has started.
    """

    model_ref: str
    backend: Backend
    device: int | None = None
    size_bytes: int | None = None
    strategy: Strategy = Strategy.SPREAD
    labels: frozenset[str] = frozenset()
    slots: int = 4
    settings: str = ""
    measured_bytes: int | None = None

    @property
    def required_bytes(self) -> int | None:
        """Memory for weights, keys and values, and workspace: 1.1 times what was measured, else 1.2 times the files."""
        if self.measured_bytes is not None:
            return memory_again(self.measured_bytes)
        return None if self.size_bytes is None else memory_of(self.size_bytes)

    @property
    def basis(self) -> Basis:
        """What the memory that is required rests on."""
        if self.measured_bytes is not None:
            return Basis.MEASURED
        return Basis.NOTHING if self.size_bytes is None else Basis.FILES


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU: its index, the memory in bytes that nobody uses or was promised, degrees Celsius where known."""

    index: int
    free_bytes: int
    temperature_c: int | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A machine as placement sees it; memory (bytes) is what nobody uses or was promised.

    ``backends`` are those that really start there. ``has_model``: the files are on its disk. ``workers`` are those
    that run or load there, ``replicas`` those of this very model. ``answers`` is False where its hive did not say
    what it has on its disk.
    """

    name: str
    ram_free_bytes: int
    disk_free_bytes: int
    devices: tuple[Device, ...] = ()
    backends: frozenset[Backend] = frozenset({Backend.CPU})
    has_model: bool = False
    workers: int = 0
    replicas: int = 0
    answers: bool = True


class Option(msgspec.Struct, frozen=True, omit_defaults=True):
    """One place that was looked at: bytes that are needed and there are, and what speaks against it, if anything."""

    node: str
    device: int | None = None
    required_bytes: int | None = None
    available_bytes: int = 0
    has_model: bool = False
    workers: int = 0
    replicas: int = 0
    answers: bool = True
    temperature_c: int | None = None
    obstacle: Obstacle | None = None


class Decision(msgspec.Struct, frozen=True):
    """Where a worker starts, None where it fits nowhere, and every place that was looked at.

    ``required_bytes`` rest on ``basis``; ``size_bytes`` are the model's files, None where nobody knew them.
    """

    model_ref: str
    backend: Backend
    strategy: Strategy
    required_bytes: int | None
    chosen: Option | None
    options: tuple[Option, ...]
    basis: Basis = Basis.NOTHING
    size_bytes: int | None = None


def decide(need: Need, nodes: Sequence[Node]) -> Decision:
    """The best place for a worker: of those without an obstacle the first in the order of the strategy."""
    options = tuple(option for node in nodes for option in _options(need, node))
    fitting = [option for option in options if option.obstacle is None]
    chosen = min(fitting, key=lambda option: _order(need, option), default=None)
    return Decision(
        need.model_ref, need.backend, need.strategy, need.required_bytes, chosen, options, need.basis, need.size_bytes
    )  # fmt: skip


def _options(need: Need, node: Node) -> Iterator[Option]:
    if need.backend not in node.backends:
        yield _option(need, node, None, 0, Obstacle.BACKEND)
    elif need.backend is Backend.CPU:
        obstacle = Obstacle.DEVICE if need.device else _short(need, node.ram_free_bytes, Obstacle.RAM)
        yield _option(need, node, None, node.ram_free_bytes, obstacle)
    else:
        devices = [device for device in node.devices if need.device in (None, device.index)]
        if not devices:
            yield _option(need, node, None, 0, Obstacle.DEVICE)
        for device in devices:
            hot = device.temperature_c is not None and device.temperature_c > HOTTEST_C
            obstacle = Obstacle.TOO_HOT if hot else _short(need, device.free_bytes, Obstacle.VRAM)
            yield _option(need, node, device, device.free_bytes, obstacle)


def _short(need: Need, available_bytes: int, obstacle: Obstacle) -> Obstacle | None:
    """``obstacle`` where the memory is known not to be enough: what nobody knows the size of is tried."""
    required = need.required_bytes
    return obstacle if required is not None and required > available_bytes else None


def _option(need: Need, node: Node, device: Device | None, available: int, obstacle: Obstacle | None) -> Option:
    required = need.required_bytes
    fetched = 0 if node.has_model or need.size_bytes is None else need.size_bytes
    if obstacle is None and fetched > max(0, node.disk_free_bytes):
        required, available, obstacle = fetched, node.disk_free_bytes, Obstacle.DISK
    index, temperature = (None, None) if device is None else (device.index, device.temperature_c)
    return Option(
        node.name, index, required, available, node.has_model, node.workers, node.replicas, node.answers, temperature,
        obstacle,
    )  # fmt: skip


Order = tuple[bool, int, bool, int, int, str, int]


def _order(need: Need, option: Option) -> Order:
    """Less is better: hives that answer; apart from other replicas; where the model is; then the strategy; names last.

    Packing wants a known need: without one the place with the most memory is the least likely to fail.
    """
    packs = need.strategy is Strategy.PACK and need.required_bytes is not None
    crowd, memory = (0, option.available_bytes) if packs else (option.workers, -option.available_bytes)
    apart = 0 if packs else option.replicas
    return (not option.answers, apart, not option.has_model, crowd, memory, option.node, option.device or 0)
