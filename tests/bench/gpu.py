"""The bench `gpu`: text from a decoder of 1.2 thousand million parameters in half precision on the first GPU."""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pynvml

from rbee.wire.worker_spec import Backend
from rbee.worker.engine.batch.build import BatchSettings, build_batch, build_decoder, open_decoder
from rbee.worker.engine.decoder import DecoderLayout, read_layout
from rbee.worker.engine.folder import read_folder
from rbee.worker.engine.generate import BatchGenerator
from rbee.worker.engine.generation import GenerateRequest, Piece
from rbee.worker.engine.runner import Runner
from rbee.worker.engine.sampling import SamplingParams
from rbee.worker.engine.sessions import DeviceSpec
from rbee.worker.engine.text_model import TextModel
from rbee.worker.engine.tokenise import load_tokenizer
from tests.bench import decoders
from tests.bench.quantiles import median
from tests.bench.report import Bench, Figure, Measured, Metrics

LIBRARIES = "CUDA_LIBRARIES"
"""Environment variable: a folder with CUDA's libraries, where the loader does not find them by itself."""
ROUNDS, QUICK_ROUNDS = 5, 2
ROWS = (1, 8, 32)
TOKENS, PROMPT = 128, 64
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)
GB = 1e9


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU as its driver tells it: ``bandwidth`` of its memory in bytes a second, ``used`` bytes of it now."""

    name: str
    bandwidth: float
    used: int


def memory_bandwidth(clock_mhz: int, bus_bits: int) -> float:
    """Bytes a second of a memory that transfers twice a clock, as HBM and GDDR do by the clock that NVML tells."""
    return 2 * clock_mhz * 1e6 * bus_bits / 8


def card() -> Card | None:
    """The first GPU; None where there is none, or no driver."""
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        clock = pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_MEM)
        bandwidth = memory_bandwidth(clock, pynvml.nvmlDeviceGetMemoryBusWidth(handle))
        return Card(str(pynvml.nvmlDeviceGetName(handle)), bandwidth, pynvml.nvmlDeviceGetMemoryInfo(handle).used)
    except pynvml.NVMLError:
        return None


@contextmanager
def generator(folder: Path, device: DeviceSpec, size: decoders.Size) -> Iterator[tuple[BatchGenerator, DecoderLayout]]:
    """The worker's generator on the model in ``folder``, closed with the block."""
    found = read_folder(folder)
    layout = read_layout(found.facts)
    session = open_decoder(found.model_file, layout, device)
    settings = BatchSettings(max(ROWS), size.context, None, 0)
    batch = build_batch(build_decoder(session, layout, None, device, settings), frozenset(), settings)
    tokenizer, _ = load_tokenizer(folder)
    text = TextModel(tokenizer, eos_ids=frozenset(), context_length=size.context)
    with closing(Runner(1)) as runner, closing(BatchGenerator(batch, text, runner)) as made:
        made.warm_up()
        yield made, layout


async def one(of: BatchGenerator, prompt: tuple[int, ...], tokens: int) -> float:
    """Write a text; seconds until its first token."""
    began, first = time.perf_counter(), 0.0
    async with aclosing(of.stream(GenerateRequest(prompt, tokens, GREEDY))) as items:
        async for item in items:
            if isinstance(item, Piece) and not first:
                first = time.perf_counter() - began
    return first


async def round_of(of: BatchGenerator, rows: int, tokens: int, vocabulary: int, seed: int) -> tuple[float, list[float]]:
    """``rows`` texts at once: tokens a second, and each one's time to first token in seconds."""
    random = np.random.default_rng(seed)
    prompts = [tuple(map(int, random.integers(1, vocabulary, PROMPT))) for _ in range(rows)]
    began = time.perf_counter()
    firsts = await asyncio.gather(*(one(of, prompt, tokens) for prompt in prompts))
    return rows * tokens / (time.perf_counter() - began), firsts


def step_bytes(size: decoders.Size, layout: DecoderLayout, weight_bytes: int, tokens: int) -> int:
    """What a step of one row reads: every weight but the table of embeddings, and the keys and values of ``tokens``."""
    return (size.parameters - size.vocabulary * size.hidden) * weight_bytes + layout.token_bytes * tokens


def measure_on(device: DeviceSpec, size: decoders.Size, rounds: int, found: Card) -> Measured:
    """Build the model, warm up, and measure ``rounds`` rounds."""
    speeds: dict[int, list[float]] = {rows: [] for rows in ROWS}
    firsts: list[float] = []
    with TemporaryDirectory(prefix="rbee-gpu-") as name:
        folder = decoders.build(Path(name), size, "fp16")
        with generator(folder, device, size) as (made, layout), asyncio.Runner() as loop:
            for seed in range(-1, rounds):  # the first one warms up each batch's size
                for rows in ROWS:
                    speed, first = loop.run(round_of(made, rows, TOKENS, size.vocabulary, seed + 1))
                    if seed >= 0:
                        speeds[rows].append(speed)
                        firsts += first if rows == 1 else []
            after = card()
    metrics: Metrics = {f"tokens_per_s_{rows}": median(values) for rows, values in speeds.items()}
    lone = metrics["tokens_per_s_1"]
    read = step_bytes(size, layout, 2, PROMPT + TOKENS // 2)
    metrics["bandwidth_fraction_1"] = None if lone is None else lone * read / found.bandwidth
    first_s = median(firsts)
    metrics["ttft_p50_ms"] = None if first_s is None else first_s * 1000
    metrics["device_memory_gb"] = None if after is None else (after.used - found.used) / GB
    return Measured(metrics, [{"card": found.name, "speeds": {str(rows): each for rows, each in speeds.items()}}])


def measure(quick: bool) -> Measured:
    """All figures; none of them where there is no GPU."""
    found = card()
    if found is None:
        print("no GPU with a driver is here: nothing is measured", flush=True)
        return Measured(dict.fromkeys(figure.name for figure in FIGURES), [])
    folder = os.environ.get(LIBRARIES)
    device = DeviceSpec(Backend.CUDA, threads=1, cuda_library_path=Path(folder) if folder else None, varying=True)
    return measure_on(device, decoders.LARGE, QUICK_ROUNDS if quick else ROUNDS, found)


FIGURES = (
    Figure("tokens_per_s_1", "1/s", "one client, greedy, 64 tokens read and 128 written"),
    Figure("tokens_per_s_8", "1/s", "8 clients at once"),
    Figure("tokens_per_s_32", "1/s", "32 clients at once"),
    Figure("bandwidth_fraction_1", "", "of the memory's bandwidth, by what a step of one client has to read"),
    Figure("ttft_p50_ms", "ms", "one client's time to first token"),
    Figure("device_memory_gb", "GB", "of the GPU's memory, weights, keys and values of 32 clients included"),
)

BENCH = Bench("gpu", "Text from a decoder of 1.2 thousand million random parameters, fp16, on a GPU.", FIGURES, measure)
