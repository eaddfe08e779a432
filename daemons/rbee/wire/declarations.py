"""Models that are declared: what a queen is told of one that requests may name before any worker has it."""

import enum
from typing import Annotated

import msgspec
from msgspec import Meta

from rbee.wire.messages import HiveId
from rbee.wire.warm_times import FORM, PATTERN, parse_window
from rbee.wire.worker_spec import Backend, Task

ModelName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}\Z")]
MOST_WINDOWS = 16
WarmTime = Annotated[str, Meta(max_length=128, description=FORM, extra_json_schema={"pattern": PATTERN})]


class Strategy(enum.StrEnum):
    """Whether workers go where the fewest run, or where they leave the least memory unused."""

    SPREAD = "spread"
    PACK = "pack"


class Replacement(enum.StrEnum):
    """What becomes of a changed declaration whose worker has no room beside those of the former one."""

    AVAILABILITY = "availability"
    PROGRESS = "progress"


class Replicas(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How many workers of a model are kept running, and how many there may be while requests wait."""

    min: Annotated[int, Meta(ge=0, le=64)] = 0
    max: Annotated[int, Meta(ge=1, le=64)] = 1

    def __post_init__(self) -> None:
        """Raise ValueError, which becomes the file's error, for more at least than at most."""
        if self.min > self.max:
            raise ValueError(f"min is {self.min} and max is {self.max}: max is at least min")


class DeclaredModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A model that requests may name before any worker has it: the first of them starts one, where it fits best.

    ``reference`` is where it comes from. ``node`` pins its worker to a hive, ``device`` to a GPU; null lets the queen
    choose; ``labels`` are those that its node has to have. ``placement``: spread takes the node with the fewest
    workers, pack the one with the least memory that is enough. ``idle_limit_s``: null means 300, or the hive's own
    limit where that is shorter, 0 never; workers up to ``replicas.min`` have none. ``replacement``: where a worker of a
    changed declaration fits only in the memory of a former one, that ends first while another one serves
    (availability), or even where none does (progress). ``warm``: windows in which ``replicas.min`` workers, one at
    least, are kept; outside of them none is.
    """

    reference: Annotated[str, Meta(min_length=1, max_length=4096)]
    task: Task = Task.AUTO
    backend: Backend = Backend.CPU
    device: Annotated[int, Meta(ge=0, le=63)] | None = None
    slots: Annotated[int, Meta(ge=1, le=256)] = 4
    idle_limit_s: Annotated[float, Meta(ge=0)] | None = None
    node: HiveId | None = None
    labels: list[Annotated[str, Meta(min_length=1, max_length=63)]] = []
    placement: Strategy = Strategy.SPREAD
    replicas: Replicas = Replicas()
    replacement: Replacement = Replacement.AVAILABILITY
    warm: Annotated[list[WarmTime], Meta(max_length=MOST_WINDOWS)] = []

    def __post_init__(self) -> None:
        """Raise ValueError, which becomes the error of file or body, for windows that nobody can read or keep."""
        for number, text in enumerate(self.warm):
            try:
                parse_window(text)
            except ValueError as error:
                raise ValueError(f"warm[{number}]: {error}") from None
        if self.warm and self.idle_limit_s == 0:
            raise ValueError(
                "warm: with an idle_limit_s of 0 no worker ever ends for idleness: leave warm out, or let it end"
            )


class DeclaredBy(enum.StrEnum):
    """Whose word a declaration is: the queen's configuration, or who stored it by her API."""

    FILE = "queen.yaml"
    API = "api"


class Declaration(msgspec.Struct, frozen=True):
    """One declared model in force. One of queen.yaml wins over one that was stored."""

    model: str
    declaration: DeclaredModel
    declared_by: DeclaredBy


class DeclarationList(msgspec.Struct, frozen=True):
    """GET /v2/declarations, by name."""

    declarations: list[Declaration]
