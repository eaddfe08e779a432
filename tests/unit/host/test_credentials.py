"""Secrets from files: modes, content, and errors that name the path only."""

from pathlib import Path

import pytest

from rbee.host.credentials import find_named, find_secret, load_secret
from rbee.wire.errors import ConfigError


def secret_file(tmp_path: Path, content: bytes, mode: int = 0o600) -> Path:
    path = tmp_path / "api_token"
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_private_file_is_read_and_its_trailing_newline_left_out(tmp_path: Path, mode: int) -> None:
    assert load_secret(secret_file(tmp_path, b"tok-en!\n", mode)).reveal() == "tok-en!"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o000, 0o660])
def test_other_modes_are_refused_with_found_and_expected(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError) as caught:
        load_secret(secret_file(tmp_path, b"tok-en\n", mode))
    assert f"{mode:04o}" in caught.value.message
    assert "0600" in caught.value.message


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"  \t \n", b"one\ntwo\n", b"one\r\ntwo", b"\xff\xfe", b" padded\n", b"a\0b"]
)
def test_other_contents_are_refused_and_not_shown(tmp_path: Path, content: bytes) -> None:
    path = secret_file(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        load_secret(path)
    assert str(path) in caught.value.message
    assert "one" not in caught.value.message.replace("one line", "").replace("exactly one", "")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing"):
        load_secret(tmp_path / "none")


def test_the_configured_file_comes_before_the_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "api_token").write_text("from-credential\n")
    (folder / "api_token").chmod(0o440)
    assert find_secret("api_token", None) is None
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    found = find_secret("api_token", None)
    assert found is not None
    assert found.reveal() == "from-credential"
    configured = find_secret("api_token", secret_file(tmp_path, b"from-file\n"))
    assert configured is not None
    assert configured.reveal() == "from-file"
    assert find_secret("other", None) is None


def test_credentials_with_names_are_found_by_their_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_named("client.") == {}
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    for name in ("client.alice", "client.bob.laptop", "api_token"):
        (tmp_path / name).write_text(f"of {name}\n")
        (tmp_path / name).chmod(0o440)
    found = find_named("client.")
    assert {name: secret.reveal() for name, secret in found.items()} == {
        "alice": "of client.alice",
        "bob.laptop": "of client.bob.laptop",
    }
    (tmp_path / "client.o dd").write_text("x\n")
    with pytest.raises(ConfigError, match="letters, digits"):
        find_named("client.")
