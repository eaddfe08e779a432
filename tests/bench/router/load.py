"""wrk as the load, and what it found."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.router import cpu

SCRIPT = """
wrk.method = "POST"
wrk.path = "/v1/chat/completions"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer " .. os.getenv("BENCH_TOKEN")
wrk.body = os.getenv("BENCH_BODY")
done = function(summary, latency, requests)
  io.write(string.format('\\nRESULT {"requests": %d, "took_us": %d, "p50_us": %d, "p99_us": %d, "failed": %d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status
      + summary.errors.timeout))
end
"""
MOST_FAILED = 0.001
"""Share of requests that may fail; a figure of a server that sends errors is none."""


@dataclass(frozen=True, slots=True)
class Found:
    """One load: requests a second, latencies in ms, and CPU time of the server a request in microseconds."""

    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


class LoadFailed(AssertionError):
    """Requests failed: there is no figure."""


class Load:
    """Posts one body over kept connections; ``pinned`` is a command that puts wrk on its core."""

    def __init__(self, folder: Path, token: str, pinned: Sequence[str]) -> None:
        self._script = folder / "load.lua"
        self._script.write_text(SCRIPT)
        self._token = token
        self._pinned = pinned

    def run(self, url: str, body: bytes, connections: int, seconds: int, pid: int) -> Found:
        """Load ``url``, served by ``pid``, for some seconds; raises LoadFailed where requests fail."""
        argv = [*self._pinned, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(self._script), url]
        environment = {"BENCH_TOKEN": self._token, "BENCH_BODY": body.decode(), "PATH": "/usr/bin:/bin"}
        before = cpu.spent_us(pid)
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=seconds + 30, check=True)
        line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
        if line is None:
            raise LoadFailed(f"wrk said nothing of what it did: {done.stderr[-300:]}")
        result = json.loads(line.removeprefix("RESULT "))
        if not result["requests"] or result["failed"] > MOST_FAILED * result["requests"]:
            raise LoadFailed(f"{result['failed']} of {result['requests']} requests failed at {url}")
        spent = (cpu.spent_us(pid) - before) / result["requests"]
        per_second = result["requests"] / result["took_us"] * 1e6
        return Found(per_second, result["p50_us"] / 1000, result["p99_us"] / 1000, spent)
