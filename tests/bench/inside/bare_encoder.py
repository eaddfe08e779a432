"""A program: the bare runtime on an encoder, asked line by line.

    bare_encoder.py MODEL_FOLDER TEXTS.json THREADS

Each line of its input is a JSON array. ["run", batch size, texts] runs the first texts in batches of that size, in
their order, each padded to its longest, and answers the seconds. ["each", first, texts] runs some one by one and
answers each one's seconds. ["vectors", texts] answers their vectors by the pooling that sentence-transformers defines
for the model (the mean over a text's tokens, length 1), in double precision. All are tokenised beforehand: only
session.run is timed.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

Feeds = dict[str, NDArray[np.int64]]


def feeds_of(rows: list[list[int]]) -> Feeds:
    """The encoder's inputs for one batch."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = row
        mask[at, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


class Bare:
    """The session and the texts."""

    def __init__(self, folder: Path, texts: list[str], threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._rows = [tokenizer.encode(text).ids for text in texts]
        self._session.run(None, feeds_of(self._rows[:1]))

    def run(self, batch: int, count: int) -> float:
        """Seconds for the first ``count`` texts."""
        batches = [feeds_of(self._rows[at : min(at + batch, count)]) for at in range(0, count, batch)]
        started = time.perf_counter()
        for feeds in batches:
            self._session.run(None, feeds)
        return time.perf_counter() - started

    def each(self, first: int, count: int) -> list[float]:
        """Seconds of each of ``count`` texts by itself, from the ``first`` on."""
        return [self.run_one(feeds_of([row])) for row in self._rows[first : first + count]]

    def run_one(self, feeds: Feeds) -> float:
        """Seconds of one run."""
        started = time.perf_counter()
        self._session.run(None, feeds)
        return time.perf_counter() - started

    def vectors(self, count: int) -> list[list[float]]:
        """The reference vectors of the first ``count`` texts, each from a run of its own."""
        found = []
        for row in self._rows[:count]:
            (hidden,) = self._session.run(["last_hidden_state"], feeds_of([row]))
            mean = hidden[0].astype(np.float64).mean(axis=0)
            found.append((mean / np.linalg.norm(mean)).tolist())
        return found


def main() -> None:
    """Answer until the input ends."""
    folder, texts, threads = sys.argv[1:]
    bare = Bare(Path(folder), json.loads(Path(texts).read_text()), int(threads))
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        sys.stdout.write(json.dumps(getattr(bare, name)(*arguments)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
