"""The bench `fleet`: bare machines become nodes by three commands; models that no node has are asked for."""

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TypeVar

from tests.behaviour.support.fleet import MODEL, SHARED, Json
from tests.behaviour.support.http import Http
from tests.behaviour.support.three_nodes import CROWD, NAMES, ThreeNodes, three_bare_machines
from tests.bench.quantiles import median, minus
from tests.bench.report import Bench, Figure, Measured, Metrics, Target
from tests.machines.testbed import debs, project, wait_until
from tests.machines.testbed.debs import apt
from tests.machines.testbed.processes import exchange

T = TypeVar("T")
HERE = f"{MODEL}-here"
"""The same model under another name, of a worker on the queen's own machine."""
COLD, QUICK_COLD = 3, 1
WARM, QUICK_WARM = 400, 100
WARM_UP = 20
CLIENTS = 10
LIMIT_S = 120.0
_QUEEN_PORT = 8080


@dataclass(frozen=True, slots=True)
class Cold:
    """A request for a model that no node has, in seconds that follow one another, until the first word is here.

    The source is asked; the worker's unit begins to start; it is READY=1; the first word reaches the client.
    """

    placed_s: float
    fetched_s: float
    started_s: float
    answered_s: float

    @property
    def whole_s(self) -> float:
        """The request sent until the first word of its answer."""
        return self.placed_s + self.fetched_s + self.started_s + self.answered_s


@dataclass(frozen=True, slots=True)
class Warm:
    """A request for a model that runs: its whole time past the connection, and the queen's own part; both in ms."""

    took_ms: float
    overhead_ms: float


def measure(quick: bool) -> Measured:
    """Set the fleet up and ask it: first, again, cold, as a crowd, and warm beside a worker of the queen's machine."""
    release = debs.RELEASES[-1]
    with three_bare_machines(release, debs.repositories(release)) as fleet:
        metrics = _three_commands(fleet) | _again(fleet)
        colds = [_cold(fleet, f"late-{number}") for number in range(QUICK_COLD if quick else COLD)]
        metrics |= _of_cold(colds) | _crowd(fleet)
        metrics["model_mb"] = sum(map(len, fleet.source.folders[MODEL].values())) / 1e6
        there, here = _warm(fleet, QUICK_WARM if quick else WARM)
    return Measured(metrics | _of_warm(there, here), [asdict(cold) for cold in colds])


def _timed(act: Callable[..., T], *arguments: object) -> tuple[T, float]:
    began = time.monotonic()
    return act(*arguments), time.monotonic() - began


# from bare machines


def _three_commands(fleet: ThreeNodes) -> Metrics:
    """The first node, from a bare machine to a streamed answer; the others then, beside one another."""
    first, *rest = NAMES
    _, added = _timed(fleet.add, first, fleet.nodes[first])
    installed, took = _timed(_install, fleet, first)
    said, answered = _timed(fleet.infer)
    assert f"worker {first}/" in said, said
    with ThreadPoolExecutor(len(rest)) as pool:
        list(pool.map(fleet.set_up_node, rest))
    steps = {f"install_{step['name'].replace(' ', '_')}_s": step["seconds"] for step in installed["steps"]}
    return {
        "node_add_s": added,
        "node_install_s": took,
        "infer_s": answered,
        "three_commands_s": added + took + answered,
        **steps,
    }


def _install(fleet: ThreeNodes, name: str) -> Json:
    return fleet.json("node", "install", name, "--packages", SHARED)


def _again(fleet: ThreeNodes) -> Metrics:
    """Each node is installed a second time."""
    rounds = [_timed(_install, fleet, name) for name in NAMES]
    changed = [step["name"] for found, _ in rounds for step in found["steps"] if step["changed"]]
    return {"again_s": median(took for _, took in rounds), "again_changed": float(len(changed))}


# models that no node has


def _cold(fleet: ThreeNodes, model: str) -> Cold:
    fleet.offer(model, MODEL)
    fleet.declare(model)
    client = Http(lambda limit_s: fleet.queen.connect(_QUEEN_PORT, limit_s), _token(fleet), LIMIT_S)
    sent = time.monotonic()
    with client.stream("POST", "/v1/completions", _body(model) | {"stream": True}) as stream:
        assert stream.status == 200, stream.read()
        answered = next(event.at for event in stream if event.data.startswith(b"{") and event.json["choices"])
        list(stream)
    ((node, row),) = fleet.serving(model).items()
    unit = fleet.nodes[node].unit(f"rbee-worker@{row['worker_id']}.service")
    begun, ready = (int(unit[f"{stamp}TimestampMonotonic"]) / 1e6 for stamp in ("InactiveExit", "ActiveEnter"))
    asked = min(seen.at for seen in fleet.source.seen if seen.path.startswith(f"/{model}/"))
    return Cold(asked - sent, begun - asked, ready - begun, answered - ready)


def _of_cold(colds: list[Cold]) -> Metrics:
    """The parts are those of the round in the middle, so that they add up."""
    middle = sorted(colds, key=lambda cold: cold.whole_s)[len(colds) // 2]
    return {"cold_s": middle.whole_s, **{f"cold_{part}": value for part, value in asdict(middle).items()}}


def _crowd(fleet: ThreeNodes) -> Metrics:
    """Clients that ask at once for a model that no node has, until the last one is answered."""
    starts, began = len(fleet.starts()), time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(lambda _: fleet.ask(CROWD, timeout=LIMIT_S), range(CLIENTS)))
    took = time.monotonic() - began
    fetched = Counter(seen.path for seen in fleet.source.requests("") if seen.path.startswith(f"/{CROWD}/"))
    return {
        "crowd_s": took,
        "crowd_failed": float(sum(answer.status != 200 for answer in answers)),
        "crowd_fetches": float(max(fetched.values())),
        "crowd_starts": float(len(fleet.starts()) - starts),
    }


# models that run


def _warm(fleet: ThreeNodes, count: int) -> tuple[list[Warm], list[Warm]]:
    """Requests in turns to a remote node's worker and to one on the queen's machine, of one client."""
    _have_worker_here(fleet)
    turns = itertools.cycle((MODEL, HERE))
    asked = [_ask(fleet, model) for model, _ in zip(turns, range(2 * (WARM_UP + count)), strict=False)]
    kept = asked[2 * WARM_UP :]
    return kept[::2], kept[1::2]


def _have_worker_here(fleet: ThreeNodes) -> None:
    """Make the queen's machine one that has everything: her hive on loopback, and a worker."""
    queen = fleet.queen
    folder = f"{SHARED}/pool/{queen.release}"
    apt(queen, "install", *_debs(fleet, folder))
    queen.write("/etc/rbee/hive.yaml", json.dumps({"queen": {"callback_url": f"http://127.0.0.1:{_QUEEN_PORT}"}}))
    queen.run(["cp", "-r", f"/srv/demo/{project.MODELS}/{MODEL}", f"/var/lib/rbee/models/{HERE}"])
    queen.write("/etc/rbee/workers/here.yaml", json.dumps({"model": f"/var/lib/rbee/models/{HERE}"}))
    queen.systemctl("restart", "rbee-hive.socket", "rbee-hive.service")
    queen.systemctl("start", "rbee-worker@here.service")
    wait_until(lambda: any(row["state"] == "idle" for row in fleet.serving(HERE).values()), "the worker here", 60)


def _debs(fleet: ThreeNodes, folder: str) -> Iterator[str]:
    for name in ("rbee-hive", "rbee-worker"):
        (path,) = fleet.queen.path(folder).glob(f"{name}_*.deb")
        yield f"{folder}/{path.name}"


def _ask(fleet: ThreeNodes, model: str) -> Warm:
    body = json.dumps(_body(model)).encode()
    headers = {"Authorization": f"Bearer {_token(fleet)}", "Content-Type": "application/json"}
    connected = fleet.queen.connect(_QUEEN_PORT, LIMIT_S)
    began = time.monotonic()
    answer = exchange(connected, "POST", "/v1/completions", host="localhost", headers=headers, body=body)
    took = time.monotonic() - began
    assert answer.status == 200, answer.text
    return Warm(took * 1e3, float(answer.headers["x-rbee-overhead-ms"]))


def _body(model: str) -> dict[str, Json]:
    return {"model": model, "prompt": "bees", "max_tokens": 1}


def _token(fleet: ThreeNodes) -> str:
    return fleet.queen.read("/etc/credstore/rbee-queen.api_token").strip()


def _of_warm(there: list[Warm], here: list[Warm]) -> Metrics:
    took, took_here = (median(one.took_ms for one in found) for found in (there, here))
    overhead, overhead_here = (median(one.overhead_ms for one in found) for found in (there, here))
    return {
        "warm_ms": took,
        "warm_here_ms": took_here,
        "warm_added_ms": minus(took, took_here),
        "overhead_ms": overhead,
        "overhead_here_ms": overhead_here,
        "overhead_added_ms": minus(overhead, overhead_here),
    }


FIGURES = (
    Figure("three_commands_s", "s", "a bare machine with sshd until the answer of a model on it: three commands"),
    Figure("node_add_s", "s", "of these rbee node add: SSH proven, host key pinned, saved"),
    Figure("node_install_s", "s", "of these rbee node install, which tells its steps:"),
    Figure("install_ssh_s", "s", "the connection"),
    Figure("install_packages_s", "s", "the packages copied and installed by apt"),
    Figure("install_credentials_s", "s", "tokens, a key and its certificate"),
    Figure("install_configuration_s", "s", "files and drop-ins of units"),
    Figure("install_start_s", "s", "the hive's units"),
    Figure("install_first_report_s", "s", "until the queen has the hive's report"),
    Figure("infer_s", "s", "of these rbee infer: the model placed, fetched, verified, started, asked"),
    Figure("again_s", "s", "rbee node install a second time, the middle one of three nodes"),
    Figure("again_changed", "", "steps that changed anything then, on all three", Target("=", 0)),
    Figure("model_mb", "MB", "the files of such a model"),
    Figure("cold_s", "s", "a request for a model that no node has until its first word, of which:"),
    Figure("cold_placed_s", "s", "until the model's source is asked: the nodes looked at, one chosen and told"),
    Figure("cold_fetched_s", "s", "until the worker's unit begins: each file fetched and verified, put in place"),
    Figure("cold_started_s", "s", "until READY=1"),
    Figure("cold_answered_s", "s", "until the first word is at the client"),
    Figure("crowd_s", "s", f"{CLIENTS} clients ask at once for a model that no node has, until all are answered"),
    Figure("crowd_failed", "", "of them without an answer", Target("=", 0)),
    Figure("crowd_fetches", "", "times that a file of it was fetched", Target("=", 1)),
    Figure("crowd_starts", "", "workers that were started, on all nodes", Target("=", 1)),
    Figure("warm_ms", "ms", "a request of one token to a remote node's worker by mutual TLS, p50"),
    Figure("warm_here_ms", "ms", "the same to a worker of the queen's machine, in turns"),
    Figure("warm_added_ms", "ms", "the difference", Target("<=", 0.5), "warm_here_ms"),
    Figure("overhead_ms", "ms", "the queen's own part of a request to the remote node, p50"),
    Figure("overhead_here_ms", "ms", "the same on one machine"),
    Figure("overhead_added_ms", "ms", "the difference", Target("<=", 0.1), "overhead_here_ms"),
)

BENCH = Bench("fleet", "A queen and three nodes on real machines, set up by the command over SSH.", FIGURES, measure)
