"""Configuration files: YAML into a typed struct, with the file, line and field of whatever is wrong."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import yaml

from rbee.wire.errors import ConfigError

T = TypeVar("T", bound=msgspec.Struct)
_AT = " - at `$."
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Override:
    """A value that wins over the file: ``field`` is its dotted path, ``source`` the variable or flag it came from."""

    field: str
    value: object
    source: str


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """A configuration in force: the value, the file it came from (None where there was none), what overrode it."""

    value: T
    path: Path | None
    overrides: tuple[str, ...]
    duration_ms: float

    def describe(self) -> dict[str, object]:
        """Fields of the one record that names the file and what overrode it; values are not in it."""
        return {
            "file": str(self.path) if self.path else "built-in defaults",
            "overrides": ", ".join(self.overrides) or "none",
            "duration_ms": round(self.duration_ms, 1),
        }


def load_config(kind: type[T], path: Path, *, required: bool, overrides: Sequence[Override] = ()) -> Loaded[T]:
    """Read ``path`` into ``kind``, then lay ``overrides`` over it in order (environment before flags).

    A file that is absent gives the defaults unless ``required``. Raises ConfigError that names file, line, field, the
    type expected, and what to do; never a value, which could be a secret.
    """
    started = time.perf_counter()
    node = _compose(path, required=required)
    document = _document(path, node)
    for override in overrides:
        _lay_over(document, override)
    try:
        value = msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise _explain(path, node, error, overrides) from None
    duration_ms = (time.perf_counter() - started) * 1000
    applied = tuple(f"{override.field} from {override.source}" for override in overrides)
    return Loaded(value, path if node is not None else None, applied, duration_ms)


def locate(path: Path, field: str) -> str:
    """``FILE:LINE`` of a dotted field, for what is found wrong with a value after the file was read."""
    line = _line_of(_compose(path, required=False), field)
    return f"{path}:{line}" if line else str(path)


def _compose(path: Path, *, required: bool) -> yaml.Node | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        if required:
            raise ConfigError(f"{path}: the file is missing: write it, or name another one") from None
        return None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}: check its owner and mode") from None
    if len(data) > _MOST_BYTES:
        raise ConfigError(f"{path}: over 1 MiB: this is no configuration of ours")
    try:
        return yaml.compose(data, Loader=yaml.SafeLoader)
    except RecursionError:
        raise ConfigError(
            f"{path}: not valid YAML: it is nested too deeply: this is no configuration of ours"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it does not parse"
        raise ConfigError(f"{path}{line}: not valid YAML: {problem}: mend the line") from None


def _document(path: Path, node: yaml.Node | None) -> dict[str, Any]:
    if node is None:
        return {}
    loader = yaml.SafeLoader("")
    try:
        document = loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:  # a ValueError for a date or a number that is none
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{line}: not valid YAML: mend the line") from None
    finally:
        loader.dispose()
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"{path}:1: expected a mapping of fields to values at the top: write 'field: value' lines")
    return document


def _lay_over(document: dict[str, Any], override: Override) -> None:
    *parents, last = override.field.split(".")
    place = document
    for parent in parents:
        inner = place.get(parent)
        if not isinstance(inner, dict):
            inner = {}
            place[parent] = inner
        place = inner
    place[last] = override.value


def _explain(
    path: Path, node: yaml.Node | None, error: msgspec.ValidationError, overrides: Sequence[Override]
) -> ConfigError:
    reason, _, at = str(error).partition(_AT)
    field = at.removesuffix("`")
    named = _named_in(reason)
    if reason.startswith("Object contains unknown field") and named:
        field = f"{field}.{named}".lstrip(".")
        reason = f"unknown field '{named}'"
    elif reason.startswith("Object missing required field") and named:
        field = f"{field}.{named}".lstrip(".")
        reason = "the field is required and missing"
    source = next((override.source for override in reversed(overrides) if override.field == field), None)
    if source is not None:
        return ConfigError(f"{source}: {field}: {reason}: mend it", details={"field": field, "source": source})
    line = _line_of(node, field)
    where = f"{path}:{line}" if line else str(path)
    return ConfigError(
        f"{where}: {field or 'top'}: {reason}: mend it, then start again",
        details={"field": field, "line": line, "error_kind": "config_validation_failed"},
    )


def _named_in(reason: str) -> str:
    parts = reason.split("`")
    return parts[1] if len(parts) >= 3 else ""  # the name stands between the first two backquotes


def _line_of(node: yaml.Node | None, field: str) -> int | None:
    """The line, from 1, of a dotted field; of its nearest parent where the field itself is absent."""
    line = None if node is None else node.start_mark.line + 1
    for part in field.replace("[", ".[").split("."):
        if isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == part), None)
            if pair is None:
                return line
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and part.strip("[]").isdigit():
            index = int(part.strip("[]"))
            if index >= len(node.value):
                return line
            node = node.value[index]
            line = node.start_mark.line + 1
        else:
            return line
    return line
