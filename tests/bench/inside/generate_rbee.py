"""The engine of the bench `generate`, driven by lines of JSON: python generate_rbee.py MODEL_FOLDER THREADS.

Each line asks for one measurement ({"what", "rows", "tokens", "prompt", "every_s", "seed", "vocabulary"}); each answer
is one line. What is measured is the worker's generator as its routes use it: rows, text, and their way through asyncio.
"""

import asyncio
import json
import sys
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from rbee.host.daemon import look_for_garbage_seldom
from rbee.wire.worker_spec import Backend
from rbee.worker.engine.batch.build import BatchSettings, build_batch, build_decoder, open_decoder
from rbee.worker.engine.decoder import CachePair, read_layout
from rbee.worker.engine.folder import read_folder
from rbee.worker.engine.generate import BatchGenerator
from rbee.worker.engine.generation import GenerateRequest, Piece
from rbee.worker.engine.recognise import recognise
from rbee.worker.engine.runner import Runner
from rbee.worker.engine.sampling import SamplingParams
from rbee.worker.engine.sessions import Array, Binding, DeviceSpec, create_session
from rbee.worker.engine.text_model import TextModel
from rbee.worker.engine.tokenise import load_tokenizer

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)
ROWS = 32
DECODING = 4
"""Rows that decode while the long prompt comes in."""


class Measured:
    """One model in this process: its generator, one that keeps no prefixes, and its bare session."""

    def __init__(self, folder: Path, threads: int) -> None:
        found = read_folder(folder)
        self.facts, self.layout = recognise(found.facts), read_layout(found.facts)
        self.device = DeviceSpec(Backend.CPU, threads=threads, varying=True)
        self.session = create_session(found.model_file, self.device)  # as the file is: for the bare loop
        self.decoding = open_decoder(found.model_file, self.layout, self.device)
        tokenizer, _ = load_tokenizer(folder)
        self.text = TextModel(tokenizer, eos_ids=frozenset(), context_length=self.facts.context_length)
        self.generator, self.plain = self._generator(256 << 20), self._generator(0)
        look_for_garbage_seldom()

    def _generator(self, prefix_bytes: int) -> BatchGenerator:
        settings = BatchSettings(ROWS, self.text.context_length, None, prefix_bytes)
        decoder = build_decoder(self.decoding, self.layout, self.facts.vocabulary, self.device, settings)
        found = BatchGenerator(build_batch(decoder, frozenset(), settings), self.text, Runner(2))
        found.warm_up()
        return found

    async def said(self, generator: BatchGenerator, prompt: tuple[int, ...], tokens: int, times: list[float]) -> str:
        """The text that follows ``prompt``; the time of each token goes to ``times``."""
        text = []
        async with aclosing(generator.stream(GenerateRequest(prompt, tokens, GREEDY))) as items:
            async for item in items:
                if isinstance(item, Piece):
                    times.append(time.perf_counter())
                    text.append(item.text)
        return "".join(text)

    async def speed(self, prompts: list[tuple[int, ...]], tokens: int, every_s: float) -> dict[str, Any]:
        """Tokens a second, all prompts at once or one each ``every_s``."""
        began = time.perf_counter()

        async def come(number: int, prompt: tuple[int, ...]) -> None:
            await asyncio.sleep(max(0.0, began + number * every_s - time.perf_counter()))
            await self.said(self.generator, prompt, tokens, [])

        await asyncio.gather(*(come(number, prompt) for number, prompt in enumerate(prompts)))
        return {"tokens_per_s": len(prompts) * tokens / (time.perf_counter() - began)}

    async def identical(self, prompts: list[tuple[int, ...]], tokens: int) -> dict[str, Any]:
        """The share of rows that say together what each says alone."""
        together = await asyncio.gather(*(self.said(self.plain, prompt, tokens, []) for prompt in prompts))
        alone = [await self.said(self.plain, prompt, tokens, []) for prompt in prompts]
        return {"identical": sum(a == b for a, b in zip(together, alone, strict=True)) / len(prompts)}

    async def stall(self, prompts: list[tuple[int, ...]], long: tuple[int, ...], tokens: int) -> dict[str, Any]:
        """Seconds between tokens of rows that decode: while ``long`` is read, and of the same tokens alone."""
        times: list[list[float]] = [[] for _ in prompts]
        decoding = self._begin(prompts, 2_000, times)
        while min(map(len, times)) < tokens:  # noqa: ASYNC110 - what fills the lists is what is measured
            await asyncio.sleep(0.01)
        first: list[float] = []
        began = time.perf_counter()
        await self.said(self.plain, long, 1, first)
        for task in decoding:
            task.cancel()
        await asyncio.gather(*decoding, return_exceptions=True)
        alone: list[list[float]] = [[] for _ in prompts]
        await asyncio.gather(*self._begin(prompts, max(map(len, times)), alone))
        during, without = [], []
        for one, other in zip(times, alone, strict=True):
            places = [at for at, came in enumerate(one) if at and began < came <= first[0]]
            during += [one[at] - one[at - 1] for at in places]
            without += [other[at] - other[at - 1] for at in places]
        return {"without": without, "during": during, "ttft_s": first[0] - began}

    def _begin(
        self, prompts: list[tuple[int, ...]], tokens: int, times: list[list[float]]
    ) -> list["asyncio.Future[str]"]:
        return [
            asyncio.ensure_future(self.said(self.plain, prompt, tokens, each))
            for prompt, each in zip(prompts, times, strict=True)
        ]

    async def prefix(self, prompt: tuple[int, ...]) -> dict[str, Any]:
        """Time to first token of a prompt, and of one that begins with the same 1,000 tokens, in seconds."""
        found = []
        for end in ((1, 2, 3), (4, 5, 6)):
            times: list[float] = []
            began = time.perf_counter()
            await self.said(self.generator, (*prompt, *end), 1, times)
            found.append(times[0] - began)
        return {"first_s": found[0], "second_s": found[1]}

    def bare(self, prompt: tuple[int, ...], tokens: int) -> dict[str, Any]:
        """A loop of nothing but runs of the session on buffers bound once, and the best token of each."""
        began, width = time.perf_counter(), len(prompt) + tokens
        caches = [_zeros(pair, width) for pair in self.layout.pairs]
        whole = np.empty((1, len(prompt), self.layout.vocabulary or 0), self.layout.scores_element)
        feeds = {"input_ids": np.array([prompt]), "attention_mask": np.ones((1, len(prompt)), np.int64)}
        self.session.run_with_iobinding(self._bound(caches, feeds, whole))
        token, scores = int(whole[0, -1].argmax()), np.empty_like(whole[:, :1])
        ids, mask = np.zeros((1, 1), np.int64), np.zeros((1, width), np.int64)
        step = self._bound(caches, {"input_ids": ids, "attention_mask": mask}, scores)
        mask[:, : len(prompt)] = 1
        for at in range(len(prompt), width - 1):
            ids[0, 0], mask[0, at] = token, 1
            self.session.run_with_iobinding(step)
            token = int(scores[0, 0].argmax())
        return {"tokens_per_s": tokens / (time.perf_counter() - began)}

    def _bound(self, caches: list[Array], feeds: dict[str, Array], scores: Array) -> Binding:
        binding = self.session.io_binding()
        for pair, cache in zip(self.layout.pairs, caches, strict=True):
            binding.bind_input(pair.past, *_place(cache))
            binding.bind_output(pair.present, *_place(cache))
        for name, value in feeds.items():
            binding.bind_input(name, *_place(value))
        binding.bind_output(self.layout.scores, *_place(scores))
        return binding


def _zeros(pair: CachePair, width: int) -> Array:
    return np.zeros((1, pair.empty_shape[1], width, pair.empty_shape[3]), pair.element)


def _place(value: Array) -> tuple[str, int, Any, tuple[int, ...], int]:
    return "cpu", 0, value.dtype, value.shape, value.ctypes.data


async def answer(measured: Measured, ask: dict[str, Any]) -> dict[str, Any]:
    """One measurement."""
    random = np.random.default_rng(ask["seed"])

    def prompts(rows: int, length: int) -> list[tuple[int, ...]]:
        return [tuple(map(int, random.integers(1, ask["vocabulary"], length))) for _ in range(rows)]

    match ask["what"]:
        case "engine":
            return await measured.speed(prompts(ask["rows"], ask["prompt"]), ask["tokens"], ask["every_s"])
        case "identical":
            return await measured.identical(prompts(ask["rows"], ask["prompt"]), ask["tokens"])
        case "stall":
            return await measured.stall(prompts(DECODING, 64), prompts(1, ask["prompt"])[0], ask["tokens"])
        case "prefix":
            return await measured.prefix(prompts(1, ask["prompt"])[0])
        case _:
            return measured.bare(prompts(1, ask["prompt"])[0], ask["tokens"])


async def main() -> None:
    """Answer until the input ends."""
    measured = Measured(Path(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps({"ready": "rbee"}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await answer(measured, json.loads(line))), flush=True)


uvloop.run(main())
