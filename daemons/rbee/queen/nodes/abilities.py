"""Which nodes can run what: each hive is asked what really starts on its machine."""

import asyncio
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import msgspec

from rbee.queen.hives.client import HiveClient
from rbee.queen.nodes.preflight import PROBE_LIMIT_S
from rbee.queen.registry.rows import Hive
from rbee.wire.errors import InvalidRequest, RbeeError
from rbee.wire.log import log
from rbee.wire.worker_spec import Backend

LOGGER = logging.getLogger(__name__)
ASKED_AT_ONCE = 32
_FORM = re.compile(rf"({'|'.join(backend.value for backend in Backend)})(?::([0-9]{{1,4}}))?")


class Device(msgspec.Struct, frozen=True):
    """What is needed of a GPU in a hive's answer: its number."""

    index: int


class Engine(msgspec.Struct, frozen=True):
    """What is needed of a hive's GET /v1/capabilities: backends that start, and the GPUs that its driver shows."""

    backends: list[str]
    devices: list[Device]


@dataclass(frozen=True, slots=True)
class Capability:
    """A backend, and the number of the device where one is named."""

    backend: Backend
    device: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """``cpu``, ``cuda`` or ``cuda:1``; raises InvalidRequest."""
        found = _FORM.fullmatch(text)
        if found is None:
            accepted = [backend.value for backend in Backend]
            raise InvalidRequest(
                "the parameter 'capability' is a backend, or one and a device's number, such as cuda:1",
                details={"field": "capability", "accepted": accepted},
                param="capability",
            )
        return cls(Backend(found[1]), None if found[2] is None else int(found[2]))

    def is_of(self, engine: Engine) -> bool:
        """Whether an engine has it; the CPU is one device, of number 0."""
        if self.backend.value not in engine.backends:
            return False
        devices = {0} if self.backend is Backend.CPU else {device.index for device in engine.devices}
        return self.device is None or self.device in devices


async def hives_with(client: HiveClient, hives: Iterable[Hive], capability: Capability) -> set[str]:
    """The ids of the hives that have it; one that is silent or does not answer has nothing that could be used now."""
    gate = asyncio.Semaphore(ASKED_AT_ONCE)

    async def ask(hive: Hive) -> str | None:
        async with gate:
            engine = await _engine(client, hive)
        return hive.hive_id if engine is not None and capability.is_of(engine) else None

    found = await asyncio.gather(*(ask(hive) for hive in hives if not hive.stale and not hive.manual))
    return {hive_id for hive_id in found if hive_id is not None}


async def _engine(client: HiveClient, hive: Hive) -> Engine | None:
    try:
        answer = await client.call(hive, "GET", "/v1/capabilities", waits=(0.0,), limit_s=PROBE_LIMIT_S)
        return msgspec.convert(answer, Engine)
    except (RbeeError, msgspec.ValidationError) as error:
        log(LOGGER, logging.WARNING, "a hive did not say what it can run", hive=hive.hive_id, why=str(error))
        return None
