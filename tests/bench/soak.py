"""The bench `soak`: a worker's memory over many requests, some of them cancelled, and some left by their clients."""

import asyncio
import json
import random
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from tests.behaviour.support.http import Http, until
from tests.bench import decoders
from tests.bench.alone import rss_mb
from tests.bench.lone_worker import TOKEN, Cores, serving
from tests.bench.report import Bench, Figure, Measured, Target

REQUESTS, QUICK_REQUESTS = 20_000, 2_000
WARM_UP, QUICK_WARM_UP = 2_000, 1_000
LOOKS = 10
CLIENTS, SLOTS, QUEUE = 12, 8, 64
PREFIX_CACHE_MB = 4
"""Full long before the first look: what grows after that is no cache."""
_LIMIT_S = 60.0
_ROUTE = "/v1/inference"


class Way(Enum):
    """How a request ends."""

    WHOLE = "answered whole"
    STREAMED = "streamed to its end"
    LEFT_AT_ONCE = "its client leaves before an answer"
    LEFT = "its client leaves in the middle of the stream"
    CANCELLED = "cancelled by its id in the middle of the stream"


_MIX = (Way.WHOLE, Way.WHOLE, Way.STREAMED, Way.STREAMED, Way.LEFT_AT_ONCE, Way.LEFT, Way.LEFT, Way.CANCELLED)


class Client:
    """One client's connections, and what it asks next; ``chance`` makes the same mixture each time."""

    def __init__(self, port: int, chance: random.Random) -> None:
        self._port = port
        self._chance = chance
        self._kept: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def one(self, request_id: str) -> Way:
        """Ask once, in one of the ways; returns which. Raises AssertionError for a refusal."""
        way = self._chance.choice(_MIX)
        reader, writer = self._kept or await asyncio.open_connection("127.0.0.1", self._port)
        self._kept = None
        writer.write(self._asking(request_id, streamed=way is not Way.WHOLE))
        match way:
            case Way.LEFT_AT_ONCE:
                await asyncio.sleep(self._chance.random() * 0.004)
            case Way.LEFT:
                await _head(reader)
            case Way.CANCELLED:
                await _head(reader)
                await self._cancel(request_id)
                await reader.readuntil(b"0\r\n\r\n")
            case Way.STREAMED:
                await _head(reader)
                await reader.readuntil(b"0\r\n\r\n")
            case Way.WHOLE:
                await reader.readexactly(await _head(reader))
        if way in (Way.LEFT, Way.LEFT_AT_ONCE):
            writer.transport.abort()
        else:
            self._kept = reader, writer
        return way

    async def close(self) -> None:
        """Close the connection that is kept."""
        if self._kept is not None:
            self._kept[1].close()
            await self._kept[1].wait_closed()

    def _asking(self, request_id: str, *, streamed: bool) -> bytes:
        words = self._chance.choice((3, 20, 80, 200))
        body = {
            "prompt": " ".join(f"w{self._chance.randrange(1, 250)}" for _ in range(words)),
            "max_tokens": self._chance.randrange(1, 17),
            "temperature": self._chance.choice((0.0, 1.0)),
            "ignore_eos": True,
            "stream": streamed,
        }
        return _message("POST", _ROUTE, json.dumps(body).encode(), request_id)

    async def _cancel(self, request_id: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(_message("DELETE", f"{_ROUTE}/{request_id}", b"", str(uuid.uuid4())))
        assert b" 204 " in await reader.readline()
        writer.close()
        await writer.wait_closed()


def _message(method: str, path: str, body: bytes, request_id: str) -> bytes:
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"X-Request-Id: {request_id}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _head(reader: asyncio.StreamReader) -> int:
    """The head of an answer that is 200; the length of its body, 0 where it does not say."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert head.startswith(b"http/1.1 200"), f"the worker answered {head!r}"
    return int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)


async def _many(port: int, numbers: Iterator[int], chance: random.Random) -> Counter[Way]:
    ways: Counter[Way] = Counter()

    async def client() -> None:
        mine = Client(port, chance)
        for number in numbers:
            async with asyncio.timeout(_LIMIT_S):
                ways[await mine.one(str(uuid.UUID(int=number)))] += 1
        await mine.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return ways


def _look(pid: int, requests: int, ways: Counter[Way]) -> dict[str, Any]:
    threads, files = (sum(1 for _ in Path(f"/proc/{pid}/{name}").iterdir()) for name in ("task", "fd"))
    return {
        "requests": requests,
        "rss_mb": rss_mb(pid),
        "threads": threads,
        "files": files,
        **{way.name.lower(): ways[way] for way in Way},
    }


def soaked(port: int, pid: int, warm_up: int, requests: int, idle: Callable[[], bool]) -> list[dict[str, Any]]:
    """Looks at the worker after the warm-up and after each tenth of the requests, each when nothing runs any more."""
    chance = random.Random(11)  # noqa: S311 - a load
    looks = []
    done, ways = 0, Counter[Way]()
    for part in (warm_up, *[requests // LOOKS] * LOOKS):
        ways += asyncio.run(_many(port, iter(range(done, done + part)), chance))
        done += part
        until(idle, limit_s=30)
        looks.append(_look(pid, done - warm_up, ways))
    return looks


def measure(quick: bool) -> Measured:
    """One worker of a tiny decoder, which is asked as often as the time allows."""
    cores = Cores.split()
    with tempfile.TemporaryDirectory(prefix="rbee-bench-") as folder:
        model = decoders.build(Path(folder) / "tiny", decoders.TINY, "fp32")
        options = {"slots": SLOTS, "queue": QUEUE, "prefix_cache_mb": PREFIX_CACHE_MB}
        with serving(model, cores, **options) as worker, cores.as_client():
            warm_up, requests = (QUICK_WARM_UP, QUICK_REQUESTS) if quick else (WARM_UP, REQUESTS)
            looks = soaked(worker.port, worker.pid, warm_up, requests, lambda: _idle(worker.port))
    first, last = looks[0], looks[-1]
    cut = sum(last[way.name.lower()] for way in (Way.LEFT, Way.LEFT_AT_ONCE, Way.CANCELLED))
    return Measured(
        {
            "rss_growth_percent": 100 * (last["rss_mb"] / first["rss_mb"] - 1),
            "rss_first_mb": first["rss_mb"],
            "rss_last_mb": last["rss_mb"],
            "files_more": last["files"] - first["files"],
            "threads_more": last["threads"] - first["threads"],
            "cut_off_requests": cut,
        },
        looks,
    )


def _idle(port: int) -> bool:
    """Whether no request runs: the ends of those that were left are heard of a moment later."""
    health = Http(f"http://127.0.0.1:{port}", TOKEN).get("/health").json
    return bool(health["slots_busy"] == 0)


FIGURES = (
    Figure("rss_growth_percent", "%", "resident memory after all requests above that after the warm-up",
           Target("<=", 2.0)),
    Figure("rss_first_mb", "MB", "resident memory after the warm-up"),
    Figure("rss_last_mb", "MB", "resident memory after all requests"),
    Figure("files_more", "", "open files and sockets more than after the warm-up", Target("<=", 0)),
    Figure("threads_more", "", "threads more than after the warm-up", Target("<=", 0)),
    Figure("cut_off_requests", "", "of the requests, those that were cancelled or whose client left"),
)  # fmt: skip

BENCH = Bench(
    "soak",
    "A text worker's memory over 20,000 requests, four in eight of which are cancelled or left by their clients.",
    FIGURES,
    measure,
)
