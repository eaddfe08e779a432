"""Small decisions: how a duration reads, which versions fit, what to cancel."""

import pytest

from rbee.keeper import inference, placement, versions
from rbee.keeper.failure import CommandFailed
from rbee.keeper.openai import cosine
from rbee.keeper.placement import Bounds
from rbee.keeper.text import duration, printable, size
from rbee.wire.errors import ModelNotFound, VersionMismatch
from rbee.wire.messages import WorkerReport, WorkerState
from rbee.wire.worker_spec import Backend

ID = "0b9ee3f0-5ab2-4c5d-9fd4-3ad0c1e9f111"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.44, "0.4 s"), (12.2, "12 s"), (185, "3 min 5 s"), (7440, "2 h 4 min"), (262800, "3 d 1 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(("count", "words"), [(512, "512 B"), (1536, "1.5 KiB"), (3 << 40, "3.0 TiB")])
def test_sizes(count: int, words: str) -> None:
    assert size(count) == words


def test_printable_keeps_text_and_drops_what_a_terminal_obeys() -> None:
    assert printable("é\tfine\n") == "é\tfine\n"
    assert printable("a\x1b[2Jb\rc\x9bd") == "a[2Jbcd"


@pytest.mark.parametrize(
    ("ours", "theirs", "fit"),
    [("0.1.0", "0.1.9", True), ("0.1.0", "0.2.0", False), ("1.2.0", "1.9.0", True), ("1.0.0", "2.0.0", False)],
)
def test_versions(ours: str, theirs: str, fit: bool) -> None:
    assert versions.fits(ours, theirs) is fit


def test_another_api_does_not_fit_either() -> None:
    with pytest.raises(VersionMismatch):
        versions.check("hive", "rbee-hive", ours="0.1.0", theirs="0.1.0", our_api="v1", their_api="v2")


@pytest.mark.parametrize(
    ("ids", "path"),
    [
        ({"task_id": ID, "request_id": ID}, f"/v2/tasks/{ID}"),
        ({"request_id": ID}, f"/v1/inference/{ID}"),
        ({"request_id": "../../secret"}, None),
        ({"task_id": 7}, None),
        ({}, None),
    ],
)
def test_what_is_cancelled(ids: dict[str, object], path: str | None) -> None:
    assert inference.cancel_path("/v1/inference", ids) == path


def test_cosine() -> None:
    assert cosine([1.0, 0.0], [2.0, 0.0]) == pytest.approx(1.0)
    assert cosine([1.0, 0.0], [0.0, 3.0]) == 0.0
    assert cosine([0.0], [0.0]) == 0.0


def worker(hive: str, backend: Backend = Backend.CPU, device: int = 0) -> WorkerReport:
    return WorkerReport("w", hive, "b", 1, WorkerState.IDLE, model="m", backend=backend, device=device)


def test_bounds_that_the_queen_cannot_break_are_accepted() -> None:
    placement.check([worker("one"), worker("one")], "m", Bounds(node="one", backend="cpu", device=0))


def test_bounds_without_a_worker_within_are_refused() -> None:
    for bounds in (Bounds(node="two"), Bounds(backend="cuda"), Bounds(device=1)):
        with pytest.raises(ModelNotFound):
            placement.check([worker("one")], "m", bounds)


def test_bounds_that_the_queen_could_break_are_refused() -> None:
    with pytest.raises(CommandFailed, match="two/w"):
        placement.check([worker("one"), worker("two")], "m", Bounds(node="one"))
