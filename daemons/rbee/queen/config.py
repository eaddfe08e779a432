"""The queen's configuration: queen.yaml, over it QUEEN_PUBLIC_URL, over it the flags."""

import re
from typing import Annotated

import msgspec
from msgspec import Meta

from rbee.host.audit.setting import Audited
from rbee.wire import names
from rbee.wire.declarations import DeclaredModel, ModelName
from rbee.wire.errors import ConfigError, InvalidModelReference

DEFAULT_PUBLIC_URL = "http://127.0.0.1:8080"
PUBLIC_URL_VARIABLE = "QUEEN_PUBLIC_URL"
_ORIGIN = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)(:([0-9]{1,5}))?")

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Path = Annotated[str, Meta(min_length=1, max_length=4096)]
ClientName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
Weight = Annotated[float, Meta(ge=0.01, le=100)]
Waiting = Annotated[int, Meta(ge=1, le=100_000)]


class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to listen when no socket is inherited; port 0 takes any free one."""

    host: Annotated[str, Meta(min_length=1, max_length=255)] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080


class HeartbeatLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a silent hive's workers get no new work, and when they are forgotten."""

    stale_after_intervals: Annotated[float, Meta(ge=1, le=100)] = 3.0
    drop_after_s: Seconds = 300.0


class Tokens(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files that hold the tokens, one per hop; null means the credential of that name, if there is one.

    ``clients`` are further tokens of clients by name, beside the credentials ``client.NAME``.
    """

    api_token: Path | None = None
    hive_callback_token: Path | None = None
    hive_api_token: Path | None = None
    worker_api_token: Path | None = None
    clients: dict[ClientName, Path] = {}


class RequestLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of a request without a deadline of its own, in seconds, and of what waits.

    ``admission_timeout_s``: how long a request waits for a free slot of a ready worker. ``cold_wait_s``: how long it
    waits in all while a worker of its model starts or loads. ``silent_wait_s``: how long it waits where all its model's
    workers are out of reach. ``stall_s``: silence in a stream after which the worker
    is taken for stuck. ``answer_s``: the longest an answer that is not streamed may take: the queen's own deadline,
    computed once and passed on; a later one that a client asks for is ignored. ``invalid_per_second``: requests of one
    caller that are not acceptable and told so; further ones get 429.
    """

    admission_timeout_s: Seconds = 30.0
    cold_wait_s: Seconds = 300.0
    stall_s: Seconds = 60.0
    answer_s: Seconds = 600.0
    silent_wait_s: Seconds = 10.0
    max_waiting_per_model: Waiting = 1000
    max_waiting: Waiting = 10_000
    max_body_mb: Annotated[int, Meta(ge=1, le=1024)] = 32
    max_tasks: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    task_events: Annotated[int, Meta(ge=16, le=1_000_000)] = 10_000
    task_retention_s: Seconds = 300.0
    invalid_per_second: Annotated[float, Meta(ge=1, le=1_000_000)] = 50


class ModelPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What holds for one model in place of what holds for all; null: the same as for all."""

    affinity: bool | None = None
    max_waiting: Waiting | None = None
    admission_timeout_s: Seconds | None = None
    cold_wait_s: Seconds | None = None


class Routing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How workers are chosen.

    ``affinity``: a prompt goes where its beginning was computed before, unless that worker is busier than the least
    busy one by more than ``affinity_slack`` of its slots; ``affinity_entries`` bounds what is remembered. ``weights``
    maps HIVE/WORKER, or HIVE for all of its workers, to a share of the work beside workers of weight 1.
    ``retry_share``: tries anew for each request, of which ``retry_reserve`` can be saved up.
    """

    affinity: bool = True
    affinity_slack: Annotated[float, Meta(ge=0, le=1)] = 0.5
    affinity_entries: Annotated[int, Meta(ge=16, le=1_000_000)] = 16_384
    weights: dict[str, Weight] = {}
    retry_share: Annotated[float, Meta(ge=0, le=1)] = 0.2
    retry_reserve: Annotated[int, Meta(ge=1, le=10_000)] = 100
    models: dict[str, ModelPolicy] = {}


class ClientLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one client may do; null: no limit.

    ``burst``: requests that may come at once within ``requests_per_minute`` (by default those of one second).
    ``concurrent``: requests that run or wait at once. ``priority``: the highest that it may ask for. ``weight``: its
    share of the workers beside clients of weight 1 while requests wait.
    """

    requests_per_minute: Annotated[float, Meta(gt=0, le=1_000_000)] | None = None
    burst: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    concurrent: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    priority: Annotated[str, Meta(pattern="^(interactive|batch)$")] = "interactive"
    weight: Weight = 1.0


class FleetSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The listener for nodes, by mutual TLS; null as host: where public_url says, and none while that is loopback."""

    host: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    port: Annotated[int, Meta(ge=0, le=65535)] = 8443
    certificate_days: Annotated[float, Meta(gt=0, le=3650)] = 90.0


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """PEM files of the certificate chain and its key, for the TCP listeners."""

    certificate: Path
    key: Path


class PlacementSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``evict_idle_s``: a declared model's worker that had no request for so long may end where another needs room."""

    evict_idle_s: Annotated[float, Meta(ge=0, le=86_400)] = 30.0


class QueenConfig(Audited, frozen=True, forbid_unknown_fields=True):
    """The content of queen.yaml.

    ``aliases`` maps a name that clients use to a model's name, ``clients`` the name of a client's token to its limits
    (``*``: those of every client that has none of its own), and ``models`` the name of a model to its declaration.
    """

    listen: Listen = Listen()
    tls: Tls | None = None
    public_url: Annotated[str, Meta(max_length=300)] = DEFAULT_PUBLIC_URL
    fleet: FleetSettings = FleetSettings()
    state_dir: Path = "/var/lib/rbee"
    run_dir: Path = "/run/rbee"
    heartbeat: HeartbeatLimits = HeartbeatLimits()
    requests: RequestLimits = RequestLimits()
    routing: Routing = Routing()
    aliases: dict[str, str] = msgspec.field(default_factory=dict)
    clients: dict[str, ClientLimits] = msgspec.field(default_factory=dict)
    models: dict[ModelName, DeclaredModel] = msgspec.field(default_factory=dict)
    placement: PlacementSettings = PlacementSettings()
    tokens: Tokens = Tokens()
    admin_users: list[Annotated[str, Meta(min_length=1, max_length=64)]] = msgspec.field(default_factory=list)
    log_level: Annotated[str, Meta(pattern="^(debug|info|warning|error)$")] = "info"


def check_public_url(value: str) -> str:
    """Return the queen's own reachable address without a trailing slash.

    Accepts http or https, a host, and a port; raises ConfigError for credentials, a path, a query or a fragment. The
    value is not repeated in the error: it could hold a password.
    """
    match = _ORIGIN.fullmatch(value.removesuffix("/"))
    if match is None or (match[4] is not None and not 0 < int(match[4]) < 65536):
        raise ConfigError(
            "public_url: expected http://HOST:PORT or https://HOST:PORT without credentials, path, query or "
            f"fragment; correct it in queen.yaml, {PUBLIC_URL_VARIABLE} or --public-url",
            details={"field": "public_url"},
        )
    return value.removesuffix("/")


def check_models(models: dict[str, DeclaredModel]) -> None:
    """Raise ConfigError for a declared model whose reference has none of the accepted forms; it is not repeated."""
    for name, declared in models.items():
        try:
            names.model_reference(declared.reference)
        except InvalidModelReference as error:
            raise ConfigError(
                f"models.{name}.reference: {error.message}", details={"field": f"models.{name}.reference"}
            ) from None
