"""Finds what this worker is: its definition ID.yaml, the machine-wide worker.yaml, and the model folder they name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from rbee.host.config import Loaded, load_config, locate
from rbee.host.paths import Paths
from rbee.wire import names
from rbee.wire.errors import ConfigError, InvalidModelReference, InvalidRequest
from rbee.wire.model_reference import kept_folder, model_name_of, of_definition
from rbee.wire.tls_files import TlsFiles
from rbee.wire.worker_spec import WorkerSpec
from rbee.worker.engine.folder import resolve_folder

LOG_LEVELS = ("debug", "info", "warning", "error")


class Tokens(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files of tokens; without one the systemd credential of that name is used."""

    worker_api_token: str | None = None


class WorkerDefaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """worker.yaml: what holds for every worker of the machine.

    ``model_roots`` bounds where models may lie (default: the state folder's ``models``). ``cuda_library_path`` is a
    folder with CUDA's libraries where the loader does not find them by itself. ``admin_users`` may use the Unix
    sockets beside root and the group rbee. ``listen_host`` is where workers listen whose definition does not say; with
    ``tls`` one that others can reach is served by mutual TLS. A load warns where ``io_pressure_file`` says that tasks
    waited for disks for more than ``io_pressure_percent`` of the last 10 s; 0 turns that off.
    """

    model_roots: list[str] = []
    cuda_library_path: str | None = None
    log_level: str = "info"
    listen_host: str = "127.0.0.1"
    tls: TlsFiles = TlsFiles()
    tokens: Tokens = Tokens()
    admin_users: list[str] = []
    io_pressure_percent: Annotated[float, msgspec.Meta(ge=0, le=100)] = 50.0
    io_pressure_file: str = "/proc/pressure/io"


@dataclass(frozen=True, slots=True)
class Definition:
    """One worker's whole configuration, resolved: ``model`` is the name clients use, ``folder`` where it lies."""

    worker_id: str
    spec: WorkerSpec
    defaults: WorkerDefaults
    paths: Paths
    folder: Path
    model: str
    source: Loaded[WorkerSpec]

    @property
    def model_ref(self) -> str:
        """The model's reference: that of the definition, a folder in its file:/// form."""
        return f"file://{self.spec.model}" if self.spec.model.startswith("/") else self.spec.model

    @property
    def listen_host(self) -> str:
        """The address to listen on."""
        return self.spec.listen_host or self.defaults.listen_host

    @property
    def token_file(self) -> Path | None:
        """The configured file of the token that callers present."""
        configured = self.defaults.tokens.worker_api_token
        return Path(configured) if configured else None


def load_defaults(paths: Paths) -> WorkerDefaults:
    """Read worker.yaml (absent: the built-in defaults); raises ConfigError with file, line and field."""
    path = paths.config_dir / "worker.yaml"
    defaults = load_config(WorkerDefaults, path, required=False).value
    if defaults.log_level not in LOG_LEVELS:
        raise ConfigError(f"{locate(path, 'log_level')}: log_level: expected {', '.join(LOG_LEVELS)}; use one of them")
    return defaults


def load_definition(worker_id: str, paths: Paths, defaults: WorkerDefaults) -> Definition:
    """Read the worker's definition and resolve its model's folder; raises ConfigError with file, line and field."""
    try:
        path = paths.definition(worker_id)
    except InvalidRequest as error:
        raise ConfigError(error.message) from None
    if path is None:
        folders = ", ".join(str(folder) for folder in paths.definition_folders)
        raise ConfigError(f"{worker_id}.yaml: there is no definition of this worker in {folders}; write one")
    source = load_config(WorkerSpec, path, required=True)
    spec = source.value
    if spec.ports.first > spec.ports.last:
        raise ConfigError(f"{locate(path, 'ports')}: ports: first is above last; swap them")
    roots = [Path(root) for root in defaults.model_roots] or [paths.models]
    try:
        folder = _model_folder(spec.model, roots, paths.models)
        model = spec.name or names.model_name(model_name_of(spec.model))
    except ConfigError as error:
        raise ConfigError(f"{locate(path, 'model')}: {error.message}") from None
    except InvalidRequest:
        raise ConfigError(
            f"{locate(path, 'model')}: name: the folder's name cannot be a model's name; set `name`"
        ) from None
    return Definition(worker_id, spec, defaults, paths, folder, model, source)


def _model_folder(model: str, roots: Sequence[Path], kept: Path) -> Path:
    """The folder that a definition's ``model`` stands for: under a root, or where the hive keeps what it fetched."""
    try:
        reference = of_definition(model)
    except InvalidModelReference as error:
        raise ConfigError(f"model: {error.message}; or name the model's folder by its absolute path") from None
    if reference is None:
        return resolve_folder(model, roots)
    folder = kept_folder(reference, kept)
    if folder is None:
        raise ConfigError(
            "model: it is not on this machine: fetch it with 'rbee model pull REFERENCE', or start the worker with "
            "'rbee worker start', which fetches it first"
        )
    return resolve_folder(str(folder), [kept])
