"""The fuzzer: sends a live daemon what its document allows and forbids, and checks each answer."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import aiohttp

SETTINGS = Path(__file__).with_name("schemathesis.toml")
ALWAYS_LEFT_OUT = ("not_a_server_error", "positive_data_acceptance")
"""Checks that no daemon here can pass.

A 503 says that a partner is away, which a fuzzer may cause; a 500 is looked for in the daemon's own count. And a value
may be of the right form and none that is served: a reference to a model that is not there.
"""


@dataclass(frozen=True, slots=True)
class Fuzzer:
    """How to fuzz: its program, for how many seconds in all, from which seed, and a folder for what it remembers."""

    program: str
    seconds: int
    seed: int
    folder: Path

    async def run(
        self, url: str, token: str, *more: str, seconds: int | None = None, left_out: tuple[str, ...] = ()
    ) -> int:
        """Fuzz the daemon at ``url``: 0 where nothing is found. ``more`` are the program's own options.

        ``seconds`` is less than all of them; ``left_out`` names further checks to leave out.
        """
        process = await asyncio.create_subprocess_exec(
            self.program, "--config-file", str(SETTINGS), "run", url + "/openapi.json",
            "--header", f"Authorization: Bearer {token}",
            "--phases", "examples,coverage,fuzzing", "--max-examples", "20",
            "--max-time", str(seconds or self.seconds), "--seed", str(self.seed), "--request-timeout", "10",
            "--exclude-checks", ",".join((*ALWAYS_LEFT_OUT, *left_out)),
            "--suppress-health-check", "all", "--warnings", "off", *more,
            cwd=self.folder,
        )  # fmt: skip
        return await process.wait()


async def defects(url: str, prefix: str) -> float:
    """How many requests the daemon answered with an error of its own, which is a defect; ``prefix`` of its metrics."""
    wanted = f'{prefix}_http_errors_total{{code="INTERNAL"}}'
    async with aiohttp.ClientSession() as client, client.get(url + "/metrics") as response:
        lines = (await response.text()).splitlines()
    found = sum(float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == wanted)
    if found:
        print(f"{found:g} requests were answered with an error of the daemon's own: see its records above")
    return found
