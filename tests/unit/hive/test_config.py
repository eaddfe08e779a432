"""hive.yaml, the callback URL, and the hive's name."""

import argparse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.hive.config import HiveConfig, callback_url, hive_id_of
from rbee.hive.main import load_hive_config
from rbee.wire.errors import ConfigError
from rbee.wire.names import HIVE_ID


def options(path: Path | None, **given_flags: str) -> argparse.Namespace:
    flags: dict[str, object] = {"config": path, "callback_url": None, "listen": None, "log_level": None}
    return argparse.Namespace(**(flags | given_flags))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080",
        "https://queen.example.org",
        "http://queen:8080/",
        "http://[::1]:8080",
        "https://queen.example.org/rbee",
    ],
)
def test_good_urls_pass_without_the_trailing_slash(url: str) -> None:
    assert callback_url(url) == url.rstrip("/")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://queen", "neither http nor https"),
        ("queen:8080", "neither http nor https"),
        ("http://", "no valid host"),
        ("http://:8080", "no valid host"),
        ("http://user:hunter2@queen", "credentials"),
        ("http://@queen", "credentials"),
        ("http://queen?x=1", "query or a fragment"),
        ("http://queen/?", "query or a fragment"),
        ("http://queen#x", "query or a fragment"),
        ("http://queen:0", "port 0"),
        ("http://queen:99999", "does not parse"),
        ("http://qu een", "no valid host"),
        ("http://queen/a b", "no URL has"),
        ("http://queen/\n", "no URL has"),
    ],
)
def test_bad_urls_are_refused_and_not_repeated(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        callback_url(url)
    assert "hunter2" not in refused.value.message
    assert "QUEEN_CALLBACK_URL" in refused.value.message


@given(st.text(max_size=80))
def test_any_text_is_a_url_or_a_config_error(text: str) -> None:
    try:
        assert callback_url(text).startswith(("http://", "https://"))
    except ConfigError as error:
        assert error.details["field"] == "queen.callback_url"


def test_flag_wins_over_environment_and_environment_over_file(tmp_path: Path) -> None:
    path = tmp_path / "hive.yaml"
    path.write_text("queen: {callback_url: 'http://file'}\n")
    assert load_hive_config(options(path), None).value.queen.callback_url == "http://file"
    loaded = load_hive_config(options(path), "http://environment")
    assert loaded.value.queen.callback_url == "http://environment"
    assert loaded.overrides == ("queen.callback_url from QUEEN_CALLBACK_URL",)
    loaded = load_hive_config(options(path, callback_url="http://flag"), "http://environment")
    assert loaded.value.queen.callback_url == "http://flag"
    assert load_hive_config(options(path, callback_url=""), None).value.queen.callback_url is None


def test_no_file_is_standalone_with_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rbee.hive.main.DEFAULT_CONFIG", tmp_path / "absent.yaml")
    config = load_hive_config(options(None), None).value
    assert config.queen.callback_url is None
    assert (config.listen.port, config.idle_limit_s, config.heartbeat_interval_s) == (9200, 300.0, 5.0)
    with pytest.raises(ConfigError, match="missing"):
        load_hive_config(options(tmp_path / "absent.yaml"), None)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("idle_limit_s: soon\n", "hive.yaml:1: idle_limit_s"),
        ("log_level: info\nlisten: {port: 80}\n", "hive.yaml:2: listen.port"),
        ("listen:\n  port: 70000\n", "hive.yaml:2: listen.port"),
        ("queens: {}\n", "hive.yaml:1: queens"),
        ("hive_id: 'not dns@safe'\n", "hive_id"),
        ("queen: {required: true}\n", "queen.required"),
        ("supervisor: docker\n", "hive.yaml:1: supervisor"),
    ],
)
def test_wrong_fields_are_named(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "hive.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_hive_config(options(path), None)
    assert named in refused.value.message


def test_listen_flag(tmp_path: Path) -> None:
    path = tmp_path / "hive.yaml"
    path.write_text("")
    listen = load_hive_config(options(path, listen="[::1]:9300"), None).value.listen
    assert (listen.host, listen.port) == ("::1", 9300)
    with pytest.raises(ConfigError, match="HOST:PORT"):
        load_hive_config(options(path, listen="9300"), None)
    with pytest.raises(ConfigError, match="--listen"):
        load_hive_config(options(path, listen="127.0.0.1:80"), None)


def test_the_hives_name_lasts(tmp_path: Path) -> None:
    machine_id = tmp_path / "machine-id"
    machine_id.write_text("0123456789abcdef0123456789abcdef\n")
    assert hive_id_of(HiveConfig(hive_id="Rack-1.east"), "other", machine_id) == "Rack-1.east"
    assert hive_id_of(HiveConfig(), "Node7", machine_id) == "node7"
    derived = hive_id_of(HiveConfig(), "localhost", machine_id)
    assert derived == hive_id_of(HiveConfig(), "not_dns_safe", machine_id)
    assert HIVE_ID.fullmatch(derived)
    assert "0123456789" not in derived
    with pytest.raises(ConfigError, match="set it in hive"):
        hive_id_of(HiveConfig(), "", tmp_path / "absent")
