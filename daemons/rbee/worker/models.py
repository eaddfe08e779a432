"""Makes the one model of this worker from its folder, on the device that its definition asks for."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rbee.wire.worker_spec import Backend, Task, WorkerSpec
from rbee.worker.definition import Definition
from rbee.worker.engine.folder import ModelFolder
from rbee.worker.engine.recognise import ModelFacts
from rbee.worker.engine.runner import Runner
from rbee.worker.engine.runtime import available_memory
from rbee.worker.engine.sessions import DeviceSpec, Session, create_session
from rbee.worker.engine.tensor import TensorModel
from rbee.worker.engine.token_batches import Budget, budget_for

if TYPE_CHECKING:
    from rbee.worker.engine.batch.prefix import PrefixCounts
    from rbee.worker.engine.embed import Embedder
    from rbee.worker.engine.generate import BatchGenerator
    from rbee.worker.engine.rank import Ranker
    from rbee.worker.engine.shared_runs import RunCounts
    from rbee.worker.engine.tokenise import TextReader

SPARE_THREADS = 2
"""Step threads beside one a slot: prompts are tokenised there as well."""


@dataclass(frozen=True, slots=True)
class Model:
    """What serves requests, for one task, and the runner of its steps.

    ``close`` releases the threads, without waiting for a step that still runs; ``prefixes`` is what a text model's
    prefix cache counts, ``runs`` what shared runs do.
    """

    task: Task
    served: "Embedder | Ranker | BatchGenerator | TensorModel"
    runner: Runner
    close: Callable[[], None]
    prefixes: "PrefixCounts | None" = None
    runs: "RunCounts | None" = None


def build_runner(spec: WorkerSpec) -> Runner:
    """The threads of this worker's steps."""
    return Runner(spec.slots + SPARE_THREADS)


def build_model(definition: Definition, folder: ModelFolder, facts: ModelFacts, runner: Runner, threads: int) -> Model:
    """Create the session and what serves its task; raises ConfigError, ProviderUnavailable. Blocking."""
    device = replace(device_spec(definition, threads), varying=facts.task is Task.GENERATE)
    session = _session(folder, facts, device)
    closing = ExitStack()
    closing.callback(runner.close)
    if facts.task is Task.GENERATE:
        generator = _generator(definition, folder, facts, session, runner, device)
        closing.callback(generator.close)
        return Model(facts.task, generator, runner, closing.close, generator.prefixes)
    served: Embedder | Ranker | TensorModel
    if facts.task in (Task.EMBED, Task.RANK):
        budget = budget_for(Backend(definition.spec.backend), threads, definition.spec.max_batch_tokens)
        make = _embedder if facts.task is Task.EMBED else _ranker
        served = make(folder, facts, session, runner, budget)
    else:
        served = TensorModel(session, folder.facts.graph, runner, definition.spec.max_batch)
    return Model(facts.task, served, runner, closing.close, runs=served.counts)


def _session(folder: ModelFolder, facts: ModelFacts, device: DeviceSpec) -> Session:
    if facts.task is not Task.GENERATE:
        return create_session(folder.model_file, device)
    from rbee.worker.engine.batch.build import open_decoder
    from rbee.worker.engine.decoder import read_layout

    return open_decoder(folder.model_file, read_layout(folder.facts), device)


def kv_bytes(spec: WorkerSpec) -> int | None:
    """Memory for keys and values: as configured; else, on the CPU, half of what is free when the worker starts."""
    if spec.kv_cache_mb is not None:
        return spec.kv_cache_mb << 20
    if spec.backend is Backend.CUDA:
        return spec.gpu_mem_limit_mb << 19 if spec.gpu_mem_limit_mb is not None else None
    available = available_memory()
    return available // 2 if available else None


def device_spec(definition: Definition, threads: int) -> DeviceSpec:
    """Where the definition wants its session."""
    spec, library_path = definition.spec, definition.defaults.cuda_library_path
    return DeviceSpec(
        Backend(spec.backend),
        spec.device,
        threads,
        spec.gpu_mem_limit_mb,
        spec.use_tf32,
        Path(library_path) if library_path else None,
    )


def _embedder(folder: ModelFolder, facts: ModelFacts, session: Session, runner: Runner, budget: Budget) -> "Embedder":
    from rbee.worker.engine.embed import Embedder

    return Embedder(session, folder.facts, _reader(folder, facts), runner, budget)


def _ranker(folder: ModelFolder, facts: ModelFacts, session: Session, runner: Runner, budget: Budget) -> "Ranker":
    from rbee.worker.engine.rank import Ranker

    return Ranker(session, folder.facts, _reader(folder, facts), runner, budget)


def _reader(folder: ModelFolder, facts: ModelFacts) -> "TextReader":
    from rbee.worker.engine.tokenise import TextReader, length_rule, load_tokenizer

    tokenizer, declared = load_tokenizer(folder.path)
    return TextReader(tokenizer, length_rule(folder.facts, declared, facts.context_length))


def _generator(
    definition: Definition,
    folder: ModelFolder,
    facts: ModelFacts,
    session: Session,
    runner: Runner,
    device: DeviceSpec,
) -> "BatchGenerator":
    from rbee.worker.engine.batch.build import BatchSettings, build_batch, build_decoder, context_within
    from rbee.worker.engine.chat import ChatTemplate, special_tokens
    from rbee.worker.engine.decoder import read_layout
    from rbee.worker.engine.generate import BatchGenerator
    from rbee.worker.engine.sampling import default_sampling
    from rbee.worker.engine.text_model import DEFAULT_CONTEXT, TextModel
    from rbee.worker.engine.tokenise import load_tokenizer

    spec = definition.spec
    lengths = [length for length in (facts.context_length, spec.max_context) if length is not None]
    settings = BatchSettings(
        spec.slots, min(lengths, default=DEFAULT_CONTEXT), kv_bytes(spec), spec.prefix_cache_mb << 20
    )
    decoder = build_decoder(session, read_layout(folder.facts), facts.vocabulary, device, settings)
    tokenizer, _ = load_tokenizer(folder.path)
    text = TextModel(
        tokenizer,
        eos_ids=facts.eos_ids,
        context_length=context_within(decoder, settings),
        template=ChatTemplate(facts.chat_template, special_tokens(folder.facts)) if facts.chat_template else None,
        sampling=default_sampling(folder.facts.config("generation_config.json")),
        tool_format=spec.tool_format,
    )
    batch = build_batch(decoder, facts.eos_ids, settings)
    return BatchGenerator(batch, text, runner)
