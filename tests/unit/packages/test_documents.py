"""What the packages say is so: man pages, configuration as it comes, examples, alert rules, the dashboard."""

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import yaml
from prometheus_client import CollectorRegistry

import rbee.hive.main
import rbee.queen.main
import rbee.worker.main
from rbee.hive.config import HiveConfig
from rbee.hive.metrics import HiveMetrics
from rbee.hive.models.metrics import ModelMetrics
from rbee.host.config import load_config
from rbee.keeper.fleet.file import FleetFile, FleetModel, FleetNode, HiveSettings, StoreSettings
from rbee.keeper.main import COMMANDS, cli
from rbee.keeper.settings import KeeperConfig
from rbee.queen.config import QueenConfig
from rbee.queen.metrics import QueenMetrics
from rbee.queen.placement.declarations import Declarations
from rbee.queen.registry.registry import Registry
from rbee.queen.registry.rows import SilenceLimits
from rbee.queen.store import Store
from rbee.wire.worker_spec import WorkerSpec
from rbee.worker.definition import WorkerDefaults
from rbee.worker.metrics import WorkerMetrics

CHECKOUT = Path(__file__).resolve().parents[3]
MAN = CHECKOUT / "docs/man"
CONFFILES = CHECKOUT / "packaging/debian/conffiles"
WORKERS = sorted((CHECKOUT / "docs/examples/workers").glob("*.yaml"))
MONITORING = CHECKOUT / "packaging/monitoring"
PAGES = {
    "rbee-queen.yaml.5": (QueenConfig,),
    "rbee-hive.yaml.5": (HiveConfig,),
    "rbee-worker.yaml.5": (WorkerDefaults, WorkerSpec),
    "rbee-fleet.yaml.5": (FleetFile,),
}
CONFIGURATIONS = {"queen.yaml": QueenConfig, "hive.yaml": HiveConfig, "worker.yaml": WorkerDefaults}
METRIC = re.compile(r"\b(?:queen_rbee|rbee_hive|rbee_worker|worker_ready)_[a-z0-9_]+")


def fields(kind: type[msgspec.Struct], prefix: str = "") -> Iterator[str]:
    """The dotted names of a configuration's keys; a key of keys is named by them alone."""
    for field in msgspec.structs.fields(kind):
        name = f"{prefix}{field.name}"
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from fields(field.type, f"{name}.")
        else:
            yield name


def keys_of(page: Path) -> list[str]:
    section, found = "", []
    for line in page.read_text().splitlines():
        if line.startswith(".Sh "):
            section = line
        elif line.startswith(".It Cm ") and section.startswith(".Sh KEYS"):
            found.append(line.removeprefix(".It Cm "))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_every_key_that_the_code_knows_and_no_other(page: str) -> None:
    known = [name for kind in PAGES[page] for name in fields(kind)]
    assert sorted(keys_of(MAN / page)) == sorted(known)


@pytest.mark.parametrize("kind", [FleetNode, FleetModel, HiveSettings, StoreSettings])
def test_the_page_of_a_fleet_has_the_keys_of_what_is_in_it(kind: type[msgspec.Struct]) -> None:
    said = re.findall(r"\bQl (\w+)", (MAN / "rbee-fleet.yaml.5").read_text())
    assert set(kind.__struct_fields__) - set(said) == set()


def default_in(page: Path, key: str) -> str:
    """What follows "Default: " in the text of a key."""
    text = page.read_text()
    part = re.split(r"\n\.It |\n\.El", text[text.index(f"\n.It Cm {key}\n") + 1 :])[0]
    found = re.search(r"^Default: (.*)\.$", part, re.M)
    return found[1] if found else ""


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_the_defaults_of_the_code(page: str) -> None:
    wrong = {}
    for kind in PAGES[page]:
        defaults = msgspec.convert({"model": "/m"} if kind is WorkerSpec else {}, kind)
        for key in fields(kind):
            value = functools.reduce(getattr, key.split("."), defaults)
            said = default_in(MAN / page, key)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and said != f"{value:g}":
                wrong[key] = (said, value)
    assert wrong == {}


@pytest.mark.parametrize("module", [rbee.queen.main, rbee.hive.main, rbee.worker.main], ids=lambda m: m.__name__)
def test_a_page_has_every_option_of_its_program(module: object, capsys: pytest.CaptureFixture[str]) -> None:
    name = module.__name__.split(".")[1]  # type: ignore[attr-defined]
    with pytest.raises(SystemExit):
        module._options(["--help"])  # type: ignore[attr-defined]
    options = set(re.findall(r"(--[a-z-]+)", capsys.readouterr().out)) - {"--help", "--id-"}
    page = (MAN / ("rbee-worker@.service.8" if name == "worker" else f"rbee-{name}.8")).read_text()
    shown = {f"-{option}" for option in re.findall(r"Fl (-[a-z-]+)", page)}
    assert options - shown == set()
    assert shown - options == set()


def test_the_page_of_the_command_has_every_command_and_option() -> None:
    page = (MAN / "rbee.1").read_text()
    shown = set(re.findall(r"^\.It Cm ([a-z]+)", page, re.M))
    assert shown == set(COMMANDS)
    options = {option for parameter in cli.params for option in parameter.opts if option.startswith("--")}
    missing = {option for option in options if f".It Fl {option[1:]} " not in page} - {"--version", "--help"}
    assert missing == set()
    assert {name for name in fields(KeeperConfig) if f".Cm {name}" not in page} == set()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_is_valid_as_it_comes_and_with_every_comment_of_a_key_taken_away(
    name: str, tmp_path: Path
) -> None:
    load_config(CONFIGURATIONS[name], CONFFILES / name, required=True)
    opened = re.sub(r"^#(?=[a-z_]+:|  )", "", (CONFFILES / name).read_text(), flags=re.M)
    path = tmp_path / name
    path.write_text(opened)
    load_config(CONFIGURATIONS[name], path, required=True)
    assert opened.count("\n#") < (CONFFILES / name).read_text().count("\n#")


@pytest.mark.parametrize(
    "path", sorted((CHECKOUT / "docs/examples/workers").glob("*.yaml")), ids=lambda path: path.name
)
def test_an_example_of_a_worker_is_valid(path: Path) -> None:
    load_config(WorkerSpec, path, required=True)


@pytest.fixture(scope="module")
def metrics() -> set[str]:
    """Every name that a scrape of queen, hive or worker can show."""
    queen = QueenMetrics()
    queen.watch(Registry(SilenceLimits()), Declarations(Store(Path("never.db")), {}), lambda: 0)
    hive = CollectorRegistry()
    HiveMetrics(hive)
    ModelMetrics(hive)
    registries = [queen.registry, hive, WorkerMetrics().registry]
    found = set()
    for family in (family for registry in registries for family in registry.collect()):
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        found |= {family.name + suffix for suffix in suffixes}
    return found


def test_the_alert_rules_name_metrics_that_exist(metrics: set[str]) -> None:
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"][0]["rules"]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 8
    for rule in rules:
        named = METRIC.findall(rule["expr"])
        assert named, rule
        assert set(named) <= metrics, rule["expr"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]


def test_the_dashboard_names_metrics_that_exist(metrics: set[str]) -> None:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    for target in (target for panel in dashboard["panels"] for target in panel["targets"]):
        named = METRIC.findall(target["expr"])
        assert named, target
        assert set(named) <= metrics, target["expr"]
