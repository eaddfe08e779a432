"""Reads a model folder from disk: which files it has, which ONNX file is the model, and that nothing leads outside."""

import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rbee.wire.errors import ConfigError
from rbee.worker.engine import onnx_file, recognise
from rbee.worker.engine.recognise import FolderFacts

PREFERRED = ("model.onnx", "decoder_model_merged.onnx", "onnx/model.onnx", "onnx/decoder_model_merged.onnx")
CONFIG_FILES = (
    "config.json",
    "genai_config.json",
    "generation_config.json",
    "modules.json",
    "tokenizer_config.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "1_Pooling/config.json",
)
LISTS = {"modules.json"}
TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILE = "tokenizer.json"
READ_CHUNK = 8 << 20


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder that was read: its facts, the file to load, and every file that loading will read."""

    path: Path
    facts: FolderFacts
    model_file: Path
    weight_files: tuple[Path, ...]

    @property
    def weight_bytes(self) -> int:
        """Size of the model's files in bytes, external data included."""
        return sum(path.stat().st_size for path in self.weight_files)


def resolve_folder(reference: str, roots: Sequence[Path]) -> Path:
    """The model folder that ``reference`` (absolute path or file:///) names, symlinks resolved.

    Raises ConfigError where it is of another form, not a folder, or not under one of ``roots``.
    """
    text = reference.removeprefix("file://")
    if not text.startswith("/") or "\0" in text:
        raise ConfigError("model: expected an absolute path or file:///path; use the folder that holds the model")
    folder = Path(text).resolve()
    if not any(folder.is_relative_to(root.resolve()) for root in roots):
        listed = ", ".join(str(root) for root in roots)
        raise ConfigError(
            f"model: the folder lies outside the model roots ({listed}); move it there, or add its parent to "
            "model_roots in worker.yaml"
        )
    if not folder.is_dir():
        raise ConfigError("model: there is no such folder; check the path, or fetch the model first")
    return folder


def read_folder(path: Path) -> ModelFolder:
    """Read the folder at ``path``; raises ConfigError naming the file that is missing, malformed or leads outside."""
    try:
        files = frozenset(_relative_files(path))
    except OSError as error:
        raise ConfigError(f"model: the folder cannot be read: {error.strerror}; check its owner and mode") from None
    for name in files & {*CONFIG_FILES, TEMPLATE_FILE, TOKENIZER_FILE}:
        _inside(path, name)
    configs = {name: _read_config(path / name, name) for name in CONFIG_FILES if name in files}
    template = recognise.read_text(path / TEMPLATE_FILE) if TEMPLATE_FILE in files else None
    name = _model_name(files, configs)
    model_file = _inside(path, name)
    try:
        graph = onnx_file.read_graph(model_file)
    except OSError as error:
        raise _unreadable(model_file, error) from None
    external = [_external(path, model_file, location) for location in sorted(graph.external)]
    facts = FolderFacts(files, configs, graph, template)
    return ModelFolder(path, facts, model_file, (model_file, *external))


def read_through(files: Sequence[Path], report: Callable[[int, int], None]) -> None:
    """Read files into the page cache, calling ``report(done, total)`` in bytes as it goes.

    The runtime gives no progress of its own; reading first makes the slow part of loading visible. Raises ConfigError
    for a file that cannot be read.
    """
    total = sum(path.stat().st_size for path in files)
    buffer = memoryview(bytearray(min(READ_CHUNK, total) or 1))
    done = 0
    report(done, total)
    for path in files:
        try:
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    done += count
                    report(done, total)
        except OSError as error:
            raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"model: {path.name} cannot be read: {error.strerror}; check its owner and mode, and the disk that it lies on"
    )


def _relative_files(path: Path) -> list[str]:
    found = [each.name for each in path.iterdir() if each.is_file()]
    for inner in (each for each in path.iterdir() if each.is_dir()):
        found.extend(f"{inner.name}/{each.name}" for each in inner.iterdir() if each.is_file())
    return found


def _read_config(path: Path, name: str) -> Mapping[str, Any]:
    if name in LISTS:
        # a list at the top: kept under one key so that every config is an object
        return {"modules": recognise.read_json(path, list)}
    return recognise.read_json(path, dict)


def _model_name(files: frozenset[str], configs: Mapping[str, Mapping[str, Any]]) -> str:
    declared = _declared(configs.get("genai_config.json", {}))
    if declared is not None:
        return declared
    for name in PREFERRED:
        if name in files:
            return name
    found = sorted(name for name in files if name.endswith(".onnx"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError("model: the folder holds no .onnx file; fetch the model again")
    raise ConfigError(
        f"model: the folder holds several ONNX files ({', '.join(found[:5])}) and none is named model.onnx; "
        "keep one, or rename it"
    )


def _declared(genai: Mapping[str, Any]) -> str | None:
    model = genai.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    name = decoder.get("filename") if isinstance(decoder, dict) else None
    return name if isinstance(name, str) else None


def _external(folder: Path, model_file: Path, location: str) -> Path:
    """Where a tensor's external data lies: relative to the model file, inside the folder."""
    if not location or PurePosixPath(location).is_absolute():
        raise ConfigError("model: external data has no relative location; the model is not safe to load")
    return _inside(folder, str(model_file.parent.relative_to(folder) / location))


def _inside(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise ConfigError(f"model: a file of the model ({Path(name).name}) leads outside its folder; it is not loaded")
    try:
        mode = path.stat().st_mode
    except OSError:
        raise ConfigError(f"model: the file {Path(name).name} is missing; fetch the model again") from None
    if not stat.S_ISREG(mode):
        raise ConfigError(f"model: {Path(name).name} is not a regular file; fetch the model again")
    return path
