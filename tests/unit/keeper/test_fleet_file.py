"""fleet.yaml: every wrong value with its line and field, defaults and files completed, keys that fit hive.yaml."""

import re
from pathlib import Path
from typing import get_args, get_type_hints

import msgspec
import pytest
from msgspec import UNSET, UnsetType
from tests.unit.keeper.command import Person

from rbee.hive.config import HiveConfig, ModelSettings
from rbee.keeper.fleet import show
from rbee.keeper.fleet.file import FleetModel, HiveSettings, StoreSettings, load
from rbee.keeper.fleet.plan import Actual, plan
from rbee.wire.errors import ConfigError

EXAMPLE = Path(__file__).parents[3] / "deploy/fleet.yaml"
PRINT = "SHA256:" + "A" * 43
WHOLE = f"""
defaults:
  user: deploy
  key: ~/.ssh/fleet
  packages: debs
nodes:
  bee-1:
    host: 10.0.0.11
    host_key: {PRINT}
    hive:
      labels: [gpu]
      models: {{disk_budget_mb: 100}}
  bee-2:
    host: far.example
    port: 2222
    user: root
    key: /keys/two
    packages: deb https://packages.example/ bookworm main
    keyring: two.gpg
    tls: off
models:
- source: hf:org/repo
  pinned: true
- source: https://files.example/m/
  nodes: [bee-2]
declared:
  org/chat:7b: {{reference: "hf:org/repo", labels: [gpu], replicas: {{min: 1}}}}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    return path


def test_a_file_is_read_with_defaults_and_files_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    fleet = load(write(tmp_path, WHOLE.replace("tls: off", "tls: 'off'")))
    one, two = fleet.machines["bee-1"], fleet.machines["bee-2"]
    assert (one.user, one.port, one.key, one.packages) == ("deploy", 22, "/home/me/.ssh/fleet", str(tmp_path / "debs"))
    assert (two.user, two.port, two.key, two.keyring) == ("root", 2222, "/keys/two", str(tmp_path / "two.gpg"))
    assert two.packages == "deb https://packages.example/ bookworm main"
    assert one.hive.keys() == {"labels": ["gpu"], "models": {"disk_budget_mb": 100}}
    assert [model.source for model in fleet.models_of("bee-1")] == ["hf:org/repo"]
    assert len(fleet.models_of("bee-2")) == 2
    assert fleet.declarations["org/chat:7b"].replicas.min == 1


@pytest.mark.parametrize(
    ("was", "now", "line", "field", "why"),
    [
        ("host: far.example", "hots: far.example", 14, "nodes.bee-2.hots", "unknown field 'hots'"),
        ("    host: 10.0.0.11\n", "", 7, "nodes.bee-1.host", "required and missing"),
        ("host: 10.0.0.11", "host: -oProxy", 8, "nodes.bee-1.host", "matching regex"),
        (f"host_key: {PRINT}", "host_key: none", 9, "nodes.bee-1.host_key", "matching regex"),
        ("labels: [gpu]\n      models", "labels: [a b]\n      models", 11, "nodes.bee-1.hive.labels[0]", "matching"),
        ("disk_budget_mb: 100", "disk: 1", 12, "nodes.bee-1.hive.models.disk", "unknown field 'disk'"),
        ("port: 2222", "port: 0", 15, "nodes.bee-2.port", ">= 1"),
        ("  bee-2:", "  bee 2:", 13, "nodes.bee 2", "matching regex"),
        ("  bee-2:", "  bee-1:", 13, "bee-1", "stands here twice"),
        ("  bee-2:", "  all:", 13, "nodes.all", "stands for every node"),
        ("nodes: [bee-2]", "nodes: [bee-3]", 25, "models[1].nodes[0]", "nodes has no 'bee-3'"),
        ("https://files.example/m/", "hf:org/repo", 24, "models[1].source", "name it once"),
        ("https://files.example/m/", "file:///m", 24, "models[1].source", "is not fetched"),
        ("https://files.example/m/", "ftp://m", 24, "models[1].source", "none of the accepted forms"),
        ("min: 1", "min: 9", 27, "declared.org/chat:7b.replicas", "max is at least min"),
        ('"hf:org/repo", labels', '"hf:org", labels', 27, "declared.org/chat:7b.reference", "accepted forms"),
        ("labels: [gpu], rep", "node: bee-9, rep", 27, "declared.org/chat:7b.node", "nodes has no 'bee-9'"),
        ("tls: 'off'", "addresses: [far.example]", 20, "nodes.bee-2.addresses", "IPv4 or IPv6"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, was: str, now: str, line: int, field: str, why: str) -> None:
    text = WHOLE.replace("tls: off", "tls: 'off'")
    assert was in text
    path = write(tmp_path, text.replace(was, now, 1))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.message.startswith(f"{path}:{line}: {field}"), caught.value.message
    assert why in caught.value.message


def test_the_example_is_a_fleet_of_three(tmp_path: Path) -> None:
    fleet = load(EXAMPLE)
    assert sorted(fleet.machines) == ["cpu-1", "gpu-1", "gpu-2"]
    assert {label for node in fleet.machines.values() for label in node.hive.keys()["labels"]} >= {
        label for declared in fleet.declarations.values() for label in declared.labels
    }
    steps = [show.line_of(step) for step in plan(fleet, Actual())]
    assert len([line for line in steps if line.startswith("+ add ")]) == 3
    assert '~ set up cpu-1: hive.labels ["embeddings"]; hive.models.bandwidth_limit_mbps 400.0' in steps


def test_a_section_that_is_left_out_is_told_apart_from_an_empty_one(tmp_path: Path) -> None:
    fleet = load(write(tmp_path, "nodes: {}\n"))
    assert fleet.nodes == {}
    assert (fleet.models, fleet.declared) == (UNSET, UNSET)
    assert (fleet.machines, fleet.declarations, fleet.models_of("a")) == ({}, {}, [])


def test_a_model_is_on_every_node_unless_told_otherwise() -> None:
    assert FleetModel("hf:a/b").nodes == ["all"]


@pytest.mark.parametrize(("ours", "theirs"), [(HiveSettings, HiveConfig), (StoreSettings, ModelSettings)])
def test_each_key_of_a_hive_is_one_of_hive_yaml_with_the_same_bounds(
    ours: type[msgspec.Struct], theirs: type[msgspec.Struct]
) -> None:
    wanted, known = (get_type_hints(kind, include_extras=True) for kind in (ours, theirs))
    for name, hint in wanted.items():
        if name != "models":
            given = {repr(part) for part in get_args(hint) if part is not UnsetType}
            accepted = {repr(part) for part in (get_args(known[name]) if type(None) in get_args(known[name]) else [])}
            assert given == (accepted or {repr(known[name])}), name


def test_a_wrong_file_is_told_with_exit_code_1_before_anybody_is_asked(tmp_path: Path) -> None:
    path = write(tmp_path, "nodes:\n  bee:\n    host: a\n    colour: red\n")
    done = Person(tmp_path).rbee("--socket", tmp_path / "no.sock", "apply", path)
    assert done.returncode == 1
    assert re.search(rf"{path}:4: nodes.bee.colour: unknown field 'colour'.*\(CONFIG", done.stderr), done.stderr
