"""A store on a folder of its own, and a source of models on loopback."""

import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from tests.behaviour.support.model_source import ModelSource

from rbee.hive.config import HiveConfig, ModelSettings
from rbee.hive.models.download import Download
from rbee.hive.models.metrics import ModelMetrics
from rbee.hive.models.store import ModelStore, Users
from rbee.wire.model_messages import ModelRow
from rbee.wire.model_reference import parse

FAST: dict[str, Any] = {"stall_limit_s": 0.5, "retry_most_s": 0.05, "disk_reserve_mb": 0}


class Bench:
    """A store, its configuration, and who uses models."""

    def __init__(
        self, folder: Path, source: ModelSource, tls: ssl.SSLContext | None = None, **settings: object
    ) -> None:
        models = msgspec.convert({**FAST, "hf_endpoint": source.url, **settings}, ModelSettings)
        self.config = HiveConfig(
            config_dir=f"{folder}/etc", state_dir=f"{folder}/state", run_dir=f"{folder}/run", models=models
        )
        self.users: Users = {}
        self._closed = False
        self.registry = CollectorRegistry()
        self.store = ModelStore(self.config, ModelMetrics(self.registry), lambda: self.users, tls)

    @property
    def models(self) -> Path:
        return self.store.folder

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self.store.close()

    async def pull(self, reference: str) -> ModelRow:
        found = await self.store.obtain(parse(reference))
        return await found.result() if isinstance(found, Download) else found

    def counted(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def source() -> Iterator[ModelSource]:
    made = ModelSource().start()
    yield made
    made.close()


@pytest.fixture
async def bench_of(tmp_path: Path, source: ModelSource) -> AsyncIterator[Callable[..., Any]]:
    """Makes stores with other settings; each is closed at the end."""
    made: list[Bench] = []

    async def make(folder: Path | None = None, tls: ssl.SSLContext | None = None, **settings: object) -> Bench:
        bench = Bench(folder or tmp_path, source, tls, **settings)
        made.append(bench)
        await bench.store.open()
        return bench

    yield make
    for bench in made:
        await bench.close()


@pytest.fixture
async def bench(bench_of: Callable[..., Any]) -> Bench:
    made: Bench = await bench_of()
    return made
