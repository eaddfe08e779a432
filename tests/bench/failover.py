"""The bench `failover`: three workers as real units under steady load, of which one at a time is killed or stopped."""

import itertools
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from rbee.wire.messages import WorkerFacts, decode_json
from tests.behaviour.support.house import House
from tests.bench import place, usage
from tests.bench.arrivals import Arrivals
from tests.bench.events import READY, EventFeed, Seen
from tests.bench.quantiles import quantile
from tests.bench.readiness import INPUTS
from tests.bench.report import Bench, Figure, Measured, Metrics, Target

MODEL = "tiny-tensor"
WORKERS = ("one", "two", "three")
PATH = f"/v2/models/{MODEL}/infer"
RATE = 50.0
SLOTS = 4
KILLS, QUICK_KILLS = 15, 4
STOPS, QUICK_STOPS = 9, 3
CALM_S = 0.5
_KILL = "import os, sys, time; os.kill(int(sys.argv[1]), 9); print(time.monotonic_ns() // 1000)"


@dataclass(frozen=True, slots=True)
class Shot:
    """One request: when it was sent (CLOCK_MONOTONIC, s), its status (0: no answer), and how long it took in ms."""

    sent: float
    status: int
    took_ms: float


class Steady:
    """Requests at a constant rate for the length of a block, each in a thread and on a connection of its own."""

    def __init__(self, house: House) -> None:
        self._queen = house.admin
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="steady load", daemon=True)
        self._shots: list[Future[Shot]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        began = time.monotonic()
        with ThreadPoolExecutor(32) as pool:
            for number in itertools.count():
                if self._stop.wait(max(0.0, began + number / RATE - time.monotonic())):
                    return
                self._shots.append(pool.submit(self._shoot))

    def _shoot(self) -> Shot:
        sent = time.monotonic()
        try:
            status = self._queen.post(PATH, INPUTS).status
        except OSError:
            status = 0
        return Shot(sent, status, (time.monotonic() - sent) * 1000)

    def between(self, first: float, last: float) -> list[Shot]:
        """The requests that were sent in a span of time, all of them answered."""
        return [shot for shot in (each.result() for each in list(self._shots)) if first <= shot.sent <= last]


@dataclass(frozen=True, slots=True)
class Round:
    """One worker's end and return under load; times in ms."""

    worker: str
    killed: bool
    requests: int
    failed: int
    last_sent_after_death: float
    ready_to_first_request: float
    slowest: float


class Failover:
    """Rounds on one house."""

    def __init__(self, house: House, feed: EventFeed, arrivals: Arrivals, load: Steady) -> None:
        self._house = house
        self._feed = feed
        self._arrivals = arrivals
        self._load = load

    def round(self, worker: str, *, kill: bool) -> Round:
        """End a worker, see it back, and count what the load met from a moment before to a moment after."""
        unit = f"rbee-worker@{worker}.service"
        row = self._house.rows()[worker]
        port, life = urlsplit(row["url"]).port, row["invocation_id"]
        assert port is not None
        time.sleep(CALM_S)
        began, place_in_feed = time.monotonic(), self._feed.now()
        ended_us = self._kill(unit) if kill else self._stop(unit)

        def is_back(seen: Seen) -> bool:
            return seen.worker == worker and seen.state in READY and seen.invocation_id != life

        self._feed.wait(place_in_feed, is_back, f"{worker} is back")
        ready_us = self._facts(worker).ready_monotonic_us
        new_port = urlsplit(self._house.rows()[worker]["url"]).port
        first_us = self._arrivals.first_after(ready_us, port=new_port)
        time.sleep(CALM_S)
        shots = self._load.between(began - CALM_S, time.monotonic())
        late = self._arrivals.between(ended_us, ready_us, port)
        return Round(
            worker,
            kill,
            len(shots),
            sum(shot.status != 200 for shot in shots),
            max(((at - ended_us) / 1000 for at in late), default=0.0),
            (first_us - ready_us) / 1000,
            max(shot.took_ms for shot in shots),
        )

    def _kill(self, unit: str) -> int:
        pid = usage.main_pid(self._house.machine, unit)
        return int(self._house.machine.run([usage.PYTHON, "-I", "-c", _KILL, str(pid)]).stdout)

    def _stop(self, unit: str) -> int:
        self._house.machine.systemctl("stop", unit)
        ended_us = time.monotonic_ns() // 1000
        time.sleep(CALM_S)
        self._house.machine.systemctl("start", unit)
        return ended_us

    def _facts(self, worker: str) -> WorkerFacts:
        path = f"/run/rbee/workers/{worker}/worker.json"
        return decode_json(self._house.machine.read(path).encode(), WorkerFacts)


def measure(quick: bool) -> Measured:
    """Boot a machine with three workers of one model; kill them in turn, then stop them in turn, under load."""
    kills, stops = (QUICK_KILLS, QUICK_STOPS) if quick else (KILLS, STOPS)
    with place.house() as house:
        for worker in WORKERS:
            house.define_worker(worker, MODEL, slots=SLOTS)
        house.start()
        with EventFeed(house.machine) as feed:
            for worker in WORKERS:
                house.start_worker(worker)
                house.wait_state(worker, *READY)
            beginning = f"POST {PATH} ".encode()
            with Arrivals(house.machine, beginning, connects=True) as arrivals, Steady(house) as load:
                bench = Failover(house, feed, arrivals, load)
                turns = itertools.cycle(WORKERS)
                rounds = [bench.round(next(turns), kill=True) for _ in range(kills)]
                rounds += [bench.round(next(turns), kill=False) for _ in range(stops)]
        retries = sum(house.admin.metric("queen_rbee_retries_total", reason=why) for why in ("unreachable", "refused"))
    return Measured(_figures(rounds) | {"retries": retries}, [asdict(each) for each in rounds])


def _figures(rounds: list[Round]) -> Metrics:
    killed = [each for each in rounds if each.killed]
    stopped = [each for each in rounds if not each.killed]
    back = [each.ready_to_first_request for each in rounds]
    return {
        "failed_requests_kill": float(sum(each.failed for each in killed)),
        "failed_requests_stop": float(sum(each.failed for each in stopped)),
        "last_sent_after_death_ms": max(each.last_sent_after_death for each in killed),
        "ready_to_first_request_p50_ms": quantile(back, 0.5),
        "ready_to_first_request_max_ms": max(back),
        "requests": float(sum(each.requests for each in rounds)),
        "slowest_request_ms": max(each.slowest for each in rounds),
        "kills": float(len(killed)),
        "stops": float(len(stopped)),
    }


FIGURES = (
    Figure("failed_requests_kill", "", "requests that failed while workers got SIGKILL", Target("=", 0)),
    Figure("failed_requests_stop", "", "requests that failed while workers were stopped", Target("=", 0)),
    Figure("last_sent_after_death_ms", "ms", "the latest try at a dead worker, by its port", Target("<=", 100)),
    Figure("ready_to_first_request_p50_ms", "ms", "READY=1 until the first request is there", Target("<=", 50)),
    Figure("ready_to_first_request_max_ms", "ms", "the same, at worst"),
    Figure("slowest_request_ms", "ms", "the slowest answer, tries anew included"),
    Figure("requests", "", "requests in all, 50 a second"),
    Figure("retries", "", "requests that were placed anew"),
    Figure("kills", "", "times that one of three workers was killed"),
    Figure("stops", "", "times that one of three workers was stopped and started"),
)

BENCH = Bench(
    "failover", "One of three workers is killed, or stopped, at a time under 50 requests a second.", FIGURES, measure
)
