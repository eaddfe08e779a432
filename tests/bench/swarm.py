"""A thousand simulated hives as a program: each holds its session open and sends its picture at its own moment.

Run as `python -m tests.bench.swarm`; the first line of stdin is a JSON object of :class:`Orders`, the first line on
stdout comes when every hive has been taken, and the program ends with its stdin. One picture in ``change_every`` has a
worker that changed; the machine's own facts change with each.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import uvloop

from tests.bench import alone

_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Orders:
    """What the swarm does; seconds."""

    queen_url: str
    token: str
    worker_url: str
    hives: int
    workers: int
    interval_s: float
    change_every: int


class Hive:
    """One simulated hive."""

    def __init__(self, number: int, orders: Orders, session: aiohttp.ClientSession) -> None:
        self._id = f"hive-{number}"
        self._orders = orders
        self._session = session
        self._beats = number  # so that the changes of the hives fall apart
        self._revision = 1
        self._workers = [
            alone.report(self._id, f"w{worker}", orders.worker_url, model=f"model-{worker}")
            for worker in range(orders.workers)
        ]

    async def beat(self) -> None:
        """Send the picture."""
        self._beats += 1
        if self._beats % self._orders.change_every == 0:
            self._revision += 1
            changed = self._workers[self._revision % len(self._workers)]
            changed |= {"revision": self._revision, "status_text": f"ready: change {self._revision}"}
        body = alone.picture(self._id, self._workers, revision=self._revision, interval_s=self._orders.interval_s)
        body["machine"] = body["machine"] | {"ram_available_bytes": (1 << 29) + self._beats}
        url = f"{self._orders.queen_url}/v2/hives/{self._id}/heartbeat"
        async with self._session.post(url, data=alone.as_json(body)) as response:
            assert response.status == 200, await response.text()

    async def live(self, offset_s: float) -> None:
        """Hold the session, and beat at the hive's own moments."""
        url = f"{self._orders.queen_url}/v2/hives/{self._id}/session?boot_id=boot-1"
        async with self._session.get(url) as stream, asyncio.TaskGroup() as group:
            group.create_task(self._read(stream))
            next_at = time.monotonic() + offset_s
            while True:
                await asyncio.sleep(max(0.0, next_at - time.monotonic()))
                next_at += self._orders.interval_s
                await self.beat()

    @staticmethod
    async def _read(stream: aiohttp.ClientResponse) -> None:
        async for _ in stream.content.iter_any():
            pass


def _offsets(orders: Orders) -> Iterator[float]:
    return (orders.interval_s * number / orders.hives for number in range(orders.hives))


async def main(orders: Orders) -> None:
    """Let every hive be taken, say so, and live until stdin ends."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
    headers = {"Authorization": f"Bearer {orders.token}", "Content-Type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as session:
        hives = [Hive(number, orders, session) for number in range(orders.hives)]
        gate = asyncio.Semaphore(_AT_ONCE)

        async def first(hive: Hive) -> None:
            async with gate:
                await hive.beat()

        await asyncio.gather(*(first(hive) for hive in hives))
        lives = [asyncio.create_task(one.live(offset)) for one, offset in zip(hives, _offsets(orders), strict=True)]
        sys.stdout.write("taken\n")
        sys.stdout.flush()
        over = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await asyncio.wait([over, *lives], return_when=asyncio.FIRST_COMPLETED)
        for life in lives:
            life.cancel()
        ended: list[Any] = await asyncio.gather(*lives, return_exceptions=True)
        for error in ended:
            if not isinstance(error, asyncio.CancelledError):
                raise error


if __name__ == "__main__":
    uvloop.run(main(Orders(**json.loads(sys.stdin.readline()))))
