"""Texts that come, end, are cut off and left unread, and what memory they leave: python generate_churn.py FOLDER COUNT.

Prints a line of JSON: resident memory after a tenth of ``COUNT`` requests (at least 500), and after as many again as
``COUNT``, in bytes.
"""

import asyncio
import json
import random
import resource
import sys
from contextlib import aclosing
from pathlib import Path

import uvloop

from rbee.wire.worker_spec import Backend
from rbee.worker.engine.batch.build import BatchSettings, build_batch, build_decoder, open_decoder
from rbee.worker.engine.decoder import read_layout
from rbee.worker.engine.folder import read_folder
from rbee.worker.engine.generate import BatchGenerator
from rbee.worker.engine.generation import GenerateRequest
from rbee.worker.engine.recognise import recognise
from rbee.worker.engine.runner import Runner
from rbee.worker.engine.sampling import SamplingParams
from rbee.worker.engine.sessions import DeviceSpec
from rbee.worker.engine.text_model import TextModel
from rbee.worker.engine.tokenise import load_tokenizer

AT_ONCE = 12
"""More than there are slots: some always wait."""
SLOTS = 8
PREFIX_BYTES = 2 << 20


def resident_bytes() -> int:
    """What of this process lies in memory now (proc(5), statm)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def build(folder: Path) -> BatchGenerator:
    """The worker's generator on the model in ``folder``, on one thread."""
    found, device = read_folder(folder), DeviceSpec(Backend.CPU, threads=1, varying=True)
    facts = recognise(found.facts)
    settings = BatchSettings(SLOTS, facts.context_length or 0, None, PREFIX_BYTES)
    layout = read_layout(found.facts)
    session = open_decoder(found.model_file, layout, device)
    batch = build_batch(build_decoder(session, layout, facts.vocabulary, device, settings), frozenset(), settings)
    tokenizer, _ = load_tokenizer(folder)
    generator = BatchGenerator(batch, TextModel(tokenizer, eos_ids=frozenset(), context_length=512), Runner(1))
    generator.warm_up()
    return generator


async def one(generator: BatchGenerator, chance: random.Random) -> None:
    """A text of a random length; one in three is cut off after a random number of tokens, or before the first."""
    prompt = tuple(chance.randrange(1, 250) for _ in range(chance.choice((3, 20, 80, 200))))
    tokens = chance.randrange(1, 9)
    left = chance.randrange(0, 3) if chance.random() < 1 / 3 else tokens
    params = SamplingParams(temperature=chance.choice((0.0, 1.0)), ignore_eos=True)
    async with aclosing(generator.stream(GenerateRequest(prompt, tokens, params))) as items:
        if left == 0:
            reading = asyncio.ensure_future(anext(items))
            await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
            return
        async for _ in items:
            left -= 1
            if left == 0:
                return


async def many(generator: BatchGenerator, count: int, chance: random.Random) -> None:
    """``count`` texts, some at once."""
    left = iter(range(count))

    async def client() -> None:
        for _ in left:
            await one(generator, chance)

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))


async def main() -> None:
    """Warm up, measure, go on, measure again."""
    generator, count, chance = build(Path(sys.argv[1])), int(sys.argv[2]), random.Random(5)  # noqa: S311 - a load
    await many(generator, max(500, count // 10), chance)
    before = resident_bytes()
    await many(generator, count, chance)
    print(json.dumps({"before": before, "after": resident_bytes()}))


uvloop.run(main())
