"""The reference of the bench `generate`: onnxruntime-genai, driven by lines of JSON. Runs in an environment of its own.

    python generate_genai.py MODEL_FOLDER THREADS

Each line asks for one measurement: {"what": "engine" | "generators", "rows", "tokens", "prompt", "every_s", "seed"};
each answer is a line {"tokens_per_s"}. The Engine is asked for batches of as many rows as there are.
"""

import json
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime_genai as og
from numpy.typing import NDArray

WARM_UP_TOKENS = 8
Prompts = Sequence[NDArray[np.int32]]


class Reference:
    """One model; an Engine is made for each number of rows, as its batches have a fixed bound."""

    def __init__(self, folder: str, threads: int) -> None:
        self.folder, self.threads = folder, threads
        self.engines: dict[int, Any] = {}
        self.model = self.load({})

    def load(self, more: dict[str, object]) -> "og.Model":
        """The model, with the same threads as the other side."""
        config = og.Config(self.folder)
        options = {"model": {"decoder": {"session_options": {"intra_op_num_threads": self.threads}}}}
        config.overlay(json.dumps(options | more))
        return og.Model(config)

    def engine(self, rows: int) -> "og.Engine":
        """The Engine for batches of ``rows``, which has answered before: the other side is warm as well."""
        if rows not in self.engines:
            self.engines[rows] = og.Engine(self.load({"engine": {"static_batching": {"max_batch_size": rows}}}))
            self.in_engine([np.arange(1, 65, dtype=np.int32)] * rows, WARM_UP_TOKENS, 0.0)
        return self.engines[rows]

    def in_engine(self, prompts: Prompts, tokens: int, every_s: float) -> float:
        """Tokens a second of the Engine, a prompt each ``every_s`` seconds."""
        engine = self.engine(len(prompts))
        buffer, count, began = engine.create_event_buffer(256), 0, time.perf_counter()
        requests: list[Any] = []
        while len(requests) < len(prompts) or engine.has_pending_requests():
            due = began + len(requests) * every_s
            if len(requests) < len(prompts) and time.perf_counter() >= due:
                request = engine.create_request()
                options = og.TurnOptions(request)
                options.set_do_sample(False)
                options.set_max_generated_tokens(tokens)
                options.set_min_generated_tokens(tokens)
                request.begin_turn(prompts[len(requests)], options)
                requests.append(request)
            elif engine.has_pending_requests():
                count += sum(event.token is not None for event in engine.run(buffer))
            else:
                time.sleep(max(0.0, due - time.perf_counter()))
        seconds = time.perf_counter() - began
        for request in requests:
            request.close()
        return count / seconds

    def in_generators(self, prompts: Prompts, tokens: int) -> float:
        """Tokens a second of a Generator for each prompt, each in a thread."""

        def generate(prompt: NDArray[np.int32]) -> None:
            parameters = og.GeneratorParams(self.model)
            length = len(prompt) + tokens
            parameters.set_search_options(do_sample=False, max_length=length, min_length=length)
            generator = og.Generator(self.model, parameters)
            generator.append_tokens(prompt)
            for _ in range(tokens):
                generator.generate_next_token()

        threads = [threading.Thread(target=generate, args=(prompt,)) for prompt in prompts]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(prompts) * tokens / (time.perf_counter() - began)


def main() -> None:
    """Answer until the input ends."""
    reference = Reference(sys.argv[1], int(sys.argv[2]))
    print(json.dumps({"ready": og.__version__}), flush=True)
    for line in sys.stdin:
        ask = json.loads(line)
        random = np.random.default_rng(ask["seed"])
        prompts = [random.integers(1, ask["vocabulary"], ask["prompt"]).astype(np.int32) for _ in range(ask["rows"])]
        if ask["what"] == "engine":
            speed = reference.in_engine(prompts, ask["tokens"], ask["every_s"])
        else:
            speed = reference.in_generators(prompts, ask["tokens"])
        print(json.dumps({"tokens_per_s": speed}), flush=True)


main()
