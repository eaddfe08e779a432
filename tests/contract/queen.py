"""A queen with one worker, and what is fuzzed of her."""

from tests.contract.fuzzer import Fuzzer, defects
from tests.unit.queen.conftest import API_TOKEN, configuration, running
from tests.unit.queen.partners import WorkerPartner, report, served

ENDLESS = "(/v2/events|/session)$"
"""Streams without an end."""
LIMITS = {"admission_timeout_s": 1.0, "cold_wait_s": 1.0, "invalid_per_second": 100_000}
"""A fuzzer sends what is not acceptable, and wants to be told why."""


async def fuzz_queen(fuzzer: Fuzzer) -> bool:
    """Whether nothing is found."""
    config = configuration(fuzzer.folder, requests=LIMITS)
    async with running(config) as queen, served(WorkerPartner().app()) as url:
        await queen.tell(report(url=url))
        # a node may bear the name of a fixed path beside it: Allow lists what both of them take
        code = await fuzzer.run(
            queen.url, API_TOKEN, "--exclude-path-regex", ENDLESS, left_out=("allow_header_conformance",)
        )
        return code == 0 and not await defects(queen.url, "queen_rbee")
