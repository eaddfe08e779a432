"""The bench `footprint`: what a worker's start costs above the bare runtime, and what the daemons hold and burn."""

import json
from pathlib import Path
from typing import Any

from tests.behaviour.support.house import House
from tests.bench import place, usage
from tests.bench.quantiles import median, minus
from tests.bench.report import Bench, Figure, Measured, Metrics, Target

MODELS = ("tiny-tensor", "all-minilm-l6-v2")
RESIDENT = "all-minilm-l6-v2"
ROUNDS, QUICK_ROUNDS = 15, 7
COMERS, QUICK_COMERS = 20, 4
IDLE_S, QUICK_IDLE_S = 30.0, 10.0
_PROGRAM = Path(__file__).with_name("inside") / "starts.py"
_PLACE = "/run/bench/starts.py"


def _starts(house: House, rounds: int) -> list[dict[str, Any]]:
    """Both starts of each model, in turns, on the machine without anything else of rbee's running."""
    house.machine.write(_PLACE, _PROGRAM.read_text())
    for model in MODELS:
        house.define_worker(f"start-{model}", model)
    command = [usage.PYTHON, _PLACE, str(rounds), *MODELS]
    said = house.machine.run(command, timeout=600).stdout
    for model in MODELS:
        house.machine.path(f"/etc/rbee/workers/start-{model}.yaml").unlink()
    return [json.loads(line) for line in said.splitlines()]


def _start_figures(rounds: list[dict[str, Any]]) -> Metrics:
    found: Metrics = {}
    for model in MODELS:
        name = model.replace("-", "_")
        mine = [each for each in rounds if each["model"] == model]
        worker, bare = (median(each[key] for each in mine) for key in ("worker_ms", "bare_ms"))
        found[f"worker_start_{name}_ms"], found[f"bare_start_{name}_ms"] = worker, bare
        found[f"start_overhead_{name}_ms"] = minus(worker, bare)
    overheads = [found[f"start_overhead_{model.replace('-', '_')}_ms"] for model in MODELS]
    found["start_overhead_ms"] = max((each for each in overheads if each is not None), default=None)
    return found


def _come_and_go(house: House, workers: int) -> None:
    """Workers that start, five at a time, answer one request and stop."""
    for first in range(0, workers, 5):
        members = [f"comer-{number}" for number in range(first, min(first + 5, workers))]
        for member in members:
            house.define_worker(member, RESIDENT, name=member)
        house.machine.systemctl("start", *(f"rbee-worker@{member}" for member in members))
        for member in members:
            house.wait_state(member, "idle", "busy")
            _embed(house, member)
        house.machine.systemctl("stop", *(f"rbee-worker@{member}" for member in members))
        for member in members:
            house.wait_state(member, "stopped")


def _embed(house: House, model: str) -> None:
    answer = house.admin.post("/v1/embeddings", {"model": model, "input": "bees"})
    assert answer.status == 200, f"/v1/embeddings answered {answer.status}: {answer.body!r}"


def _at_rest(house: House, seconds: float) -> Metrics:
    """Memory and idle CPU of the daemons and of one worker that has answered."""
    house.run_worker("resident", RESIDENT)
    _embed(house, RESIDENT)
    units = {"queen": "rbee-queen.service", "hive": "rbee-hive.service", "worker": "rbee-worker@resident.service"}
    pids = {name: usage.main_pid(house.machine, unit) for name, unit in units.items()}
    found: Metrics = {}
    for name, percent in usage.cpu_percent(house.machine, pids, seconds).items():
        found[f"{name}_idle_cpu_percent"] = percent
    for name, pid in pids.items():
        memory = usage.memory(house.machine, pid)
        found[f"{name}_rss_mb"], found[f"{name}_pss_mb"] = memory.rss_mb, memory.pss_mb
    return found


def measure(quick: bool) -> Measured:
    """Boot a machine; time starts first, then let workers come and go, then look at what is left."""
    with place.house() as house:
        rounds = _starts(house, QUICK_ROUNDS if quick else ROUNDS)
        house.start()
        _come_and_go(house, QUICK_COMERS if quick else COMERS)
        at_rest = _at_rest(house, QUICK_IDLE_S if quick else IDLE_S)
    return Measured(_start_figures(rounds) | at_rest, rounds)


FIGURES = (
    Figure("start_overhead_ms", "ms", "a worker's start above the bare one, the worse model's", Target("<=", 300)),
    Figure("start_overhead_tiny_tensor_ms", "ms", "of the tiny tensor model"),
    Figure("worker_start_tiny_tensor_ms", "ms", "process started until READY=1"),
    Figure("bare_start_tiny_tensor_ms", "ms", "Python started, import, session, first run"),
    Figure("start_overhead_all_minilm_l6_v2_ms", "ms", "of the embedding model"),
    Figure("worker_start_all_minilm_l6_v2_ms", "ms", "process started until READY=1"),
    Figure("bare_start_all_minilm_l6_v2_ms", "ms", "Python started, import, session, first run"),
    Figure("queen_rss_mb", "MB", "resident memory after workers came and went", Target("<=", 80)),
    Figure("queen_pss_mb", "MB", "the same, shared pages divided among their users"),
    Figure("hive_rss_mb", "MB", "resident memory after workers came and went", Target("<=", 60)),
    Figure("hive_pss_mb", "MB", "the same, shared pages divided among their users"),
    Figure("worker_rss_mb", "MB", "resident memory of the embedding worker"),
    Figure("worker_pss_mb", "MB", "the same, shared pages divided among their users"),
    Figure("worker_idle_cpu_percent", "%", "of one core, a worker that has nothing to do"),
    Figure("hive_idle_cpu_percent", "%", "of one core, with one idle worker"),
    Figure("queen_idle_cpu_percent", "%", "of one core, with one hive"),
)  # fmt: skip

BENCH = Bench(
    "footprint",
    "What a worker's start costs above the bare runtime, and what the daemons hold and burn.",
    FIGURES,
    measure,
)
