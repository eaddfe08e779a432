"""`tests/bench/run`: measure one bench or all of them, print a table, keep the result."""

import argparse
import sys
from http.client import HTTPException
from subprocess import SubprocessError

from tests.bench import (
    embed,
    failover,
    fleet,
    footprint,
    generate,
    gpu,
    overload,
    place,
    readiness,
    report,
    sampling,
    scale,
    soak,
    tensor,
)
from tests.bench.router import bench as router
from tests.machines.testbed import TestbedError

_ALL = (
    readiness.BENCH, footprint.BENCH, generate.BENCH, gpu.BENCH, sampling.BENCH, embed.BENCH, tensor.BENCH,
    router.BENCH, failover.BENCH, overload.BENCH, scale.BENCH, soak.BENCH, fleet.BENCH,
)  # fmt: skip
BENCHES = {bench.name: bench for bench in _ALL}


def measure(bench: report.Bench, machine: str, quick: bool) -> report.Result:
    """Run a bench, print its table, and save it."""
    print(f"\n{bench.name}: {bench.purpose}", flush=True)
    result = report.Result.of(bench, machine, quick, bench.measure(quick))
    print(f"{machine}\n\n{report.table(bench, result)}\n\nkept in {result.save()}", flush=True)
    return result


def main(arguments: list[str]) -> int:
    """0 when it measured, whatever the figures."""
    parser = argparse.ArgumentParser(prog="tests/bench/run")
    parser.add_argument("name", choices=[*BENCHES, "all", "page"])
    parser.add_argument("--quick", action="store_true", help="fewer rounds: within 50 s each")
    options = parser.parse_args(arguments)
    if options.name == "page":
        kept = [(bench, result) for bench in _ALL if (result := report.Result.kept(bench)) is not None]
        print(f"written to {report.write_page(kept)}")
        return 0
    wanted = list(BENCHES.values()) if options.name == "all" else [BENCHES[options.name]]
    machine = place.host()  # once: the load that one bench leaves behind is no other work on the host
    try:
        results = [(bench, measure(bench, machine, options.quick)) for bench in wanted]
    except (AssertionError, OSError, HTTPException, SubprocessError, TestbedError) as error:
        print(f"error: could not measure: {error}", file=sys.stderr)
        return 1
    if options.name == "all":
        print(f"\nwritten to {report.write_page(results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
