"""The queen as a process: configuration, flags, reload, memory, and her end."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import yaml
from tests.unit.queen.conftest import configuration, running, write_secret
from tests.unit.queen.partners import report

from rbee.queen.config import check_public_url
from rbee.wire.errors import ConfigError
from rbee.wire.messages import WorkerState

MODULE = (sys.executable, "-m", "rbee.queen.main")


def write_config(folder: Path, **more: object) -> Path:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    values = {"listen": {"port": port}, "run_dir": str(folder / "run"), "state_dir": str(folder / "state")} | more
    path = folder / "queen.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


async def run(*arguments: str, **environment: str) -> tuple[int, str]:
    """A queen that ends by herself: exit code and everything she wrote."""
    process = await asyncio.create_subprocess_exec(
        *MODULE, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env=os.environ | environment,
    )  # fmt: skip
    async with asyncio.timeout(20):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


@contextlib.asynccontextmanager
async def started(folder: Path, config: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *MODULE, "--config", str(config), *arguments, stdout=log, stderr=log
        )
    try:
        async with asyncio.timeout(20):
            while "queen is ready" not in (folder / "log").read_text():
                assert process.returncode is None, (folder / "log").read_text()
                await asyncio.sleep(0.05)
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            await process.wait()


def resident_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080", "https://queen.example.org", "http://[::1]:8080", "http://queen:1/"]
)
def test_public_urls_that_are_accepted(url: str) -> None:
    assert check_public_url(url) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    ["", "queen:8080", "ftp://queen", "http://", "http://user:hush@queen", "http://queen/path", "http://queen?x=1",
     "http://queen#x", "http://queen:0", "http://queen:70000", "http://que en"],
)  # fmt: skip
def test_public_urls_that_are_refused(url: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_public_url(url)
    assert "public_url" in error.value.message
    assert "hush" not in error.value.message


async def test_the_flag_wins_over_the_variable_and_that_over_the_file(tmp_path: Path) -> None:
    config = str(write_config(tmp_path, public_url="http://file:1"))
    assert (await run("--config", config, "--check-config"))[0] == 0
    code, output = await run("--config", config, "--check-config", QUEEN_PUBLIC_URL="http://x/path")
    assert (code, "public_url" in output) == (78, True)
    flags = ("--public-url", "http://flag:1")
    assert (await run("--config", config, "--check-config", *flags, QUEEN_PUBLIC_URL="http://x/path"))[0] == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"listen": {"port": "many"}}, ["queen.yaml:", "listen.port"]),
        ({"colour": "red"}, ["queen.yaml:", "colour"]),
        ({"heartbeat": {"drop_after_s": -1}}, ["heartbeat.drop_after_s"]),
        ({"public_url": "http://user:hush@queen"}, ["public_url"]),
    ],
)
async def test_a_wrong_file_ends_with_78_and_says_where(
    tmp_path: Path, fields: dict[str, object], words: list[str]
) -> None:
    config = str(write_config(tmp_path, **fields))
    for arguments in (("--check-config",), ()):
        code, output = await run("--config", config, *arguments)
        assert code == 78
        assert all(word in output for word in words), output
        assert "hush" not in output
        assert "Traceback" not in output


async def test_a_public_address_wants_a_token(tmp_path: Path) -> None:
    code, output = await run("--config", str(write_config(tmp_path)), "--listen", "0.0.0.0:0")
    assert code == 78
    assert "a public address without a token" in output


async def test_a_reload_rotates_tokens_and_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    token = tmp_path / "api_token"
    write_secret(token, "before")
    config = write_config(tmp_path, tokens={"api_token": str(token)})
    values = yaml.safe_load(config.read_text())
    url = f"http://127.0.0.1:{values['listen']['port']}/v2/aliases"

    async with aiohttp.ClientSession() as client, started(tmp_path, config) as process:

        async def ask(value: str) -> int:
            async with client.get(url, headers={"Authorization": f"Bearer {value}"}) as response:
                return response.status

        async def reload(expected: str) -> None:
            process.send_signal(signal.SIGHUP)
            async with asyncio.timeout(5):
                while expected not in (tmp_path / "log").read_text():  # noqa: ASYNC110 - a log has no event
                    await asyncio.sleep(0.02)

        assert (await ask("before"), await ask("after")) == (200, 401)
        write_secret(token, "after")
        await reload("configuration reloaded")
        assert (await ask("before"), await ask("after")) == (401, 200)
        config.write_text("listen: [")
        write_secret(token, "never")
        await reload("reload refused")
        assert (await ask("never"), await ask("after")) == (401, 200)
    log = (tmp_path / "log").read_text()
    assert process.returncode == 0
    for value in ("before", "after", "never"):
        assert f" {value}" not in log.replace("token:", "")


async def test_her_status_line_counts_in_plain_words(tmp_path: Path) -> None:
    async with running(configuration(tmp_path)) as queen:
        assert queen.daemon.summary() == "0 hives, 0 workers (0 ready), 0 requests in flight"
        await queen.beat(report(), report(WorkerState.STOPPED, worker="x", url=None))
        assert queen.daemon.summary() == "1 hive, 2 workers (1 ready), 0 requests in flight"


async def test_a_defect_in_the_background_ends_her(tmp_path: Path) -> None:
    async with running(configuration(tmp_path)) as queen:
        queen.core.on_sweep = lambda: 1 // 0  # type: ignore[assignment]
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(queen.daemon.wait(), 5.0)


async def test_an_idle_queen_is_small(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    async with started(tmp_path, config) as process:
        assert resident_kb(process.pid) <= 80 << 10
    assert process.returncode == 0
