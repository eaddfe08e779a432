"""Which models go to make room: by last use, under a disk budget; pinned and used ones stay. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rbee.wire.model_messages import ModelRow


@dataclass(frozen=True, slots=True)
class Space:
    """The disk as it is, in bytes: what is free, what must stay free, and the budget of fetched models (None: none)."""

    free: int
    reserve: int
    budget: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to remove, in this order, and how many bytes are lacking even then."""

    remove: tuple[ModelRow, ...] = ()
    lacking: int = 0

    @property
    def freed(self) -> int:
        """Bytes that the removals free."""
        return sum(row.size_bytes for row in self.remove)


def plan_room(rows: Sequence[ModelRow], in_use: Collection[str], needed: int, space: Space) -> Plan:
    """How to make room for ``needed`` more bytes.

    Models are removed only where a budget is set: it is the operator's word that the store may collect. ``in_use``
    holds ids. A plan that would not suffice removes nothing.
    """
    owned = [row for row in rows if row.owned]
    over_disk = needed + space.reserve - space.free
    over_budget = 0 if space.budget is None else sum(row.size_bytes for row in owned) + needed - space.budget
    lacking = max(over_disk, over_budget, 0)
    if lacking == 0 or space.budget is None:
        return Plan(lacking=lacking)
    spared = [row for row in owned if not row.pinned and row.id not in in_use]
    remove: list[ModelRow] = []
    for row in sorted(spared, key=lambda row: (row.last_used_unix, row.id)):
        if lacking <= 0:
            break
        remove.append(row)
        lacking -= row.size_bytes
    return Plan(tuple(remove)) if lacking <= 0 else Plan(lacking=lacking)
