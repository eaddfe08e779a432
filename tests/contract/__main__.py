"""`tests/contract/run`: a fuzzer sends live daemons what their documents allow and forbid, and checks each answer."""

import argparse
import asyncio
import logging
import sys
import tempfile
from pathlib import Path

from tests.contract.fuzzer import Fuzzer
from tests.contract.hive import fuzz_hive
from tests.contract.queen import fuzz_queen
from tests.contract.worker import fuzz_worker

DAEMONS = {"queen": (fuzz_queen, 30), "hive": (fuzz_hive, 15), "worker": (fuzz_worker, 15)}
"""How each is fuzzed, and for how many seconds unless they are named."""


async def fuzz(daemons: list[str], program: str, seconds: int | None, seed: int) -> int:
    """0 where nothing is found of any of them."""
    well = True
    for name in daemons:
        fuzz_one, usual = DAEMONS[name]
        with tempfile.TemporaryDirectory(prefix="rbee-contract-") as folder:
            well &= await fuzz_one(Fuzzer(program, seconds or usual, seed, Path(folder)))
    return 0 if well else 1


def main() -> int:
    """0 when the documents are true as far as was looked."""
    parser = argparse.ArgumentParser(prog="tests/contract/run")
    parser.add_argument("program")
    parser.add_argument("daemons", nargs="*", metavar="DAEMON", help=f"of {', '.join(DAEMONS)}; all by default")
    parser.add_argument("--seconds", type=int, help="for each daemon")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    unknown = set(options.daemons) - DAEMONS.keys()
    if unknown:
        parser.error(f"no daemon is called {', '.join(sorted(unknown))}: choose of {', '.join(DAEMONS)}")
    logging.getLogger("rbee").setLevel(logging.ERROR)  # thousands of refusals are what is asked for
    return asyncio.run(fuzz(options.daemons or list(DAEMONS), options.program, options.seconds, options.seed))


if __name__ == "__main__":
    sys.exit(main())
