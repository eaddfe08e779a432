"""Names that cross a boundary, validated once: worker, hive, model reference, request id.

A worker id is a systemd instance name that needs no escaping; the same pattern stands in the polkit rule.
"""

import re
import uuid
from pathlib import PurePosixPath

from rbee.wire.errors import InvalidModelReference, InvalidRequest

WORKER_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
HIVE_ID = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?")
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}")
HF_REFERENCE = re.compile(
    r"hf:[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(@[A-Za-z0-9._-]+)?(:[A-Za-z0-9._*/-]+)?"
)
HTTP_REFERENCE = re.compile(
    r"https?://([A-Za-z0-9]([A-Za-z0-9.-]{0,253}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?"
    r"(/[A-Za-z0-9._~+-]+)+/?(#sha256=[0-9a-f]{64})?"
)
MODEL_REFERENCE_FORMS = "hf:org/repo, https://host/folder/, or file:///folder/of/the/model"
_MOST_REFERENCE = 4096
UNIT_PREFIX = "rbee-worker@"
UNIT_SUFFIX = ".service"


def worker_id(value: str) -> str:
    """Return ``value`` if it is a worker id; raises InvalidRequest."""
    if not WORKER_ID.fullmatch(value):
        raise InvalidRequest(
            "the worker id is not acceptable: use 1 to 64 letters, digits and dashes",
            details={"field": "worker_id", "pattern": "[A-Za-z0-9-]{1,64}"},
        )
    return value


def hive_id(value: str) -> str:
    """Return ``value`` if it is a hive id (a DNS-safe name); raises InvalidRequest."""
    if not HIVE_ID.fullmatch(value):
        raise InvalidRequest(
            "the hive id is not acceptable: use a DNS-safe name of letters, digits, dots and dashes",
            details={"field": "hive_id"},
        )
    return value


def model_name(value: str) -> str:
    """Return ``value`` if it can name a model in a request; raises InvalidRequest."""
    if not MODEL_NAME.fullmatch(value):
        raise InvalidRequest(
            "the model name is not acceptable: use letters, digits and . _ - / : (128 at most)",
            details={"field": "model"},
            param="model",
        )
    return value


def model_reference(value: str) -> str:
    """Return ``value`` if it is a model reference; raises InvalidModelReference.

    The forms: hf:org/repo[@rev][:file-pattern], http(s)://host/path[#sha256=HEX], file:///path. The value itself is
    never repeated in the error: it comes from outside.
    """
    if len(value) <= _MOST_REFERENCE and (_is_remote_reference(value) or _is_file_reference(value)):
        return value
    raise InvalidModelReference(
        f"the model reference has none of the accepted forms: {MODEL_REFERENCE_FORMS}",
        details={
            "field": "model_ref",
            "accepted": ["hf:org/repo[@rev][:pattern]", "https://host/path[#sha256=HEX]", "file:///path"],
        },
    )


def _is_remote_reference(value: str) -> bool:
    if HF_REFERENCE.fullmatch(value) is None and HTTP_REFERENCE.fullmatch(value) is None:
        return False
    return not {".", ".."} & set(re.split("[/:]", value))


def _is_file_reference(value: str) -> bool:
    if not value.startswith("file:///") or not value.isascii() or not value.isprintable():
        return False
    path = PurePosixPath(value.removeprefix("file://"))
    return ".." not in path.parts and not set(value) & set("\"'<>|;&$`\\\n")


def request_id(value: str) -> str:
    """Return ``value`` if it is a UUID in its usual form; raises InvalidRequest."""
    try:
        return str(uuid.UUID(value))
    except ValueError:
        raise InvalidRequest("the request id is not a UUID", details={"field": "request_id"}) from None


def unit_of(worker: str) -> str:
    """The systemd unit of a worker: ``rbee-worker@ID.service``."""
    return f"{UNIT_PREFIX}{worker_id(worker)}{UNIT_SUFFIX}"


def worker_of(unit: str) -> str | None:
    """The worker of a unit name, or None where the name is not exactly one of ours (escapes included)."""
    if not (unit.startswith(UNIT_PREFIX) and unit.endswith(UNIT_SUFFIX)):
        return None
    name = unit[len(UNIT_PREFIX) : -len(UNIT_SUFFIX)]
    return name if WORKER_ID.fullmatch(name) else None
