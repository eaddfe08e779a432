"""Load at a constant rate, whatever the answers do: each request goes out at its own moment, none waits for another."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp


@dataclass(frozen=True, slots=True)
class Shot:
    """One request: when it was due (seconds into the run), its status (0: no answer), and how long it took in ms."""

    due_s: float
    status: int
    took_ms: float
    retry_after: str | None


async def _shoot(
    session: aiohttp.ClientSession, url: str, body: bytes, due_s: float, began: float, limit_s: float
) -> Shot:
    await asyncio.sleep(max(0.0, began + due_s - time.monotonic()))
    sent = time.monotonic()
    status, retry_after = 0, None
    try:
        async with asyncio.timeout(limit_s), session.post(url, data=body) as response:
            await response.read()
            status, retry_after = response.status, response.headers.get("Retry-After")
    except (TimeoutError, aiohttp.ClientError):
        pass  # it stands as a request without an answer
    return Shot(due_s, status, (time.monotonic() - sent) * 1000, retry_after)


async def _run(url: str, token: str, body: bytes, rate: float, seconds: float, limit_s: float) -> list[Shot]:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        began = time.monotonic() + 0.1
        dues = [number / rate for number in range(int(rate * seconds))]
        return await asyncio.gather(*(_shoot(session, url, body, due, began, limit_s) for due in dues))


def constant(url: str, token: str, body: bytes, rate: float, seconds: float, limit_s: float = 30.0) -> Sequence[Shot]:
    """Send ``rate`` requests a second for ``seconds``; every one of them, in the order in which they were due."""
    return asyncio.run(_run(url, token, body, rate, seconds, limit_s))
