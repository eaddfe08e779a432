"""The bench `embed`: how much of what the bare runtime can do reaches the clients of an embedding worker."""

import base64
import contextlib
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rbee.keeper.demo.corpus import TOPICS
from tests.bench import closed_loop
from tests.bench.lone_worker import TOKEN, Cores, worker
from tests.bench.quantiles import median, ratio
from tests.bench.report import Bench, Figure, Measured, Target
from tests.machines.testbed import project

MODEL = "all-minilm-l6-v2"
ROUNDS, QUICK_ROUNDS = 7, 3
CLIENTS, PER_REQUEST = 32, 8
TEXTS, QUICK_TEXTS = 1024, 256
SINGLES, QUICK_SINGLES = 512, 128
ALONE, TURN, COMPARED = 128, 4, 64
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
PROBED = 64
MOST_LETTERS = 200
_PROGRAM = Path(__file__).with_name("inside") / "bare_encoder.py"


def texts_of(count: int) -> list[str]:
    """Questions, and passages of one to four answers: what a search index meets. The same each time."""
    chance = random.Random(7)  # noqa: S311 - a mixture, not a secret
    questions = [question for topic in TOPICS for question in topic.questions]
    answers = [topic.answer for topic in TOPICS if len(topic.answer) <= MOST_LETTERS]
    return [
        chance.choice(questions) if chance.random() < 0.3 else " ".join(chance.choices(answers, k=chance.randint(1, 4)))
        for _ in range(count)
    ]


class Bare:
    """The bare runtime in a process of its own on the server's cores."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ask(self, *command: object) -> Any:  # noqa: ANN401 - each command has an answer of its own
        """The program's answer to a command; raises OSError when it is gone."""
        if self._process.stdin is None or self._process.stdout is None:
            raise OSError("the bare runtime has no pipes")
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise OSError("the bare runtime ended")
        return json.loads(line)

    def best_batch(self) -> int:
        """The fixed batch size that is fastest here, each tried twice."""
        return min(BATCH_SIZES, key=lambda size: min(self.ask("run", size, PROBED) for _ in range(2)))


@contextlib.contextmanager
def bare_runtime(model: Path, texts: Sequence[str], cores: Cores) -> Iterator[Bare]:
    """The program, started; it ends with the block."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(list(texts), file)
        file.flush()
        argv = cores.serving([sys.executable, str(_PROGRAM), str(model), file.name, str(len(cores.server))])
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield Bare(process)
            finally:
                process.kill()


@dataclass(frozen=True, slots=True)
class Requests:
    """What the clients send, written beforehand."""

    eights: list[bytes]
    singles: list[bytes]
    alone: list[bytes]

    @classmethod
    def of(cls, texts: Sequence[str], singles: int, port: int) -> "Requests":
        def written(given: str | Sequence[str]) -> bytes:
            body = json.dumps({"input": given, "model": MODEL, "encoding_format": "float"}).encode()
            return closed_loop.request(port, "/v1/embeddings", body, TOKEN)

        eights = [written(texts[at : at + PER_REQUEST]) for at in range(0, len(texts), PER_REQUEST)]
        ones = [written(text) for text in texts[:singles]]
        return cls(eights, ones, ones[:ALONE])


def cosine_min(texts: Sequence[str], bare: Bare, port: int) -> float:
    """The least cosine between the worker's vectors of texts that share runs and the reference's."""
    body = json.dumps({"input": list(texts[:COMPARED]), "encoding_format": "base64"}).encode()
    connection = closed_loop.Connection(port)
    answer = json.loads(connection.ask(closed_loop.request(port, "/v1/embeddings", body, TOKEN)))
    connection.close()
    found = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4").astype(np.float64) for each in answer["data"]]
    wanted = np.array(bare.ask("vectors", COMPARED))
    return min(float(ours @ theirs / np.linalg.norm(ours)) for ours, theirs in zip(found, wanted, strict=True))


@dataclass(frozen=True, slots=True)
class Alone:
    """Seconds of each text by itself, in their order: bare, and over HTTP."""

    bare: list[float]
    each: list[float]

    @property
    def added(self) -> float | None:
        """The median of what HTTP adds to a text: of differences, as the texts are of many lengths."""
        return median(each - bare for bare, each in zip(self.bare, self.each, strict=True))


def _alone(requests: Requests, bare: Bare, port: int) -> Alone:
    """A few bare, and the same few over HTTP, in turns."""
    found = Alone([], [])
    for first in range(0, len(requests.alone), TURN):
        found.bare.extend(bare.ask("each", first, TURN))
        found.each.extend(closed_loop.all_of(port, requests.alone[first : first + TURN], 1).each)
    return found


def _round(texts: Sequence[str], requests: Requests, bare: Bare, batch: int, port: int) -> dict[str, float | None]:
    singles = len(requests.singles)
    bare_eights = bare.ask("run", batch, len(texts))
    eights = closed_loop.all_of(port, requests.eights, CLIENTS).seconds
    bare_singles = bare.ask("run", batch, singles)
    ones = closed_loop.all_of(port, requests.singles, CLIENTS).seconds
    alone = _alone(requests, bare, port)
    return {
        "bare_texts_per_s": len(texts) / bare_eights,
        "texts_per_s_c32": len(texts) / eights,
        "texts_per_s_c32_single": singles / ones,
        "vs_bare_c32": ratio(bare_eights, eights),
        "vs_bare_c32_single": ratio(bare_singles, ones),
        "bare_p50_ms_c1": _ms(median(alone.bare)),
        "p50_ms_c1": _ms(median(alone.each)),
        "added_p50_ms_c1": _ms(alone.added),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def measure(quick: bool) -> Measured:
    """A worker and the bare runtime in turns on the same cores, the clients on another."""
    model, cores = project.models() / project.MODELS / MODEL, Cores.split()
    texts = texts_of(QUICK_TEXTS if quick else TEXTS)
    with (
        worker(model, cores, slots=64) as port,
        bare_runtime(model, texts, cores) as bare,
        cores.as_client(),
    ):
        requests = Requests.of(texts, QUICK_SINGLES if quick else SINGLES, port)
        closed_loop.all_of(port, requests.alone, 4)
        least, batch = cosine_min(texts, bare, port), bare.best_batch()
        rounds = [_round(texts, requests, bare, batch, port) for _ in range(QUICK_ROUNDS if quick else ROUNDS)]
    names = ("vs_bare_c32", "vs_bare_c32_single", "added_p50_ms_c1")
    middle = {name: median(value for each in rounds if (value := each[name]) is not None) for name in names}
    return Measured({**middle, "cosine_min": least}, [{"batch": batch, **each} for each in rounds])


FIGURES = (
    Figure("vs_bare_c32", "", "texts a second at 32 clients with 8 texts a request, to the bare runtime's in its best "
           "fixed batch size", Target(">=", 0.95)),
    Figure("vs_bare_c32_single", "", "the same with one text a request", Target(">=", 0.8)),
    Figure("added_p50_ms_c1", "ms", "a lone client's wait above that of the bare run of its text", Target("<=", 1.5)),
    Figure("cosine_min", "", "least likeness to the reference pooling of each text by itself", Target(">=", 0.9999)),
)  # fmt: skip

BENCH = Bench(
    "embed",
    "An embedding worker over HTTP against the bare runtime on the same cores; the clients have a core of their own.",
    FIGURES,
    measure,
)
