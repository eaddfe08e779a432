"""The bench `scale`: a thousand hives with ten workers each at one queen, on loopback, and requests among them."""

import time
from dataclasses import asdict

from tests.behaviour.support.http import Http
from tests.behaviour.support.stack import Stack
from tests.bench import alone
from tests.bench.quantiles import median
from tests.bench.report import Bench, Figure, Measured, Target
from tests.bench.swarm import Orders

HIVES, WORKERS = 1000, 10
INTERVAL_S = 5.0
CHANGE_EVERY = 12
ROUNDS, QUICK_ROUNDS = 6, 2
WINDOW_S = 8.0
REQUESTS, QUICK_REQUESTS = 8000, 1600
CONVERSATIONS = 97
_ROUTE = "queen_rbee_route_seconds"


def _window(stack: Stack, pid: int) -> dict[str, float]:
    """CPU that heartbeats alone cost in one window."""
    beats = stack.admin.metric("queen_rbee_heartbeats_total")
    before, began = alone.cpu_ns(pid), time.monotonic()
    time.sleep(WINDOW_S)
    used_ns, took_s = alone.cpu_ns(pid) - before, time.monotonic() - began
    came = stack.admin.metric("queen_rbee_heartbeats_total") - beats
    return {"cpu_cores": used_ns / 1e9 / took_s, "beats_per_s": came / took_s, "cpu_us": used_ns / 1e3 / max(1.0, came)}


def _requests(stack: Stack, count: int) -> None:
    """Requests of conversations that come back, one after another, among the heartbeats."""
    client = Http(stack.queen_url, stack.tokens["api_token"])
    for number in range(count):
        words = f"conversation {number % CONVERSATIONS} " * 40
        body = {"model": f"model-{number % WORKERS}", "messages": [{"role": "user", "content": words}]}
        answer = client.post("/v1/chat/completions", body)
        assert answer.status == 200, answer.body


def measure(quick: bool) -> Measured:
    """Start a queen and the swarm, let it settle, and look at her."""
    rounds, requests = (QUICK_ROUNDS, QUICK_REQUESTS) if quick else (ROUNDS, REQUESTS)
    with alone.queen() as stack, alone.program("fake_worker", "100000", "0.001") as port:
        assert stack.queen is not None
        pid = stack.queen.pid
        url = f"http://127.0.0.1:{port}"
        token = stack.tokens["hive_callback_token"]
        orders = Orders(stack.queen_url, token, url, HIVES, WORKERS, INTERVAL_S, CHANGE_EVERY)
        with alone.program("swarm", stdin=alone.as_json(asdict(orders))):
            time.sleep(INTERVAL_S)  # each hive has opened its session and has its own moment
            known = stack.admin.metric("queen_rbee_workers", state="idle")
            assert known == HIVES * WORKERS, f"{known:g} workers are known"
            windows = [_window(stack, pid) for _ in range(rounds)]
            before = stack.admin.get("/metrics").body.decode()
            _requests(stack, requests)
            after = stack.admin.get("/metrics").body.decode()
            memory = alone.rss_mb(pid)
            sweep = stack.admin.metric("queen_rbee_hives", state="stale")
            assert not sweep, f"{sweep:g} hives were taken for silent"
    p50, p99 = (alone.bucket_quantile(before, after, _ROUTE, share) for share in (0.5, 0.99))
    found = {
        "heartbeat_cpu_cores": median(each["cpu_cores"] for each in windows),
        "heartbeat_cpu_us": median(each["cpu_us"] for each in windows),
        "heartbeats_per_s": median(each["beats_per_s"] for each in windows),
        "route_p50_us": None if p50 is None else p50 * 1e6,
        "route_p99_us": None if p99 is None else p99 * 1e6,
        "queen_rss_mb": memory,
        "hives": float(HIVES),
        "workers": float(HIVES * WORKERS),
    }
    return Measured(found, list(windows))


FIGURES = (
    Figure("heartbeat_cpu_cores", "cores", "CPU of the queen while only hives speak, sessions open", Target("<=", 0.5)),
    Figure("heartbeat_cpu_us", "us", "the same for each heartbeat"),
    Figure("heartbeats_per_s", "1/s", "heartbeats that came, one in 12 with a change"),
    Figure("route_p99_us", "us", "CPU time of a choice among 1000, upper edge of its bucket", Target("<=", 100)),
    Figure("route_p50_us", "us", "the same at p50"),
    Figure("queen_rss_mb", "MB", "resident memory of the queen at the end", Target("<=", 250)),
    Figure("hives", "", "simulated hives, each with its session and its heartbeat every 5 s"),
    Figure("workers", "", "workers that they report"),
)

BENCH = Bench("scale", "A thousand simulated hives with ten workers each, one queen, on loopback.", FIGURES, measure)
