"""The hive's configuration: hive.yaml, over it QUEEN_CALLBACK_URL, over it the flags."""

import enum
import hashlib
import re
import socket
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from rbee.host.audit.setting import Audited
from rbee.host.paths import Paths
from rbee.wire import names
from rbee.wire.errors import ConfigError
from rbee.wire.tls_files import TlsFiles

CALLBACK_VARIABLE = "QUEEN_CALLBACK_URL"
CALLBACK_FIELD = "queen.callback_url"
MACHINE_ID = Path("/etc/machine-id")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,253}[A-Za-z0-9])?|[0-9A-Fa-f:.]+")

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Label = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")]
PathText = Annotated[str, Meta(min_length=1, max_length=4096)]
Port = Annotated[int, Meta(ge=1024, le=65535)]


class SupervisorKind(enum.StrEnum):
    """Who runs the workers: systemd over D-Bus, or the hive itself as child processes."""

    SYSTEMD = "systemd"
    CHILD = "child"


class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to listen on TCP when no socket is inherited."""

    host: Annotated[str, Meta(min_length=1, max_length=255)] = "127.0.0.1"
    port: Port = 9200


class QueenSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to report; null means standalone. ``required``: a queen that does not answer at start ends the start."""

    callback_url: Annotated[str, Meta(max_length=300)] | None = None
    required: bool = False


class Tokens(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files that hold the tokens, one per hop; null means the credential of that name, if there is one.

    ``hf_token`` is presented to the hub that models come from.
    """

    hf_token: PathText | None = None
    hive_api_token: PathText | None = None
    hive_callback_token: PathText | None = None
    worker_api_token: PathText | None = None


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds: what is held in memory, and how much a caller may ask for at once.

    ``invalid_per_second``: requests of one caller that are not acceptable and told so; further ones get 429.
    """

    external_workers: Annotated[int, Meta(ge=0, le=10_000)] = 256
    log_lines: Annotated[int, Meta(ge=1, le=100_000)] = 10_000
    log_streams: Annotated[int, Meta(ge=1, le=256)] = 16
    health_checks_at_once: Annotated[int, Meta(ge=1, le=256)] = 16
    invalid_per_second: Annotated[float, Meta(ge=1, le=1_000_000)] = 50


class ModelSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How models are fetched and how much room they may take.

    ``hf_endpoint`` is the hub of ``hf:`` references (null: HF_ENDPOINT, else huggingface.co). ``bandwidth_limit_mbps``
    bounds all downloads together, in megabits per second. ``disk_reserve_mb`` stays free whatever is fetched.
    ``disk_budget_mb`` bounds the models that were fetched: over it the least recently used go; null: none goes by
    itself. A source that sends nothing for ``stall_limit_s`` counts as stalled; no wait between two tries is over
    ``retry_most_s``. MB are 10^6 bytes.
    """

    hf_endpoint: Annotated[str, Meta(pattern=r"^https?://[A-Za-z0-9.\[\]:_/-]+$", max_length=300)] | None = None
    bandwidth_limit_mbps: Annotated[float, Meta(gt=0)] | None = None
    disk_budget_mb: Annotated[int, Meta(ge=1)] | None = None
    disk_reserve_mb: Annotated[int, Meta(ge=0)] = 512
    downloads_at_once: Annotated[int, Meta(ge=1, le=16)] = 2
    downloads_waiting: Annotated[int, Meta(ge=1, le=1000)] = 64
    stall_limit_s: Seconds = 60.0
    retry_most_s: Annotated[float, Meta(gt=0, le=600)] = 30.0


class HiveConfig(Audited, frozen=True, forbid_unknown_fields=True):
    """The content of hive.yaml; durations in seconds.

    ``idle_limit_s`` is the default of workers that name none; 0 = never stop for idleness. ``api_url`` is where the
    queen reaches this hive (default: its own TCP address). ``model_roots`` are the folders that may hold models.
    ``labels`` are words by which declared models may ask for this machine.
    ``tls`` names the files of mutual TLS with a queen on another machine.
    """

    hive_id: Annotated[str, Meta(max_length=63)] | None = None
    listen: Listen = Listen()
    queen: QueenSettings = QueenSettings()
    supervisor: SupervisorKind = SupervisorKind.SYSTEMD
    heartbeat_interval_s: Seconds = 5.0
    health_interval_s: Seconds = 5.0
    idle_limit_s: Annotated[float, Meta(ge=0)] = 300.0
    api_url: Annotated[str, Meta(max_length=300)] | None = None
    model_roots: list[PathText] | None = None
    labels: list[Label] = msgspec.field(default_factory=list)
    config_dir: PathText = "/etc/rbee"
    state_dir: PathText = "/var/lib/rbee"
    run_dir: PathText = "/run/rbee"
    limits: Limits = Limits()
    models: ModelSettings = ModelSettings()
    tls: TlsFiles = TlsFiles()
    tokens: Tokens = Tokens()
    admin_users: list[Annotated[str, Meta(min_length=1, max_length=64)]] = msgspec.field(default_factory=list)
    log_level: Annotated[str, Meta(pattern="^(debug|info|warning|error)$")] = "info"

    @property
    def paths(self) -> Paths:
        """The three roots."""
        return Paths(Path(self.config_dir), Path(self.state_dir), Path(self.run_dir))

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders that may hold models."""
        if self.model_roots is None:
            return (self.paths.models,)
        return tuple(Path(root) for root in self.model_roots)


def callback_url(value: str) -> str:
    """Return the queen's address without a trailing slash: http or https, a host, a port, perhaps a path.

    Raises ConfigError for credentials, a query or a fragment. The value is not repeated: it could hold a password.
    """
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise _bad_url("it does not parse") from None
    if parts.scheme not in ("http", "https"):
        raise _bad_url("the scheme is neither http nor https")
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise _bad_url("it holds credentials, which belong into the credential hive_callback_token")
    if not parts.hostname or not _HOST.fullmatch(parts.hostname):
        raise _bad_url("it has no valid host")
    if port == 0:
        raise _bad_url("port 0 cannot be called")
    if parts.query or parts.fragment or "?" in value or "#" in value:
        raise _bad_url("it has a query or a fragment")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise _bad_url("it has characters that no URL has")
    return value.rstrip("/")


def _bad_url(why: str) -> ConfigError:
    return ConfigError(
        f"{CALLBACK_FIELD}: {why}; expected http://HOST:PORT or https://HOST:PORT: mend it in hive.yaml, "
        f"{CALLBACK_VARIABLE} or --callback-url",
        details={"field": CALLBACK_FIELD},
    )


def hive_id_of(config: HiveConfig, hostname: str | None = None, machine_id: Path = MACHINE_ID) -> str:
    """The hive's lasting name: configured, else the host name, else derived from the machine's id.

    The machine id itself is confidential (machine-id(5)): only a hash of it is shown.
    """
    if config.hive_id is not None:
        if not names.HIVE_ID.fullmatch(config.hive_id):
            raise ConfigError(
                "hive_id: expected a DNS-safe name of letters, digits, dots and dashes: mend it in hive.yaml",
                details={"field": "hive_id"},
            )
        return config.hive_id
    name = (socket.gethostname() if hostname is None else hostname).strip().lower()
    if names.HIVE_ID.fullmatch(name) and name.partition(".")[0] != "localhost":
        return name
    try:
        identity = machine_id.read_text().strip()
    except OSError:
        identity = ""
    if not identity:
        raise ConfigError("hive_id: this machine has neither a usable host name nor a machine id: set it in hive.yaml")
    return "hive-" + hashlib.sha256(f"rbee-hive {identity}".encode()).hexdigest()[:12]
