"""What is collected to make room: the least recently used, never more than is needed, never what is spared."""

from hypothesis import given
from hypothesis import strategies as st

from rbee.hive.models.collector import Plan, Space, plan_room
from rbee.wire.model_messages import ModelRow
from rbee.wire.model_reference import Provider


def row(name: str, size: int, used: float, *, pinned: bool = False, owned: bool = True) -> ModelRow:
    return ModelRow(name, Provider.HF, f"hf:o/{name}", f"/m/{name}", size, "", 0.0, used, pinned, owned)


def removed(plan: Plan) -> list[str]:
    return [each.id for each in plan.remove]


def test_nothing_goes_where_there_is_room() -> None:
    assert plan_room([row("a", 50, 1)], [], 40, Space(free=100, reserve=10, budget=100)) == Plan()


def test_the_least_recently_used_goes_first_and_no_more_than_needed() -> None:
    rows = [row("new", 30, 3), row("old", 30, 1), row("middle", 30, 2)]
    assert removed(plan_room(rows, [], 40, Space(free=1000, reserve=0, budget=100))) == ["old"]
    assert removed(plan_room(rows, [], 41, Space(free=1000, reserve=0, budget=100))) == ["old", "middle"]


def test_pinned_used_and_foreign_models_stay() -> None:
    rows = [row("pinned", 30, 1, pinned=True), row("used", 30, 2), row("foreign", 30, 3, owned=False), row("x", 30, 4)]
    assert removed(plan_room(rows, ["used"], 40, Space(free=1000, reserve=0, budget=100))) == ["x"]


def test_a_plan_that_would_not_suffice_removes_nothing_and_says_how_much_is_lacking() -> None:
    rows = [row("a", 30, 1), row("b", 60, 2, pinned=True)]
    assert plan_room(rows, [], 80, Space(free=1000, reserve=0, budget=100)) == Plan(lacking=40)
    assert plan_room(rows, [], 80, Space(free=50, reserve=10)) == Plan(lacking=40)


ROWS = st.lists(
    st.builds(
        row,
        st.uuids().map(lambda each: each.hex),
        st.integers(0, 100),
        st.floats(0, 10),
        pinned=st.booleans(),
        owned=st.booleans(),
    ),
    max_size=12,
)


@given(ROWS, st.integers(0, 400), st.integers(0, 400), st.integers(0, 50), st.integers(1, 500))
def test_a_plan_makes_room_or_removes_nothing(
    rows: list[ModelRow], needed: int, free: int, reserve: int, budget: int
) -> None:
    plan = plan_room(rows, [], needed, Space(free, reserve, budget))
    assert all(each.owned and not each.pinned for each in plan.remove)
    if plan.lacking:
        assert plan.remove == ()
        return
    kept = sum(each.size_bytes for each in rows if each.owned) - plan.freed
    assert kept + needed <= budget
    assert free + plan.freed - needed >= reserve
    if plan.remove:
        without_last = plan.freed - plan.remove[-1].size_bytes
        assert kept + plan.freed - without_last + needed > budget or free + without_last - needed < reserve
