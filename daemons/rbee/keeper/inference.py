"""One inference from the person's side: busy slots are tried again, a stop is passed on, nothing that came is lost."""

import asyncio
import contextlib
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from rbee.keeper.client import Daemon
from rbee.keeper.failure import InferenceStalled, StreamClosed
from rbee.keeper.stream import Answer, View, consume, keep_partial
from rbee.wire.errors import ProtocolError
from rbee.wire.http.client import RemoteError

BUSY_WAITS_S = (1.0, 2.0, 4.0)
_ACK_LIMIT_S = 5.0
_BUSY = ("ALL_SLOTS_BUSY", "TOO_MANY_REQUESTS")
"""A worker's word for no free slot, and the queen's for a queue that is too long."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds without an event that count as a stall, waits between tries when all slots are busy, both overridable."""

    stall_s: float = 60.0
    busy_waits_s: tuple[float, ...] = BUSY_WAITS_S


async def infer(
    daemon: Daemon, path: str, body: dict[str, Any], *, view: View, limits: Limits, partials: Path
) -> Answer:
    """Ask ``daemon`` and follow the answer to its end.

    All slots busy, or too many waiting, before the first token: tried again after 1, 2 and 4 s. Whatever text came
    before a failure is kept in a file under ``partials``, which is named. Cancellation (Ctrl+C) sends DELETE and waits
    at most 5 s.
    """
    for wait in limits.busy_waits_s:
        answer = Answer(wanted=body.get("max_tokens"))
        try:
            return await _once(daemon, path, body, answer, view, limits, partials)
        except RemoteError as error:
            if error.code not in _BUSY or answer.tokens:
                raise
            view.say(f"{_busy(error)}: trying again in {wait:g} s")
        await asyncio.sleep(wait)
    return await _once(daemon, path, body, Answer(wanted=body.get("max_tokens")), view, limits, partials)


async def _once(
    daemon: Daemon,
    path: str,
    body: dict[str, Any],
    answer: Answer,
    view: View,
    limits: Limits,
    partials: Path,
) -> Answer:
    try:
        async with daemon.stream("POST", path, body=body, head_limit_s=limits.stall_s) as response:
            try:
                await consume(response, answer, view, limits.stall_s)
            except (asyncio.CancelledError, InferenceStalled):
                await cancel(daemon, path, answer, view)
                raise
    except (RemoteError, StreamClosed, InferenceStalled, ProtocolError, asyncio.CancelledError):
        _keep(answer, view, partials)
        raise
    return answer


async def cancel(daemon: Daemon, path: str, answer: Answer, view: View) -> None:
    """Tell the daemon to stop, and wait at most 5 s until it says so."""
    target = cancel_path(path, answer.ids)
    if target is None:
        view.say("cancelled: the request had not started")
        return
    try:
        await daemon.send("DELETE", target, timeout_s=_ACK_LIMIT_S)
        view.say("cancelled: the worker stops and frees its slot")
    except TimeoutError:
        view.say("cancelled: the daemon did not confirm within 5 s; it stops when it sees the connection close")
    except (aiohttp.ClientError, RemoteError) as error:
        view.say(f"cancelled: the daemon did not confirm ({type(error).__name__})")


def cancel_path(path: str, ids: dict[str, Any]) -> str | None:
    """What to DELETE: the task where the queen named one, else the inference of a worker asked directly."""
    for key, prefix in (("task_id", "/v2/tasks/"), ("inference_id", path + "/"), ("request_id", path + "/")):
        if isinstance(ids.get(key), str):
            with contextlib.suppress(ValueError):
                return prefix + str(uuid.UUID(ids[key]))
    return None


def _keep(answer: Answer, view: View, partials: Path) -> None:
    kept = keep_partial(answer, partials, str(uuid.uuid4()))
    if kept is not None:
        view.say(f"{answer.count} tokens came before that; their text is kept in {kept}")


def _busy(error: RemoteError) -> str:
    if error.code == "TOO_MANY_REQUESTS":
        return "too many requests wait for the model"
    busy, total = error.details.get("slots_busy"), error.details.get("slots_total")
    return f"all slots are busy ({busy} of {total})" if total else "all slots are busy"
