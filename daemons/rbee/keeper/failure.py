"""Errors as a person meets them: one sentence that says what and why, one line that says what to do next."""

import sys

import msgspec

from rbee.keeper.text import printable
from rbee.wire.errors import ErrorBody, RbeeError

HINTS = {
    "MISSING_API_KEY": "name the token's file: token_file in ~/.config/rbee/config.yaml (rbee config init), or"
    " --token-file FILE",
    "INVALID_API_KEY": "the file that token_file (or --token-file) names must hold the api_token of this queen:"
    " rbee config show",
    "FORBIDDEN": "run it as root, or join the group rbee (usermod -aG rbee USER, then log in again)",
    "CONNECTION_TIMEOUT": "look at the service: systemctl status {unit}, and at this machine: rbee doctor",
    "PROTOCOL_ERROR": "restart the service: systemctl restart {unit}",
    "ALL_SLOTS_BUSY": "wait and try again, stop another request, or start another worker: rbee worker spawn --help",
    "TOO_MANY_REQUESTS": "wait and try again",
    "LOADING_TIMEOUT": "read the worker's log: rbee worker logs {worker}",
    "WORKER_FAILED": "read the worker's log: rbee worker logs {worker}",
    "WORKER_UNREACHABLE": "read the worker's log: rbee worker logs {worker}",
    "WORKER_NOT_FOUND": "see which there are: rbee worker list",
    "MODEL_NOT_FOUND": "see which there are: rbee model list",
    "HIVE_UNREACHABLE": "look at the service: systemctl status rbee-hive",
    "SSH_UNREACHABLE": "see that the machine is on and in reach: ping {host}, and that sshd runs there",
    "HIVE_PROTOCOL_ERROR": "restart the service: systemctl restart rbee-hive",
}


class CommandFailed(RbeeError):
    """What was asked could not be done; the message says why and what to do."""

    code = "COMMAND_FAILED"


class StreamClosed(RbeeError):
    """The stream of an answer ended before its end."""

    code = "STREAM_CLOSED"


class InferenceStalled(RbeeError):
    """Nothing came for as long as the stall limit allows."""

    code = "INFERENCE_STALLED"


def hint(error: RbeeError) -> str | None:
    """What to do next about ``error``, or None where its message says it already."""
    known = HINTS.get(error.code)
    if known is None:
        return None
    unit = error.details.get("unit", "rbee-queen")
    return known.format(unit=unit, worker=error.details.get("worker_id", "ID"), host=error.details.get("host", "HOST"))


def show(error: RbeeError, *, as_json: bool) -> None:
    """Write ``error`` to stderr: for a person, or with ``as_json`` in the one shape of every daemon."""
    if as_json:
        body = ErrorBody(error.info(error.details.get("correlation_id")))
        sys.stderr.write(msgspec.json.encode(body).decode() + "\n")
        return
    sentence, _, rest = printable(error.message).partition("\n")
    sys.stderr.write(f"rbee: {sentence} ({printable(error.code)})\n" + (f"{rest}\n" if rest else ""))
    advice = hint(error)
    if advice is not None:
        sys.stderr.write(f"  next: {printable(advice)}\n")
    correlation = error.details.get("correlation_id")
    if isinstance(correlation, str):
        sys.stderr.write(f"  the daemons' logs have it under {printable(correlation)}\n")
