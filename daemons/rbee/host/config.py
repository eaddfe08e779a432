"""Configuration files: YAML into a typed struct, with the file, line and field of whatever is wrong."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import yaml

from rbee.wire.errors import ConfigError

T = TypeVar("T", bound=msgspec.Struct)
_AT = " - at `"
_SOME_KEY = "[...]"
_INDEX = re.compile(r"\.[^.\[]+|\[\.\.\.\]|\[\d+\]")
"""The steps of a path as msgspec writes it, where the keys of a mapping are all ``[...]``."""
_OF_A_FIELD = ("Object contains unknown field", "Object missing required field")
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
        raise _explain(path, node, error, _place(kind, document, str(error)), overrides) from None
    duration_ms = (time.perf_counter() - started) * 1000
    applied = tuple(f"{override.field} from {override.source}" for override in overrides)
    return Loaded(value, path if node is not None else None, applied, duration_ms)


def locate(path: Path, *parts: str | int) -> str:
    """``FILE:LINE`` of a field by the keys and indices that lead to it, for what is found wrong after reading."""
    line = _line_of(_compose(path, required=False), parts)
    return f"{path}:{line}" if line else str(path)


def shown(parts: Sequence[str | int]) -> str:
    """A field as a person reads it: nodes.bee.host, models[0].source."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")


def _compose(path: Path, *, required: bool) -> yaml.Node | None:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        if required:
            raise ConfigError(f"{path}: the file is missing: write it, or name another one") from None
        return None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}: check its owner and mode") from None
    if len(data) > _MOST_BYTES:
        raise ConfigError(f"{path}: over 1 MiB: this is no configuration of ours")
    try:
        node = yaml.compose(data, Loader=yaml.SafeLoader)
    except RecursionError:
        raise ConfigError(
            f"{path}: not valid YAML: it is nested too deeply: this is no configuration of ours"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it does not parse"
        raise ConfigError(f"{path}{line}: not valid YAML: {problem}: mend the line") from None
    _refuse_twice(path, node)
    return node


def _refuse_twice(path: Path, node: yaml.Node | None) -> None:
    """Raise ConfigError for a key that a mapping has twice: YAML forbids it, and its reader would take the last."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise ConfigError(f"{path}:{key.start_mark.line + 1}: {key.value} stands here twice: remove one")
                seen.add(key.value)
            _refuse_twice(path, value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_twice(path, value)


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


def _place(kind: type[msgspec.Struct], document: dict[str, Any], told: str) -> list[str | int]:
    """Where in the document an error of msgspec's is, the keys of mappings that it does not name found by trial."""
    reason, _, at = told.partition(_AT)
    of_key = at.startswith("key` in `$")
    path = _INDEX.findall(at.removeprefix("key` in `").removeprefix("$").removesuffix("`")) + [_SOME_KEY] * of_key
    parts: list[str | int] = []
    place: Any = document
    for step in path:
        if step == _SOME_KEY:
            key = next((key for key in place if _still(kind, document, parts, key, told)), None)
            if key is None:
                return parts
            parts.append(str(key))
            place = place[key]
        else:
            parts.append(int(step.strip("[]")) if step.startswith("[") else step.lstrip("."))
            place = place.get(parts[-1]) if isinstance(place, dict) else place[parts[-1]]
    named = _named_in(reason)
    if named and reason.startswith(_OF_A_FIELD):
        parts.append(named)
    return parts


def _still(kind: type[msgspec.Struct], document: Any, parts: Sequence[str | int], key: Any, told: str) -> bool:  # noqa: ANN401
    """Whether the error is the same where the mapping at ``parts`` has nothing but ``key``."""
    try:
        msgspec.convert(_reduced(document, parts, key), kind)
    except msgspec.ValidationError as error:
        return str(error) == told
    return False


def _reduced(place: Any, parts: Sequence[str | int], key: Any) -> Any:  # noqa: ANN401
    """A copy of a document in which the mapping at ``parts`` has nothing but ``key``."""
    if not parts:
        return {key: place[key]}
    first = parts[0]
    inner = _reduced(place[first], parts[1:], key)
    if isinstance(place, dict):
        return place | {first: inner}
    return [inner if index == first else one for index, one in enumerate(place)]


def _explain(
    path: Path,
    node: yaml.Node | None,
    error: msgspec.ValidationError,
    parts: Sequence[str | int],
    overrides: Sequence[Override],
) -> ConfigError:
    reason = str(error).partition(_AT)[0]
    field, named = shown(parts), _named_in(reason)
    if reason.startswith("Object contains unknown field") and named:
        reason = f"unknown field '{named}'"
    elif reason.startswith("Object missing required field") and named:
        reason = "the field is required and missing"
    source = next((override.source for override in reversed(overrides) if override.field == field), None)
    if source is not None:
        return ConfigError(f"{source}: {field}: {reason}: mend it", details={"field": field, "source": source})
    line = _line_of(node, parts)
    where = f"{path}:{line}" if line else str(path)
    return ConfigError(
        f"{where}: {field or 'top'}: {reason}: mend it, then start again",
        details={"field": field, "line": line, "error_kind": "config_validation_failed"},
    )


def _named_in(reason: str) -> str:
    parts = reason.split("`")
    return parts[1] if len(parts) >= 3 else ""  # the name stands between the first two backquotes


def _line_of(node: yaml.Node | None, parts: Sequence[str | int]) -> int | None:
    """The line, from 1, of a field; of its nearest parent where the field itself is absent."""
    line = None if node is None else node.start_mark.line + 1
    for part in parts:
        if isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == str(part)), None)
            if pair is None:
                return line
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line
