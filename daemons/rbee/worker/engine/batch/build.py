"""Puts a batch together for a decoder's files: the kind of decoder that they ask for, and its limits."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rbee.wire.errors import ConfigError
from rbee.wire.worker_spec import Backend
from rbee.worker.engine.batch.decoders import BatchDecoder
from rbee.worker.engine.batch.growing import GrowingDecoder
from rbee.worker.engine.batch.host_kv import HostBlock
from rbee.worker.engine.batch.memory import device_memory, host_memory
from rbee.worker.engine.batch.plan import MOST_TOKENS
from rbee.worker.engine.batch.prefix import BLOCK_TOKENS, PrefixCache
from rbee.worker.engine.batch.shared import SharedDecoder
from rbee.worker.engine.batch.stepper import Limits, Stepper
from rbee.worker.engine.decoder import DecoderLayout, run_options
from rbee.worker.engine.last_scores import cut_scores
from rbee.worker.engine.sampling import BatchSampler
from rbee.worker.engine.sessions import DeviceSpec, Session, create_session, runtime_device


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """``rows`` at once; tokens a row may have; bytes for their keys and values (None: no bound) and for prefixes."""

    rows: int
    context: int
    kv_bytes: int | None
    prefix_bytes: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A decoder, what steps its rows, and the prefix cache between them."""

    decoder: BatchDecoder
    stepper: Stepper
    prefixes: PrefixCache[HostBlock]


def open_decoder(file: Path, layout: DecoderLayout, device: DeviceSpec) -> Session:
    """The session of a decoder's file, cut to the scores that are asked for where that can be done. Blocking.

    Raises what create_session does.
    """
    cut = cut_scores(file, layout.scores, layout.scores_element) if layout.shares_buffers else None
    return create_session(file, device) if cut is None else create_session(cut, device, file.parent)


def build_decoder(
    session: Session, layout: DecoderLayout, vocabulary: int | None, device: DeviceSpec, settings: BatchSettings
) -> BatchDecoder:
    """The decoder; raises ConfigError where the files do not tell the width of the scores. Blocking."""
    if not layout.shares_buffers:
        return GrowingDecoder(session, layout, runtime_device(device.backend), device.device)
    width = layout.vocabulary or vocabulary
    if width is None:
        raise ConfigError("neither the graph nor config.json tells the vocabulary's size; export the model again")
    on_device = device.backend is Backend.CUDA
    memory = device_memory(layout, width, device) if on_device else host_memory(layout, width)
    return SharedDecoder(session, layout, width, memory, settings.rows, settings.context)


def context_within(decoder: BatchDecoder, settings: BatchSettings) -> int:
    """Tokens that one text may have: the context, or less where the memory for keys and values holds less.

    Raises ConfigError where it does not hold one step's prompt.
    """
    limit, context = settings.kv_bytes, settings.context
    if limit is None or decoder.size(1, context) <= limit:
        return context
    held = max((size for size in range(MOST_TOKENS, context, MOST_TOKENS) if decoder.size(1, size) <= limit), default=0)
    if not held:
        raise ConfigError(f"kv_cache_mb: {limit >> 20} MB does not hold {MOST_TOKENS} tokens of this model; raise it")
    return held


def build_batch(
    decoder: BatchDecoder,
    eos_ids: frozenset[int],
    settings: BatchSettings,
    clock: Callable[[], float] = time.perf_counter,
) -> Batch:
    """What steps the rows of ``decoder``."""
    prefixes: PrefixCache[HostBlock] = PrefixCache(settings.prefix_bytes, decoder.token_bytes * BLOCK_TOKENS)
    limits = Limits(settings.rows, settings.kv_bytes)
    return Batch(decoder, Stepper(decoder, BatchSampler(eos_ids), prefixes, limits, run_options(), clock), prefixes)
