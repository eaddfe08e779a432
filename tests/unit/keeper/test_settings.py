"""Where the command finds its daemons: the order of flag, environment, user's file and system's file."""

import json
import stat
from pathlib import Path

import pytest
from tests.unit.keeper.command import Person

from rbee.keeper import settings
from rbee.keeper.settings import Flags, resolve
from rbee.wire.errors import ConfigError


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A file of each kind, each naming another queen, and the environment that leads to the user's."""
    found = {name: tmp_path / name / "rbee" / "config.yaml" for name in ("flag", "variable", "user", "system")}
    for name, path in found.items():
        path.parent.mkdir(parents=True)
        path.write_text(f"queen_url: http://{name}.example:1\n")
    monkeypatch.setattr(settings, "SYSTEM_FILE", found["system"])
    return found


def test_flag_over_variable_over_user_over_system(files: dict[str, Path]) -> None:
    environment = {"RBEE_CONFIG": str(files["variable"]), "XDG_CONFIG_HOME": str(files["user"].parents[1])}
    assert resolve(Flags(config=files["flag"]), environment).queen.url == "http://flag.example:1"
    assert resolve(Flags(), environment).queen.url == "http://variable.example:1"
    del environment["RBEE_CONFIG"]
    assert resolve(Flags(), environment).queen.url == "http://user.example:1"
    files["user"].unlink()
    assert resolve(Flags(), environment).queen.url == "http://system.example:1"
    assert resolve(Flags(queen_url="http://x:2/"), environment).queen.url == "http://x:2"


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml is not there"):
        resolve(Flags(), {"RBEE_CONFIG": str(tmp_path / "gone.yaml")})


def test_an_unknown_key_is_named_with_its_line(person: Person) -> None:
    path = person.home / "c.yaml"
    path.write_text("queen_url: http://a:1\nquen_socket: /x\n")
    done = person.rbee("--config", path, "status")
    assert done.returncode == 1
    assert f"{path}:2" in done.stderr
    assert "quen_socket" in done.stderr


def test_the_socket_is_used_where_it_exists_else_the_url(tmp_path: Path, files: dict[str, Path]) -> None:
    config = files["flag"]
    socket = tmp_path / "queen.sock"
    config.write_text(f"queen_url: http://a:1\nqueen_socket: {socket}\n")
    assert resolve(Flags(config=config), {}).queen.label == "http://a:1"
    socket.touch()
    assert resolve(Flags(config=config), {}).queen.label == str(socket)
    assert resolve(Flags(config=config, queen_url="http://b:2"), {}).queen.label == "http://b:2"


def test_a_first_file_can_be_written_and_is_valid(person: Person) -> None:
    assert person.rbee("config", "init").returncode == 0
    again = person.rbee("config", "init")
    assert again.returncode == 1
    assert "there already" in again.stderr
    path = person.home / "config" / "rbee" / "config.yaml"
    path.write_text(path.read_text().replace("# queen_url", "queen_url"))
    shown = json.loads(person.rbee("config", "show", "--json").stdout)
    assert (shown["source"], shown["queen"]["address"]) == (str(path), "http://127.0.0.1:8080")


def test_credentials_are_private_kept_and_never_printed(person: Person) -> None:
    folder = person.home / "credstore"
    made = person.rbee("credentials", "init", "--dir", folder)
    assert made.returncode == 0
    before = {path.name: path.read_text() for path in folder.iterdir()}
    assert sorted(before) == [
        "rbee-queen.api_token",
        "rbee.hive_api_token",
        "rbee.hive_callback_token",
        "rbee.worker_api_token",
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(set(before.values())) == 4
    assert all(len(token.strip()) >= 43 for token in before.values())
    again = person.rbee("credentials", "init", "--dir", folder, "--rotate", "rbee.hive_api_token")
    after = {path.name: path.read_text() for path in folder.iterdir()}
    assert [name for name in before if before[name] != after[name]] == ["rbee.hive_api_token"]
    printed = made.stdout + made.stderr + again.stdout + again.stderr
    assert not any(token.strip() in printed for token in (*before.values(), *after.values()))


def test_help_imports_neither_http_nor_tables(person: Person) -> None:
    done = person.rbee("--help", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 0
    assert "aiohttp" not in done.stderr
    assert "rich" not in done.stderr
    assert "rbee completion bash" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(person: Person, shell: str) -> None:
    done = person.rbee("completion", shell)
    assert done.returncode == 0
    assert "_RBEE_COMPLETE" in done.stdout
