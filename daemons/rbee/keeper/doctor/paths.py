"""The ways between the daemons: sockets that answer, the hive's way to the queen, and the clocks."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from rbee.host.config import load_config
from rbee.keeper.doctor.finding import Finding, fail, ok, run, warn
from rbee.wire.errors import ConfigError, RbeeError
from rbee.wire.http.client import client_session, fetch_json

_LIMIT_S = 10.0
_MOST_SKEW_S = 5.0


class QueenSettings(msgspec.Struct, frozen=True):
    """What the doctor needs of hive.yaml's queen."""

    callback_url: str | None = None


class HiveYaml(msgspec.Struct, frozen=True):
    """What the doctor needs of hive.yaml."""

    queen: QueenSettings = QueenSettings()


async def sockets(run_dir: Path) -> AsyncIterator[Finding]:
    """Whether queen and hive answer on their Unix sockets, and what they say of themselves."""
    for daemon in ("queen", "hive"):
        path = run_dir / f"{daemon}.sock"
        if not path.exists():
            yield warn("sockets", f"{path} is not there", f"systemctl start rbee-{daemon}, where it is installed")
            continue
        try:
            async with client_session(unix_socket=str(path), connections=1) as session:
                health = await fetch_json(session, "GET", f"http://{daemon}/health", dict[str, Any], timeout_s=_LIMIT_S)
        except RbeeError as error:
            yield fail("sockets", f"the {daemon} does not answer on {path}: {error.message}", _status(daemon))
            continue
        status = str(health.get("status", "unknown"))
        said = f"the {daemon} answers on {path}: {status}, version {health.get('version', 'unknown')}"
        good = status in ("ok", "healthy")
        yield ok("sockets", said) if good else warn("sockets", said, _status(daemon))


def _status(daemon: str) -> str:
    return f"systemctl status rbee-{daemon}"


async def callback(config_dir: Path, run_dir: Path) -> AsyncIterator[Finding]:
    """The hive's way to the queen: the address answers, with a clock like ours, and takes the hive's token."""
    if not (run_dir / "hive.sock").exists():
        return
    try:
        url = load_config(HiveYaml, config_dir / "hive.yaml", required=False).value.queen.callback_url
    except ConfigError:
        return  # the configuration's own check has said so
    if url is None:
        yield ok("callback", "no queen.callback_url in hive.yaml: this machine stands alone")
        return
    try:
        async with (
            asyncio.timeout(_LIMIT_S),
            client_session(connections=1) as session,
            session.get(f"{url.rstrip('/')}/health", allow_redirects=False) as response,
        ):
            date = response.headers.get("Date", "")
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        why = type(error).__name__
        yield fail("callback", f"the queen does not answer at queen.callback_url: {why}", "check hive.yaml and network")
        return
    yield ok("callback", "the queen answers at queen.callback_url")
    for finding in skew(date, time.time()):
        yield finding
    async for finding in _reported(run_dir):
        yield finding


def skew(date: str, now: float) -> Iterator[Finding]:
    """Compare the Date header of the queen's answer with our clock; headers have whole seconds."""
    try:
        theirs = parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError):
        return
    if abs(theirs - now) > _MOST_SKEW_S:
        yield warn("clock", f"the queen's clock differs by {theirs - now:+.0f} s", "apt install systemd-timesyncd")
    else:
        yield ok("clock", "the queen's clock agrees with this one")


async def _reported(run_dir: Path) -> AsyncIterator[Finding]:
    """Whether the hive's reports arrive; only an administrator may ask that."""
    try:
        async with client_session(unix_socket=str(run_dir / "hive.sock"), connections=1) as session:
            health = await fetch_json(session, "GET", "http://hive/v1/health", dict[str, Any], timeout_s=_LIMIT_S)
    except RbeeError as error:
        if os.geteuid() == 0:
            yield fail("callback", f"the hive does not say how its reports fare: {error.message}", _status("hive"))
        return
    told = health.get("callback") or {}
    if told.get("status") == "ok":
        yield ok("callback", "the queen takes this hive's reports")
    else:
        why = told.get("why") or told.get("status", "unknown")
        yield fail("callback", f"this hive's reports do not arrive: {why}", _status("hive"))


def clock() -> Iterator[Finding]:
    """Whether something keeps this machine's clock."""
    said = run(["timedatectl", "show", "--property=NTPSynchronized", "--value"])
    if said.code == 0 and said.out.strip() == "yes":
        yield ok("clock", "synchronised")
    else:
        yield warn("clock", "nothing says that this clock is synchronised", "apt install systemd-timesyncd")
