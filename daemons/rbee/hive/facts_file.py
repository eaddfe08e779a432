"""Reads what a worker states of itself (worker.json), and believes only what fits the unit and this machine."""

import os
import stat
from pathlib import Path

import msgspec

from rbee.host.addresses import answers_here
from rbee.host.units.facts import UnitFacts
from rbee.wire.messages import WorkerFacts, decode_json

_MOST_BYTES = 65536


class FactsProblem(Exception):
    """The facts are missing or cannot be believed; the text says why."""


def read_worker_facts(path: Path, unit: UnitFacts) -> WorkerFacts:
    """The facts of the life that ``unit`` describes; raises FactsProblem.

    Called in the event loop at READY, because a request waits for it: the file is a few hundred bytes on a tmpfs.
    """
    try:
        facts = decode_json(_read(path), WorkerFacts)
    except OSError as error:
        raise FactsProblem(f"worker.json cannot be read: {error.strerror}") from None
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise FactsProblem(f"worker.json does not fit the protocol: {error}") from None
    if facts.worker_id != unit.worker_id:
        raise FactsProblem("worker.json is of another worker")
    if unit.invocation_id and facts.invocation_id and facts.invocation_id != unit.invocation_id:
        raise FactsProblem("worker.json is of another life of this worker")
    if unit.main_pid and facts.pid and facts.pid != unit.main_pid:
        raise FactsProblem("worker.json is of another process")
    if not answers_here(facts.url):
        raise FactsProblem("worker.json names an address that is not of this machine")
    return facts


def _read(path: Path) -> bytes:
    # the folder is the worker's own: a link, a FIFO or a device there must neither be followed nor block the hive
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise FactsProblem("worker.json is no regular file")
        return os.read(handle, _MOST_BYTES)
    finally:
        os.close(handle)
