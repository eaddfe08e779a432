"""The bench `generate`: tokens a second beside onnxruntime-genai and a bare loop, on decoders with random weights."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.bench import decoders
from tests.bench.quantiles import median, quantile, ratio
from tests.bench.report import CHECKOUT, Bench, Figure, Measured, Metrics, Target

INSIDE = Path(__file__).with_name("inside")
THREADS = len(os.sched_getaffinity(0))
PRECISIONS, QUICK_PRECISIONS = ("fp32", "int4"), ("int4",)
ROUNDS, QUICK_ROUNDS = 5, 1
TOKENS, QUICK_TOKENS = 64, 16
IDENTICAL_TOKENS = 32
"""Tokens of each text that is compared with the same row's alone: 32 rows one by one take their time."""
PROMPT, LONG_PROMPT, PREFIX = 64, 2_000, 1_000
LONE_TURNS = 3
"""Times that one text and its reference take turns in a round: it is short, and which comes first matters."""
EVERY_S = 0.05
"""Seconds between two clients that arrive one by one."""
MODELS = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rbee" / "bench-decoders-1"


class Child:
    """A process that measures one model, and is asked by lines of JSON."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._read()

    def ask(self, what: dict[str, object]) -> dict[str, Any]:
        """One measurement; raises ChildProcessError where the process ended instead."""
        pipe = self._process.stdin
        if pipe is None:
            raise ChildProcessError("the process has no input")
        print(json.dumps(what), file=pipe, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise ChildProcessError(f"{self._process.args!r} ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def child(python: str, program: str, model: Path) -> Iterator[Child]:
    """A measuring process, ended with the block."""
    command = [python, str(INSIDE / program), str(model), str(THREADS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Child(process)
        finally:
            process.terminate()


def reference_python() -> str | None:
    """The Python of the reference's own environment, made where it is not there; None where it cannot be made."""
    script = ". packaging/setup-venv && rbee_venv bench-genai"
    made = subprocess.run(["bash", "-c", script], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=False)
    return f"{made.stdout.strip()}/bin/python" if made.returncode == 0 else None


def model_folder(precision: str) -> Path:
    """The decoder of that precision, built once."""
    folder = MODELS / precision
    if not (folder / "genai_config.json").exists():
        decoders.build(folder, decoders.SMALL, precision)
    return folder


class Round:
    """One round on one model: each measurement of ours beside its reference's."""

    def __init__(self, ours: Child, reference: Child | None, tokens: int, seed: int) -> None:
        self._ours, self._reference, self._tokens = ours, reference, tokens
        self._common = {"tokens": tokens, "vocabulary": decoders.SMALL.vocabulary, "seed": seed, "every_s": 0.0}

    def measure(self, rows: tuple[int, ...]) -> dict[str, Any]:
        """All figures of the round by name; those of a reference that is not there are None."""
        found: dict[str, Any] = {}
        for count in rows:
            found[f"vs_genai_engine_burst_{count}"] = self._beside("engine", count, 0.0)
            if count > 1:
                found[f"vs_genai_engine_staggered_{count}"] = self._beside("engine", count, EVERY_S)
        found["vs_genai_generators_8"] = self._beside("generators", 8, 0.0)
        found["vs_bare_1"] = self._in_turns(self._ours, "bare", 1, 0.0)
        stall = self._ours.ask(self._common | {"what": "stall", "prompt": LONG_PROMPT, "tokens": 40})
        found["itl_p99_ratio_under_prefill"] = ratio(quantile(stall["during"], 0.99), median(stall["without"]))
        found["itl_p99_ratio_alone"] = ratio(quantile(stall["without"], 0.99), median(stall["without"]))
        found["ttft_2000_beside_4_s"] = stall["ttft_s"]
        prefix = self._ours.ask(self._common | {"what": "prefix", "prompt": PREFIX})
        found["prefix_ttft_ratio"] = ratio(prefix["second_s"], prefix["first_s"])
        ask = {"what": "identical", "rows": max(rows), "prompt": PROMPT}
        ask["tokens"] = min(IDENTICAL_TOKENS, self._tokens)
        same = self._ours.ask(self._common | ask)
        found["rows_identical"] = same["identical"]
        return found

    def _beside(self, what: str, rows: int, every_s: float) -> float | None:
        return None if self._reference is None else self._in_turns(self._reference, what, rows, every_s)

    def _in_turns(self, other: Child, what: str, rows: int, every_s: float) -> float | None:
        def turn() -> float:
            ours = self._speed(self._ours, "engine", rows, every_s)
            return ours / self._speed(other, what, rows, every_s)

        return median([turn() for _ in range(LONE_TURNS if rows == 1 else 1)])

    def _speed(self, of: Child, what: str, rows: int, every_s: float) -> float:
        ask = self._common | {"what": what, "rows": rows, "every_s": every_s, "prompt": PROMPT}
        return float(of.ask(ask)["tokens_per_s"])


def measure(quick: bool) -> Measured:
    """Each model in turn; a figure is the worse model's median over the rounds."""
    python = reference_python()
    rounds: list[dict[str, Any]] = []
    for precision in QUICK_PRECISIONS if quick else PRECISIONS:
        folder = model_folder(precision)
        with ExitStack() as children:
            ours = children.enter_context(child(sys.executable, "generate_rbee.py", folder))
            reference = children.enter_context(child(python, "generate_genai.py", folder)) if python else None
            for number in range(QUICK_ROUNDS if quick else ROUNDS):
                tokens = QUICK_TOKENS if quick else TOKENS
                found = Round(ours, reference, tokens, seed=number).measure((1, 8, 32))
                rounds.append({"model": precision, **found})
    return Measured(_worst(rounds), rounds)


def _worst(rounds: list[dict[str, Any]]) -> Metrics:
    found: Metrics = {}
    for figure in FIGURES:
        medians = []
        for model in sorted({each["model"] for each in rounds}):
            values = [each[figure.name] for each in rounds if each["model"] == model and each[figure.name] is not None]
            medians.append(median(values))
        known = [value for value in medians if value is not None]
        worst = max if figure.target is None or figure.target.sign == "<=" else min
        found[figure.name] = worst(known, default=None)
    return found


FIGURES = (
    Figure("vs_genai_engine_burst_1", "x", "tokens/s of one client, beside genai's Engine", Target(">=", 1)),
    Figure("vs_genai_engine_burst_8", "x", "8 clients at once", Target(">=", 1)),
    Figure("vs_genai_engine_burst_32", "x", "32 clients at once", Target(">=", 1)),
    Figure("vs_genai_engine_staggered_8", "x", "8 clients, one by one", Target(">=", 1)),
    Figure("vs_genai_engine_staggered_32", "x", "32 clients, one by one", Target(">=", 1)),
    Figure("vs_genai_generators_8", "x", "8 clients, beside a genai Generator each, in threads", Target(">=", 1.5)),
    Figure("vs_bare_1", "x", "one client, beside a bare loop on the same session", Target(">=", 0.95)),
    Figure("itl_p99_ratio_under_prefill", "x", "p99 between tokens while 2,000 are read, by their median alone",
           Target("<=", 3)),
    Figure("itl_p99_ratio_alone", "x", "the same without the prompt: what the host itself adds"),
    Figure("ttft_2000_beside_4_s", "s", "time to first token of those 2,000 tokens, beside four texts"),
    Figure("prefix_ttft_ratio", "x", "time to first token behind 1,000 known ones, by the first", Target("<=", 0.2)),
    Figure("rows_identical", "", "share of 32 rows that say together what each says alone", Target("=", 1)),
)  # fmt: skip

BENCH = Bench(
    "generate",
    "Text on the CPU, decoders of 107 million random parameters, fp32 and int4 (a quick run: int4 alone): the worse's.",
    FIGURES,
    measure,
)
