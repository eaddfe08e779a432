"""The unit files as text and as systemd reads them; the machine tests show what they do."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from rbee.hive.daemon import SEE_OFF_S
from rbee.wire import names

UNITS = Path(__file__).resolve().parents[2] / "units"
SERVICES = ("rbee-queen.service", "rbee-hive.service", "rbee-worker@.service")
MOST_EXPOSED = 15
EVERYWHERE = (
    *("Type=notify", "NotifyAccess=main", "WatchdogSec=30", "TimeoutStartSec=90", "LimitCORE=0"),
    *("Restart=on-failure", "RestartPreventExitStatus=78 69 243", "KillMode=mixed", "StartLimitBurst=10"),
    *("PartOf=rbee.target", "WantedBy=rbee.target", "ExecReload=/bin/kill -HUP $MAINPID", "NoNewPrivileges=yes"),
    *("ProtectSystem=strict", "MemoryDenyWriteExecute=yes", "SystemCallFilter=~@privileged @resources"),
)
LEFT_OUT = ("PrivateNetwork", "PrivateUsers", "ProcSubset", "RootDirectory")
TOKENS = {
    "api_token": "/etc/credstore/rbee-queen.api_token",
    "hive_callback_token": "/etc/credstore/rbee.hive_callback_token",
    "hive_api_token": "/etc/credstore/rbee.hive_api_token",
    "worker_api_token": "/etc/credstore/rbee.worker_api_token",
}
TOKENS_OF = {
    "rbee-queen.service": set(TOKENS),
    "rbee-hive.service": {"hive_callback_token", "hive_api_token", "worker_api_token"},
    "rbee-worker@.service": {"worker_api_token"},
}
analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


def text(unit: str) -> str:
    return (UNITS / unit).read_text()


def lines(unit: str) -> list[str]:
    """What systemd reads: continued lines joined, comments gone."""
    joined = re.sub(r"\\\n\s*", "", text(unit))
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


def comments(unit: str) -> str:
    return "\n".join(line for line in text(unit).splitlines() if line.startswith("#"))


@pytest.mark.parametrize("unit", SERVICES)
@pytest.mark.parametrize("line", EVERYWHERE)
def test_each_service_has_the_line(unit: str, line: str) -> None:
    assert line in lines(unit)


@pytest.mark.parametrize("daemon", ["queen", "hive"])
def test_a_daemon_that_failed_closes_its_socket(daemon: str) -> None:
    assert f"OnFailure=rbee-{daemon}-failed.target" in lines(f"rbee-{daemon}.service")
    assert f"Requires=rbee-{daemon}.socket" in lines(f"rbee-{daemon}.service")
    assert f"Conflicts=rbee-{daemon}.socket" in lines(f"rbee-{daemon}-failed.target")


def test_a_worker_has_30_s_to_drain_and_the_hive_stays_until_it_has_ended() -> None:
    limits = {unit: next(line for line in lines(unit) if line.startswith("TimeoutStopSec=")) for unit in SERVICES}
    seconds = {unit: int(line.partition("=")[2]) for unit, line in limits.items()}
    assert seconds["rbee-worker@.service"] == 30
    assert seconds["rbee-hive.service"] > SEE_OFF_S > seconds["rbee-worker@.service"]


@pytest.mark.parametrize("unit", SERVICES)
@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_hardening_line_left_out_has_its_reason_beside_it(unit: str, name: str) -> None:
    assert not any(line.startswith(f"{name}=") for line in lines(unit))
    assert re.search(rf"^# - [^:]*\b{name}\b[^:]*: \w", comments(unit), re.M)


@pytest.mark.parametrize("unit", SERVICES)
def test_each_daemon_gets_its_own_tokens_and_a_reload_copies_the_same(unit: str) -> None:
    wanted = {f"{name}:{TOKENS[name]}" for name in TOKENS_OF[unit]}
    loaded = {line.partition("=")[2] for line in lines(unit) if line.startswith("LoadCredential=")}
    (copied,) = [line for line in lines(unit) if line.startswith("ExecReload=+")]
    assert loaded == wanted
    assert {word for word in copied.split() if ":" in word} == wanted


def test_a_worker_has_its_slice_its_folder_and_no_telemetry() -> None:
    found = lines("rbee-worker@.service")
    for line in (
        *("ExecStart=/usr/bin/rbee-worker --id %i", "Slice=rbee-workers.slice", "RuntimeDirectory=rbee/workers/%i"),
        *("Environment=ORT_DISABLE_TELEMETRY=1", "LogExtraFields=RBEE_WORKER=%i", "DevicePolicy=closed"),
        *("IPAddressDeny=any", "IPAddressAllow=localhost", "RuntimeDirectoryMode=0755"),
    ):
        assert line in found


def test_no_unit_uses_the_unescaped_instance_name() -> None:
    for path in UNITS.glob("rbee*"):
        assert not re.search(r"(?<!%)%[IjJfp]", path.read_text()), path.name


def test_a_worker_depends_on_neither_hive_nor_queen() -> None:
    assert not re.search(r"rbee-(hive|queen)", "\n".join(lines("rbee-worker@.service")))


def test_the_polkit_rule_has_the_pattern_of_a_worker_id() -> None:
    rule = text("polkit/50-rbee.rules")
    pattern = f"/^{names.UNIT_PREFIX}{names.WORKER_ID.pattern}{re.escape(names.UNIT_SUFFIX)}$/"
    assert pattern in rule
    assert 'var verbs = ["start", "stop", "restart", "reload", "reset-failed"];' in rule


def test_the_polkit_rule_is_ecmascript_5() -> None:
    rule = re.sub(r"^\s*//.*$", "", text("polkit/50-rbee.rules"), flags=re.M)
    assert not re.search(r"=>|\b(let|const|class)\b|`|\.(includes|startsWith|endsWith)\(", rule)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root folder with this machine's own units, rbee's, and programs where rbee's units look for them."""
    folder = tmp_path_factory.mktemp("root")
    units = folder / "usr/lib/systemd/system"
    shutil.copytree("/usr/lib/systemd/system", units, symlinks=True, ignore_dangling_symlinks=True)
    for path in UNITS.glob("rbee*"):
        shutil.copy(path, units)
    programs = [f"usr/bin/rbee-{name}" for name in ("queen", "hive", "worker")]
    for program in (*programs, "usr/bin/nsenter", "usr/bin/systemd-tmpfiles", "bin/kill"):
        (folder / program).parent.mkdir(parents=True, exist_ok=True)
        (folder / program).touch(mode=0o755)
    return folder


@analyze
def test_systemd_reads_every_unit_without_a_warning(root: Path) -> None:
    units = [path.name.replace("@.", "@a.") for path in UNITS.glob("rbee*")]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", f"--root={root}", *units],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@analyze
@pytest.mark.parametrize("unit", SERVICES)
def test_the_exposure_is_at_most_1_5(unit: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", f"--threshold={MOST_EXPOSED}", "--no-pager", UNITS / unit],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-300:]}{done.stderr}"
