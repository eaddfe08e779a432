"""Definition files of workers: read from the three folders, written for spawned workers; all of it blocks."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec
import yaml

from rbee.host.config import load_config
from rbee.host.paths import Paths
from rbee.wire import names
from rbee.wire.errors import ConfigError, InvalidModelReference, StorageUnavailable
from rbee.wire.worker_spec import WorkerSpec

_SUFFIX = ".yaml"
_FILE_SCHEME = "file://"


@dataclass(frozen=True, slots=True)
class Definition:
    """A worker's definition: where it stands, what it says, or the sentence on what is wrong with it."""

    path: Path
    spec: WorkerSpec | None
    problem: str = ""


class Definitions:
    """The three folders; a file is parsed again only when it changed."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._parsed: dict[Path, tuple[tuple[int, int, int], Definition]] = {}

    def read_all(self) -> dict[str, Definition]:
        """Every worker that is defined, the operator's folder winning over the hive's."""
        found: dict[str, Definition] = {}
        for folder in self._paths.definition_folders:
            for path in _files(folder):
                worker = path.name.removesuffix(_SUFFIX)
                if worker not in found and names.WORKER_ID.fullmatch(worker):
                    definition = self._read(path)
                    if definition is not None:
                        found[worker] = definition
        known = {definition.path for definition in found.values()}
        self._parsed = {path: entry for path, entry in self._parsed.items() if path in known}
        return found

    def read(self, worker_id: str) -> Definition | None:
        """One worker's definition, or None."""
        path = self._paths.definition(worker_id)
        return None if path is None else self._read(path)

    def _read(self, path: Path) -> Definition | None:
        try:
            status = path.stat()
        except OSError:
            return None
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        cached = self._parsed.get(path)
        if cached is not None and cached[0] == stamp:
            return cached[1]
        try:
            definition = Definition(path, load_config(WorkerSpec, path, required=True).value)
        except ConfigError as error:
            # this goes into answers and reports, which tell no folder of this machine
            definition = Definition(path, None, error.message.replace(f"{path.parent}/", ""))
        self._parsed[path] = (stamp, definition)
        return definition

    def write(self, worker_id: str, spec: WorkerSpec, *, ephemeral: bool) -> Path:
        """Write a definition whole or not at all; kept over a reboot unless ``ephemeral``.

        Raises StorageUnavailable.
        """
        _, kept, fleeting = self._paths.definition_folders
        folder = fleeting if ephemeral else kept
        text = "# Written by rbee-hive for a spawned worker; a file of the same name in the operator's folder wins.\n"
        text += yaml.safe_dump(msgspec.to_builtins(spec), sort_keys=False)
        path = folder / f"{names.worker_id(worker_id)}{_SUFFIX}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _replace(path, text)
        except OSError as error:
            raise _refused("written", error) from error
        # An older one in the other folder must not win over what was asked for now.
        _remove((kept if ephemeral else fleeting) / path.name)
        return path

    def forget(self, worker_id: str) -> bool:
        """Remove what the hive wrote for a worker; the operator's file stays. Returns whether there was one.

        Raises StorageUnavailable.
        """
        _, kept, fleeting = self._paths.definition_folders
        removed = [_remove(folder / f"{names.worker_id(worker_id)}{_SUFFIX}") for folder in (kept, fleeting)]
        return any(removed)

    def operators(self, definition: Definition) -> bool:
        """Whether the operator wrote it."""
        return definition.path.parent == self._paths.definition_folders[0]


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.name.endswith(_SUFFIX))
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return []


def _remove(path: Path) -> bool:
    """Remove a definition; returns whether there was one. Raises StorageUnavailable."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _refused("removed", error) from error
    return True


def _refused(what: str, error: OSError) -> StorageUnavailable:
    return StorageUnavailable(
        f"the worker's definition cannot be {what}: {error.strerror}; check the disk, owner and mode of the folder "
        "workers in the hive's state folder and in its run folder, then try again",
        retry_after_s=30,
    )


def _replace(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def model_folder(reference: str, roots: tuple[Path, ...]) -> Path:
    """The folder of a ``file:///`` reference: under a model root, no symbolic link on the way, and there.

    Raises InvalidModelReference, without repeating the reference, which comes from outside.
    """
    names.model_reference(reference)
    if not reference.startswith(_FILE_SCHEME):
        raise InvalidModelReference(
            "a folder is asked for here: give file:///FOLDER of a model that is on this machine",
            details={"field": "model_ref", "accepted": ["file:///path"]},
        )
    path = Path(reference.removeprefix(_FILE_SCHEME))
    root = next((root for root in roots if path != root and path.is_relative_to(root)), None)
    if root is None:
        raise InvalidModelReference(
            "the model is not under a model root of this machine: see model_roots in hive.yaml",
            details={"field": "model_ref"},
        )
    steps = [path, *path.parents]
    if any(step.is_symlink() for step in steps[: len(path.relative_to(root).parts)]):
        raise InvalidModelReference(
            "the path of the model has a symbolic link under its model root: name the real folder",
            details={"field": "model_ref"},
        )
    if not path.is_dir():
        raise InvalidModelReference("there is no such model folder on this machine", details={"field": "model_ref"})
    return path
