"""The key ``audit``: what it takes, and where it stands among the keys of a daemon's configuration."""

from pathlib import Path

import msgspec
import pytest

from rbee.hive.config import HiveConfig
from rbee.host.audit.entries import AuditLevel
from rbee.host.audit.setting import Audited
from rbee.host.config import load_config
from rbee.queen.config import QueenConfig
from rbee.wire.errors import ConfigError


class Settings(Audited, frozen=True, forbid_unknown_fields=True):
    """A configuration of a daemon."""

    name: str = "x"


@pytest.mark.parametrize(
    ("written", "level"),
    [("name: y", AuditLevel.CHANGES), ("audit: off", AuditLevel.OFF), ("audit: 'off'", AuditLevel.OFF),
     ("audit: changes", AuditLevel.CHANGES), ("audit: all", AuditLevel.ALL)],
)  # fmt: skip
def test_each_level_is_taken(tmp_path: Path, written: str, level: AuditLevel) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(written)
    assert load_config(Settings, path, required=True).value.audit_level is level


@pytest.mark.parametrize("written", ["audit: on", "audit: everything", "audit: 1"])
def test_what_is_no_level_is_refused(tmp_path: Path, written: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(written)
    with pytest.raises(ConfigError, match="audit"):
        load_config(Settings, path, required=True)


@pytest.mark.parametrize("kind", [QueenConfig, HiveConfig, Settings])
def test_it_comes_last_and_is_no_flag(kind: type[Audited]) -> None:
    assert kind.__struct_fields__[-1] == "audit"
    with pytest.raises(msgspec.ValidationError, match="off, changes or all"):
        msgspec.convert({"audit": True}, kind)
