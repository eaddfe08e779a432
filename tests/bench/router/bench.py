"""Rounds in which the routers take turns, one load and one fake worker for all, and the figures of them."""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.quantiles import median, minus, ratio
from tests.bench.report import CHECKOUT, Bench, Figure, Measured, Target
from tests.bench.router import servers
from tests.bench.router.load import Found, Load, LoadFailed
from tests.machines.testbed import native

CONNECTIONS, STREAMS = 16, 8
EVENTS, PACE_MS = 10, 2.0
STREAM_MODEL = "stream"
DIRECT, QUEEN, VLLM, NGINX, LITELLM = "direct", "queen", "vllm_router", "nginx", "litellm"
ROUNDS, QUICK_ROUNDS = 9, 3
ONE_S, MANY_S, STREAM_S = 2, 3, 3
QUICK_S = 1
"""wrk counts in whole seconds."""
_PROMPT = {"role": "user", "content": "Say three words about the sea, and be brief about it."}


def _body(model: str, **more: object) -> bytes:
    return json.dumps({"model": model, "messages": [_PROMPT], "max_tokens": 16, "temperature": 0, **more}).encode()


WHOLE = _body(servers.MODEL)


@dataclass(frozen=True, slots=True)
class Round:
    """One round, by server: one connection, many, and streams of answers."""

    one: dict[str, Found]
    many: dict[str, Found]
    streams: dict[str, Found]


def _cores() -> tuple[list[str], list[str]]:
    """Commands that pin: the routers to one core, load and fake worker to another; nothing where there is one core."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return [], []
    return ["taskset", "-c", str(cores[0])], ["taskset", "-c", str(cores[1])]


class Street:
    """The servers that run, by name: their addresses for whole answers, and for streams."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path, router: Sequence[str], rest: Sequence[str]) -> None:
        self._stack = stack
        self._folder = folder
        self._router = router
        self._rest = rest
        self.pids: dict[str, int] = {}
        self.whole: dict[str, str] = {}
        self.streams: dict[str, str] = {}

    def _run(self, name: str, argv: list[str], port: int, *, body: bytes = WHOLE, beside: bool = False) -> str:
        pinned = self._rest if beside else self._router
        env = {"PYTHONPATH": f"{CHECKOUT / 'daemons'}:{CHECKOUT}", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        server = self._stack.enter_context(servers.process([*pinned, *argv], self._folder / f"{name}.log", env))
        url = f"http://127.0.0.1:{port}"
        servers.wait_answer(url, body, server)
        self.pids[url] = server.pid
        return url

    def open_all(self) -> None:
        """Start them all; a router that cannot be had here is left out."""
        worker, streams, queen, proxy = (servers.free_port() for _ in range(4))
        http = servers.FAKE_WORKER.format(port=worker, answer=servers.ANSWER, models=servers.MODELS)
        self.whole[DIRECT] = self._run("worker", servers.nginx(self._folder / "worker", http), worker, beside=True)
        fake = ["python", "-m", "tests.bench.router.fake_streams", str(streams), str(EVENTS), str(PACE_MS)]
        self.streams[DIRECT] = self._run("streams", fake, streams, beside=True)
        self._open_queen(queen)
        http = servers.PROXY.format(port=proxy, to=worker)
        self.whole[NGINX] = self._run(NGINX, servers.nginx(self._folder / "proxy", http), proxy)
        vllm, litellm = _program("vllm-router"), _program("litellm")
        if vllm is not None:
            for kind, to in ((self.whole, worker), (self.streams, streams)):
                port = servers.free_port()
                self._open(kind, VLLM, servers.vllm_router(port, to, vllm), port)
        if litellm is not None:
            port = servers.free_port()
            self._open(self.whole, LITELLM, servers.litellm(self._folder / LITELLM, port, worker, litellm), port)

    def _open_queen(self, port: int) -> None:
        folder = self._folder / "queen"
        argv = [*self._router, *servers.queen(folder, port)]
        env = {"PYTHONPATH": str(native.folder())}
        server = self._stack.enter_context(servers.process(argv, self._folder / "queen.log", env))
        url = f"http://127.0.0.1:{port}"
        servers.wait_listening(url, server)
        self.pids[url] = server.pid
        servers.register(url, servers.MODEL, self.whole[DIRECT])
        servers.register(url, STREAM_MODEL, self.streams[DIRECT])
        self.whole[QUEEN] = self.streams[QUEEN] = url

    def _open(self, kind: dict[str, str], name: str, argv: list[str], port: int) -> None:
        try:
            kind[name] = self._run(name, argv, port)
        except AssertionError as error:
            print(f"{name}: left out: {error}", flush=True)


def _program(name: str) -> Path | None:
    venv = servers.venv(f"bench-{name}")
    if venv is None:
        print(f"{name}: cannot be installed here, its figures are left out", flush=True)
        return None
    return venv / "bin" / name


@contextlib.contextmanager
def _street() -> Iterator[tuple[Street, Load]]:
    router, rest = _cores()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rbee-bench-")))
        street = Street(stack, folder, router, rest)
        street.open_all()
        yield street, Load(folder, servers.TOKEN, rest)


def _loads(
    load: Load,
    street: Street,
    addresses: Mapping[str, str],
    body: Callable[[str], bytes],
    connections: int,
    seconds: int,
) -> dict[str, Found]:
    """One load on each server in turn; a reference that answers nothing, or with errors, is left out of the round."""
    found: dict[str, Found] = {}
    for name, url in addresses.items():
        try:
            found[name] = load.run(url, body(name), connections, seconds, street.pids[url])
        except LoadFailed as error:
            if name in (DIRECT, QUEEN):
                raise
            print(f"{name}: left out of a round: {error}", flush=True)
    return found


def _round(street: Street, load: Load, quick: bool) -> Round:
    one_s, many_s, stream_s = (QUICK_S,) * 3 if quick else (ONE_S, MANY_S, STREAM_S)
    alone = {name: url for name, url in street.whole.items() if name != LITELLM or not quick}
    many = {name: url for name, url in street.whole.items() if name != DIRECT}
    return Round(
        _loads(load, street, alone, lambda name: WHOLE, 1, one_s),
        _loads(load, street, many, lambda name: WHOLE, CONNECTIONS, many_s),
        _loads(load, street, street.streams, _streamed, STREAMS, stream_s),
    )


def _streamed(name: str) -> bytes:
    return _body(STREAM_MODEL if name == QUEEN else servers.MODEL, stream=True)


def measure(quick: bool) -> Measured:
    """Start the servers, warm them, and let them take turns."""
    with _street() as (street, load):
        _loads(load, street, street.whole, lambda name: WHOLE, CONNECTIONS, QUICK_S)
        rounds = [_round(street, load, quick) for _ in range(QUICK_ROUNDS if quick else ROUNDS)]
    metrics: dict[str, float | None] = {"rounds": float(len(rounds)), "cores": float(len(os.sched_getaffinity(0)))}
    for name in (QUEEN, VLLM, NGINX, LITELLM):
        metrics[f"{_prefix(name)}added_p50_ms"] = _added([found.one for found in rounds], name)
        metrics[f"{name}_requests_per_s"] = median(
            found.many[name].per_second for found in rounds if name in found.many
        )
        metrics[f"{name}_cpu_us"] = median(found.many[name].cpu_us for found in rounds if name in found.many)
    for name in (VLLM, NGINX, LITELLM):
        metrics[f"vs_{name}"] = median(
            value for found in rounds if name in found.many
            and (value := ratio(found.many[QUEEN].per_second, found.many[name].per_second)) is not None
        )  # fmt: skip
    streams = [found.streams for found in rounds]
    metrics["sse_added_p50_ms"] = _added(streams, QUEEN)
    metrics["sse_added_p99_ms"] = _added(streams, QUEEN, lambda found: found.p99_ms)
    metrics["vllm_router_sse_added_p50_ms"] = _added(streams, VLLM)
    return Measured(metrics, [asdict(found) for found in rounds])


def _prefix(name: str) -> str:
    return "" if name == QUEEN else f"{name}_"


def _added(
    rounds: Sequence[Mapping[str, Found]], name: str, of: Callable[[Found], float] = lambda found: found.p50_ms
) -> float | None:
    """The median over the rounds of what ``name`` adds to the worker alone in the same round."""
    added = [minus(of(found[name]), of(found[DIRECT])) for found in rounds if name in found]
    return median(value for value in added if value is not None)


FIGURES = (
    Figure("added_p50_ms", "ms", "one connection: p50 of the queen less p50 of the worker alone", Target("<=", 0.5)),
    Figure("vs_vllm_router", "", "16 connections: requests a second, queen / vllm-router (Rust)", Target(">=", 1)),
    Figure("vs_nginx", "", "the same, queen / nginx as a plain proxy", Target(">=", 0.5)),
    Figure("vs_litellm", "", "the same, queen / LiteLLM", Target(">=", 20)),
    Figure(
        "sse_added_p50_ms", "ms", "8 streams of 10 events 2 ms apart: what the queen adds an answer", Target("<=", 1)
    ),
    Figure("sse_added_p99_ms", "ms", "the same at p99: a stall of 40 ms on a reused connection would show"),
    Figure("vllm_router_sse_added_p50_ms", "ms", "what vllm-router adds to the same streams, p50"),
    Figure("vllm_router_added_p50_ms", "ms", "one connection: what vllm-router adds"),
    Figure("nginx_added_p50_ms", "ms", "one connection: what nginx adds"),
    Figure("litellm_added_p50_ms", "ms", "one connection: what LiteLLM adds (not in a quick run)"),
    Figure("queen_requests_per_s", "", "16 connections"),
    Figure("vllm_router_requests_per_s", "", "16 connections"),
    Figure("nginx_requests_per_s", "", "16 connections"),
    Figure("litellm_requests_per_s", "", "16 connections"),
    Figure("queen_cpu_us", "us", "16 connections: CPU time a request, user and system, all threads"),
    Figure("vllm_router_cpu_us", "us", "the same of vllm-router"),
    Figure("nginx_cpu_us", "us", "the same of nginx"),
    Figure("litellm_cpu_us", "us", "the same of LiteLLM"),
    Figure("rounds", "", "rounds, the routers taking turns in each; figures are medians over them"),
    Figure("cores", "", "of the host: every router has the first to itself, wrk and the fake worker share the second"),
)

BENCH = Bench(
    "router",
    "What the queen, as her package has her, costs between client and worker: wrk, a fake worker, one core a router.",
    FIGURES,
    measure,
)
