"""What this worker states of itself in worker.json: its address as soon as it listens, all of it before READY=1."""

import os
import socket
import time
from collections.abc import Sequence

import msgspec

from rbee import __version__
from rbee.host.addresses import outward_address
from rbee.host.machine import own_memory
from rbee.host.sockets import is_loopback, tcp_address
from rbee.wire.errors import ConfigError
from rbee.wire.messages import WorkerFacts
from rbee.wire.worker_spec import Task
from rbee.worker.definition import Definition
from rbee.worker.engine.recognise import ModelFacts


def listening_facts(definition: Definition, sockets: Sequence[socket.socket]) -> WorkerFacts:
    """The facts of a worker that listens and loads: ``ready_monotonic_us`` is 0, the task as its definition has it.

    They let a hive tell where the worker is before it is ready, so that the queen can ask it should that hive fall
    silent. Raises ConfigError where there is no TCP address.
    """
    spec = definition.spec
    return WorkerFacts(
        worker_id=definition.worker_id,
        url=_url(definition, sockets),
        socket=str(definition.paths.worker_socket(definition.worker_id)),
        model=definition.model,
        model_ref=definition.model_ref,
        task=spec.task,
        backend=spec.backend,
        device=spec.device,
        slots_total=spec.slots,
        version=__version__,
        pid=os.getpid(),
        invocation_id=os.environ.get("INVOCATION_ID", ""),
        ready_monotonic_us=0,
    )


def ready_facts(definition: Definition, sockets: Sequence[socket.socket], model: ModelFacts) -> WorkerFacts:
    """The facts of a worker that is about to say READY=1."""
    memory = own_memory()
    return msgspec.structs.replace(
        listening_facts(definition, sockets),
        task=Task(model.task),
        ready_monotonic_us=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000,
        capabilities=[str(model.task), device_name(definition), model.precision],
        memory_bytes=memory.resident,
        memory_peak_bytes=memory.peak,
    )


def device_name(definition: Definition) -> str:
    """``cpu``, or ``cuda:N``."""
    spec = definition.spec
    return f"{spec.backend}:{spec.device}" if spec.backend == "cuda" else str(spec.backend)


def write_facts(definition: Definition, facts: WorkerFacts) -> None:
    """Put worker.json in place, whole or not at all; raises ConfigError."""
    path = definition.paths.worker_facts(definition.worker_id)
    draft = path.with_suffix(".tmp")
    try:
        draft.write_bytes(msgspec.json.encode(facts))
        draft.chmod(0o644)
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}: check the folder's owner") from None


def _url(definition: Definition, sockets: Sequence[socket.socket]) -> str:
    address = tcp_address(sockets)
    if address is None:
        raise ConfigError("the worker listens on no TCP address")
    host, port = address
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = outward_address(socket.AF_INET6 if ":" in host else socket.AF_INET)
    plain = definition.defaults.tls.identity is None or all(is_loopback(bound) for bound in sockets)
    return f"{'http' if plain else 'https'}://{f'[{host}]' if ':' in host else host}:{port}"
