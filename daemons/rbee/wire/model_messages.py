"""Messages about the models on a machine: orders to fetch one, its progress, and the catalogue.

Sizes are bytes, times named ``*_unix`` seconds since the epoch, rates megabits per second (10^6 bits).
"""

import enum
from typing import Annotated

import msgspec
from msgspec import Meta

from rbee.wire.errors import ErrorInfo
from rbee.wire.messages import Count, HiveId, Text, Url
from rbee.wire.model_reference import Provider

ModelId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]
Ticket = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{16,128}\Z")]


class Stage(enum.StrEnum):
    """How far a download is."""

    QUEUED = "queued"
    RESOLVING = "resolving"
    DOWNLOADING = "downloading"
    UNPACKING = "unpacking"
    COMPLETE = "complete"
    FAILED = "failed"

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self in (Stage.COMPLETE, Stage.FAILED)


class CopySource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another hive that has the model: its address, the model's id there, and a ticket that it gave for it.

    ``optional``: where that hive cannot be asked from here, the model is fetched from its own source.
    """

    url: Url
    model: ModelId
    ticket: Ticket
    optional: bool = False


class DownloadRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/models/download of a hive: fetch ``reference``, from another hive where ``source`` names one."""

    reference: str
    source: CopySource | None = None


class PullRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v2/hives/HIVE/models/download of a queen: as the hive's, ``from_hive`` being the hive to copy from.

    ``copy``: from whichever hive has it, from its source where none has.
    """

    reference: str
    from_hive: HiveId | None = None
    copy: bool = False


class ModelProgress(msgspec.Struct, frozen=True):
    """A download at one moment. ``bytes_total`` is 0 until it is known; ``speed_mbps`` is that of the last seconds.

    ``limit_mbps`` is the bandwidth limit in force, None without one. ``note`` says what went wrong last and what is
    done about it. ``local_path`` and ``duration_s`` come with the stage complete, ``error`` with failed.
    """

    model: ModelId
    reference: str
    stage: Stage
    bytes_downloaded: Count = 0
    bytes_total: Count = 0
    speed_mbps: float = 0.0
    limit_mbps: float | None = None
    attempt: Count = 1
    attempts: Count = 1
    note: str = ""
    local_path: str | None = None
    duration_s: float | None = None
    error: ErrorInfo | None = None


class ProgressList(msgspec.Struct, frozen=True):
    """GET /v1/models/download/progress without a model: every download under way, and those that ended last."""

    downloads: list[ModelProgress]


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a model: its path in the folder, its size, its SHA-256 in hex."""

    path: str
    size: Count
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class FileList(msgspec.Struct, frozen=True):
    """GET /v1/models/M/files: what a copy of the model takes."""

    reference: str
    files: list[FileEntry]


class ModelRow(msgspec.Struct, frozen=True):
    """One model of the catalogue. ``digest`` is SHA-256 over its files' digests, empty until it was taken.

    ``owned``: the store fetched it and may collect it; others it serves from where the operator put them.
    """

    id: ModelId
    provider: Provider
    reference: str
    local_path: str
    size_bytes: Count
    digest: str
    downloaded_at_unix: float
    last_used_unix: float
    pinned: bool = False
    owned: bool = False
    in_use: bool = False


class ModelRows(msgspec.Struct, frozen=True):
    """GET /v1/models of a hive. ``problem`` says why the catalogue is not what it should be, None where it is."""

    models: list[ModelRow]
    used_bytes: Count
    available_bytes: Count
    budget_bytes: Count | None = None
    problem: str | None = None


class Verified(msgspec.Struct, frozen=True):
    """POST /v1/models/M/verify: whether every file is what it was; ``problems`` names those that are not.

    ``recorded``: there was nothing to compare with, and there is from now on.
    """

    id: ModelId
    ok: bool
    files: Count
    problems: list[str]
    recorded: bool = False


class Removed(msgspec.Struct, frozen=True):
    """DELETE /v1/models/M: ``deleted`` says whether its files went too; the operator's own folders stay."""

    id: ModelId
    deleted: bool
    freed_bytes: Count
    message: Text


class Pin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """PUT /v1/models/M/pin."""

    pinned: bool


class TicketAnswer(msgspec.Struct, frozen=True):
    """POST /v1/models/M/ticket: lets another hive copy this one model until ``expires_unix``."""

    model: ModelId
    reference: str
    ticket: Ticket
    expires_unix: float


class Backup(msgspec.Struct, frozen=True):
    """POST /v1/catalog/backup: the copy that was written and verified, and how to put it back."""

    path: str
    models: Count
    restore: str
