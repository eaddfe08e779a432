"""Queen, hive and worker named alike: where each listens, which token it takes, how it starts alone, what it logs."""

import http.client
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from tests.behaviour.support.http import Answer, Http
from tests.behaviour.support.processes import DaemonProcess
from tests.behaviour.support.stack import Stack

DAEMONS = ("queen", "hive", "worker")
WORKER = "tiny"
ACCEPTED = {"queen": "api_token", "hive": "hive_api_token", "worker": "worker_api_token"}
"""The token that each daemon wants of its callers."""
TENSOR = {
    "inputs": [
        {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]},
        {"name": "shift", "shape": [1, 1], "datatype": "INT64", "data": [7]},
    ]
}
"""What tiny-tensor takes, at /v2/models/tiny-tensor/infer."""


def url_of(stack: Stack, daemon: str) -> str:
    """The TCP address of a daemon of a running stack (the worker is the one named WORKER)."""
    return {"queen": stack.queen_url, "hive": stack.hive_url}.get(daemon) or str(stack.row(WORKER)["url"])


def caller(stack: Stack, daemon: str, token: str | None = None) -> Http:
    """A caller of a daemon by TCP who presents ``token``, or nothing."""
    return Http(url_of(stack, daemon), token)


def process_of(stack: Stack, daemon: str) -> DaemonProcess:
    """The process whose log has the daemon's lines: a worker's come through its hive's."""
    process = stack.queen if daemon == "queen" else stack.hive
    assert process is not None
    return process


def wait_record(stack: Stack, daemon: str, *words: str, limit_s: float = 10.0) -> str:
    """Wait for the daemon's log line that has all ``words``."""
    return process_of(stack, daemon).wait_log(
        lambda line: f" {daemon}: " in line and all(word in line for word in words), limit_s
    )


def records(stack: Stack, daemon: str, *words: str) -> list[str]:
    """The daemon's log lines so far that have all ``words``."""
    lines = list(process_of(stack, daemon).log)
    return [line for line in lines if f" {daemon}: " in line and all(word in line for word in words)]


def whole_log(stack: Stack) -> str:
    """Everything that the daemons wrote so far."""
    return "\n".join(process.text for process in (stack.queen, stack.hive) if process is not None)


def start_alone(
    stack: Stack,
    daemon: str,
    *,
    flags: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    through: Sequence[str] = (),
) -> DaemonProcess:
    """Start one daemon with the stack's files and do not wait; ``through`` is a command that runs it.

    A worker runs as a process of its own here, with the definition that the stack has of it. The caller ends it.
    """
    stack.write_queen_config()
    stack.write_hive_config()
    stack.write_worker_defaults()
    config = str(stack.config_dir / f"{daemon}.yaml")
    folders = ["--config-dir", stack.config_dir, "--state-dir", stack.state_dir, "--run-dir", stack.run_dir]
    arguments = ["--id", WORKER, *map(str, folders)] if daemon == "worker" else ["--config", config]
    return DaemonProcess([*through, sys.executable, "-m", f"rbee.{daemon}.main", *arguments, *flags], env)


def all_at_once(calls: Sequence[tuple[Http, str, str, object]]) -> list[Answer]:
    """Make every call (caller, method, path, body) at the same time and return the answers in order."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(lambda call: call[0].call(call[1], call[2], call[3]), calls))


class Clock:
    """A kept-alive connection on which requests are timed."""

    def __init__(self, url: str, path: str, authorization: str | None) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        self._path = path
        self._headers = {} if authorization is None else {"Authorization": authorization}

    def time(self, status: int) -> float:
        """Seconds that one request took; fails where its status is another."""
        began = time.perf_counter()
        self._connection.request("GET", self._path, headers=self._headers)
        response = self._connection.getresponse()
        response.read()
        took = time.perf_counter() - began
        assert response.status == status, response.status
        return took

    def close(self) -> None:
        self._connection.close()


def interleaved(clocks: Sequence[tuple[Clock, int]], rounds: int, each: int) -> list[list[list[float]]]:
    """For each clock (with the status it expects), ``rounds`` lists of ``each`` times, the clocks taking turns.

    What disturbs the machine disturbs all of them alike; the median over the rounds forgets the rest.
    """
    times: list[list[list[float]]] = [[] for _ in clocks]
    for _ in range(rounds):
        taken: list[list[float]] = [[] for _ in clocks]
        for _ in range(each):
            for mine, (clock, status) in zip(taken, clocks, strict=True):
                mine.append(clock.time(status))
        for all_rounds, mine in zip(times, taken, strict=True):
            all_rounds.append(mine)
    return times


def typical_difference(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> float:
    """How far the two medians of a round are apart, as a part of the smaller one; the median over the rounds."""
    pairs = [(statistics.median(a), statistics.median(b)) for a, b in zip(first, second, strict=True)]
    return abs(statistics.median((a - b) / min(a, b) for a, b in pairs))
