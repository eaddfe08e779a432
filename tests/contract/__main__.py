"""`tests/contract/run`: a fuzzer sends a live queen what her document allows and forbids, and checks each answer."""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.unit.queen.conftest import API_TOKEN, configuration, running
from tests.unit.queen.partners import WorkerPartner, report, served

ENDLESS = "(/v2/events|/session)$"
"""Streams without an end."""
LIMITS = {"admission_timeout_s": 1.0, "cold_wait_s": 1.0, "invalid_per_second": 100_000}
"""A fuzzer sends what is not acceptable, and wants to be told why."""
REFUSED = 'queen_rbee_http_errors_total{code="INTERNAL"}'


async def fuzz(program: str, seconds: int, seed: int) -> int:
    """The fuzzer's exit code; 1 as well where the queen met a defect of her own."""
    with tempfile.TemporaryDirectory(prefix="rbee-contract-") as folder:
        config = configuration(Path(folder), requests=LIMITS)
        async with running(config) as queen, served(WorkerPartner().app()) as url:
            await queen.tell(report(url=url))
            fuzzer = await asyncio.create_subprocess_exec(
                program, "run", queen.url + "/openapi.json", "--header", f"Authorization: Bearer {API_TOKEN}",
                "--phases", "examples,coverage,fuzzing", "--max-examples", "20", "--max-time", str(seconds),
                "--seed", str(seed), "--request-timeout", "10", "--exclude-path-regex", ENDLESS,
                # A 503 says that a hive or worker is away, which a fuzzer may cause; a 500 is looked for below. And a
                # value may be of the right form and none that is served: a reference to a model that is not there. And
                # a node may bear the name of a fixed path beside it: Allow lists what both of them take.
                "--exclude-checks", "not_a_server_error,positive_data_acceptance,allow_header_conformance",
                "--suppress-health-check", "all", "--warnings", "off",
                cwd=folder,
            )  # fmt: skip
            code = await fuzzer.wait()
            defects = await queen.metric(REFUSED)
    if defects:
        print(f"the queen answered {defects:g} requests with an error of her own: see her records above")
    return code or int(defects > 0)


def main() -> int:
    """0 when the document is true as far as was looked."""
    parser = argparse.ArgumentParser(prog="tests/contract/run")
    parser.add_argument("program")
    parser.add_argument("--seconds", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    return asyncio.run(fuzz(options.program, options.seconds, options.seed))


if __name__ == "__main__":
    sys.exit(main())
