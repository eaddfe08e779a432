"""What the command decides about nodes by itself: host keys, the texts of a node's files, where packages come from."""

import base64
from collections.abc import Callable
from pathlib import Path

import paramiko
import pytest
import yaml

from rbee.keeper.failure import CommandFailed
from rbee.keeper.nodes import host_keys, layout
from rbee.keeper.nodes.failures import HostKeyRefused
from rbee.keeper.nodes.offered import versions_of
from rbee.keeper.nodes.source import AptLine, DebFolder, debs_in, parse
from rbee.keeper.nodes.steps import Steps

OURS = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHzs1hTJ1Lq8iE8tZkq0o6l8l0TqmyvO3pHqz6Zk0mQd"
OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHzs1hTJ1Lq8iE8tZkq0o6l8l0TqmyvO3pHqz6Zk0mQe"
PRINT = host_keys.fingerprint(OURS)


def asked(answer: bool) -> Callable[[str], bool]:
    return lambda print_of: answer


def never(print_of: str) -> bool:
    raise AssertionError(f"nobody is to be asked about {print_of}")


def test_a_fingerprint_is_the_one_that_ssh_shows() -> None:
    kind, data = OURS.split(" ")
    key = paramiko.PKey.from_type_string(kind, base64.b64decode(data))
    assert key.fingerprint == PRINT


@pytest.mark.parametrize(
    ("known", "given", "confirm"),
    [
        ([OURS], None, never),
        ([OTHER, OURS], None, never),
        ([], PRINT, never),
        ([OURS], PRINT, never),
        ([], None, asked(True)),
    ],
)
def test_a_key_that_is_known_given_or_confirmed_is_accepted(
    known: list[str], given: str | None, confirm: Callable[[str], bool]
) -> None:
    assert host_keys.accept(OURS, known, given, confirm) == OURS


@pytest.mark.parametrize(
    ("known", "given", "confirm", "why"),
    [
        ([OTHER], None, never, "known_hosts has another one"),
        ([OTHER], PRINT, never, "known_hosts has another one"),
        ([], host_keys.fingerprint(OTHER), never, "--host-key names"),
        ([OURS], host_keys.fingerprint(OTHER), never, "--host-key names"),
        ([], None, asked(False), "is not known"),
    ],
)
def test_any_other_key_is_refused(
    known: list[str], given: str | None, confirm: Callable[[str], bool], why: str
) -> None:
    with pytest.raises(HostKeyRefused, match=why):
        host_keys.accept(OURS, known, given, confirm)


def test_known_hosts_is_read_with_hashed_names_and_other_ports(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    assert host_keys.known("far", 22, file) == []
    hashed = paramiko.HostKeys.hash_host("[far]:2222")
    file.write_text(f"# a comment\nfar,10.0.0.7 {OURS}\n{hashed} {OTHER}\n")
    assert host_keys.known("far", 22, file) == [OURS]
    assert host_keys.known("10.0.0.7", 22, file) == [OURS]
    assert host_keys.known("far", 2222, file) == [OTHER]
    assert host_keys.known("near", 22, file) == []


def hive(present: str | None, **over: object) -> str:
    values: dict[str, object] = {"name": "far", "address": "10.0.0.7", "callback_url": "https://q:8443", "tls": True}
    return layout.hive_yaml(present, **(values | over))  # type: ignore[arg-type]


def test_what_is_there_stays_and_a_second_time_nothing_differs() -> None:
    first = hive("# by hand\nidle_limit_s: 60\nqueen: {required: true, callback_url: http://127.0.0.1:8080}\n")
    assert yaml.safe_load(first) == {
        "hive_id": "far",
        "api_url": "https://10.0.0.7:9200",
        "idle_limit_s": 60,
        "queen": {"required": True, "callback_url": "https://q:8443"},
        "tls": {"authority": layout.AUTHORITY},
    }
    assert hive(first) == first
    by_hand = first + "# and a comment\n"
    assert hive(by_hand) == by_hand
    assert hive(first, tls=False) != first
    assert yaml.safe_load(hive(first, address="2001:db8::7"))["api_url"] == "https://[2001:db8::7]:9200"
    worker = layout.worker_yaml(None, address="10.0.0.7", tls=False)
    assert yaml.safe_load(worker) == {"listen_host": "10.0.0.7", "tls": {"authority": None}}


@pytest.mark.parametrize("broken", ["a: [", "- a list", "just words"])
def test_a_file_that_is_no_configuration_is_left_as_it_is(broken: str) -> None:
    with pytest.raises(CommandFailed, match="mend it there"):
        hive(broken)


def test_drop_ins_name_addresses_once() -> None:
    assert layout.socket_drop_in("2001:db8::7").endswith("ListenStream=[2001:db8::7]:9200\nFreeBind=yes\n")
    text = layout.worker_drop_in(["10.0.0.1", "10.0.0.7", "10.0.0.1"])
    assert text.count("IPAddressAllow=10.0.0.1\n") == 1
    assert text.count("IPAddressAllow=") == 2


def test_packages_come_from_a_folder_or_a_line_of_apt(tmp_path: Path) -> None:
    assert parse(str(tmp_path), None) == DebFolder(tmp_path)
    key = tmp_path / "key.gpg"
    key.touch()
    line = "deb [signed-by=/usr/share/keyrings/x.gpg] https://debs.example/ bookworm main"
    assert parse(line, str(key)) == AptLine(line, key)
    for wrong in ("deb", "deb ", "deb http://x", str(tmp_path / "no")):
        with pytest.raises(CommandFailed):
            parse(wrong, None)
    with pytest.raises(CommandFailed, match="keyring"):
        parse(line, str(tmp_path / "no.gpg"))


def test_a_folder_has_one_file_of_each_package(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="there is none"):
        debs_in(tmp_path, "bookworm")
    pool = tmp_path / "pool" / "bookworm"
    for folder, version in ((tmp_path, "0.1.0"), (pool, "0.2.0+deb12")):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("rbee-common", "rbee-hive", "rbee-worker", "rbee"):
            (folder / f"{name}_{version}_amd64.deb").touch()
    assert {deb.version for deb in debs_in(tmp_path, "bookworm")} == {"0.2.0+deb12"}
    found = debs_in(tmp_path, "trixie")
    assert [(deb.name, deb.version) for deb in found] == [
        ("rbee-common", "0.1.0"), ("rbee-hive", "0.1.0"), ("rbee-worker", "0.1.0"),
    ]  # fmt: skip
    (tmp_path / "rbee-hive_1%3a0.3.0_amd64.deb").touch()
    with pytest.raises(CommandFailed, match="there are 2"):
        debs_in(tmp_path, "trixie")


def test_a_step_is_shown_with_its_time_and_what_it_changed(capsys: pytest.CaptureFixture[str]) -> None:
    moments = iter([1.0, 2.5, 3.0, 3.0])
    steps = Steps(clock=lambda: next(moments))
    with steps.step("packages") as note:
        note.changed, note.told = True, "rbee-hive 0.1.0"
    with steps.step("start"):
        pass
    said = capsys.readouterr().err
    assert "packages: changed, 1.5 s: rbee-hive 0.1.0" in said
    assert "start: as it was, 0.0 s" in said
    assert steps.changed
    assert [step.seconds for step in steps.done] == [1.5, 0.0]


def test_the_highest_version_of_each_package_is_what_apt_offers() -> None:
    madison = (
        "  rbee-hive | 0.10.0+deb13 | https://debs.example trixie/main amd64 Packages\n"
        "  rbee-hive | 0.9.0+deb13 | https://debs.example trixie/main amd64 Packages\n"
        "rbee-common | 0.10.0+deb13 | https://debs.example trixie/main amd64 Packages\n"
        "N: something that apt remarks\n\n"
    )
    assert versions_of(madison) == {"rbee-hive": "0.10.0+deb13", "rbee-common": "0.10.0+deb13"}
    assert versions_of("") == {}
