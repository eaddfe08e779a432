"""The plan of a fleet: the right steps in the right order, and none once they are taken."""

import dataclasses
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from rbee.keeper.fleet.file import FleetFile, FleetModel, FleetNode, HiveSettings
from rbee.keeper.fleet.plan import Action, Actual, Difference, Probe, Step, leads_elsewhere, plan
from rbee.keeper.fleet.show import line_of
from rbee.keeper.nodes import layout
from rbee.keeper.nodes.host_keys import fingerprint
from rbee.wire.declarations import Declaration, DeclaredBy, DeclaredModel, Replicas
from rbee.wire.messages import WorkerReport, WorkerState
from rbee.wire.model_messages import ModelRow
from rbee.wire.model_reference import Provider, parse
from rbee.wire.nodes import Node, NodeDetails, NodeStatus, NodeTls

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHzs1hTJ1Lq8iE8tZkq0o6l8l0TqmyvO3pHqz6Zk0mQd"
PACKAGES = ("rbee-common", "rbee-hive", "rbee-worker")
SOURCES = ("hf:a/b", "https://files.example/m/")
NAMES = ("bee-1", "bee-2", "bee-3")
MODELS = ("org/chat:7b", "embed")


def wanted(host: str = "10.0.0.1", **more: object) -> FleetNode:
    return msgspec.structs.replace(FleetNode(host, 22, "root", packages="/debs"), **more)


def node(name: str = "bee-1", status: NodeStatus = NodeStatus.ONLINE, **more: object) -> Node:
    details = NodeDetails(name, "10.0.0.1", KEY, ["10.0.0.1"], source="/debs")
    return Node(msgspec.structs.replace(details, **more), status, 0.0, 0.0, enrolled=True)


def row(source: str, **more: object) -> ModelRow:
    model = ModelRow(parse(source).model_id, Provider.HF, source, "/m", 1, "", 0.0, 0.0, owned=True)
    return msgspec.structs.replace(model, **more)


VERSIONS = dict.fromkeys(PACKAGES, "1.0")
PROBE = Probe(VERSIONS, VERSIONS, "labels: [gpu]\n")
THERE = Actual({"bee-1": node()}, {"bee-1": PROBE}, catalogues={"bee-1": []})


def told(steps: Sequence[Step]) -> list[tuple[str, str]]:
    return [(step.action.value, step.subject) for step in steps]


def test_a_node_that_is_as_wanted_needs_nothing() -> None:
    assert plan(FleetFile(nodes={"bee-1": wanted()}), THERE) == []


def test_a_new_node_is_added_set_up_and_given_its_models_before_anything_is_declared() -> None:
    fleet = FleetFile(
        nodes={"bee-1": wanted(hive=HiveSettings(labels=["gpu"]))},
        models=[FleetModel("hf:a/b", pinned=True)],
        declared={"chat": DeclaredModel("hf:a/b")},
    )
    steps = plan(fleet, Actual())
    assert told(steps) == [
        ("add", "bee-1"), ("set up", "bee-1"), ("fetch", "hf:a/b"), ("pin", "hf:a/b"), ("declare", "chat"),
    ]  # fmt: skip
    assert steps[1].differences == [Difference("hive.labels", "", '["gpu"]')]
    assert line_of(steps[0]) == "+ add bee-1: host root@10.0.0.1:22"
    assert line_of(steps[2]) == "+ fetch hf:a/b on bee-1"


def test_a_changed_label_is_the_only_difference() -> None:
    fleet = FleetFile(nodes={"bee-1": wanted(hive=HiveSettings(labels=["gpu", "fast"]))})
    (step,) = plan(fleet, THERE)
    assert step == Step(Action.INSTALL, "bee-1", "bee-1", [Difference("hive.labels", '["gpu"]', '["gpu","fast"]')])
    assert line_of(step) == '~ set up bee-1: hive.labels ["gpu"] -> ["gpu","fast"]'


@pytest.mark.parametrize(
    ("change", "fields", "sets_up"),
    [
        ({"user": "deploy"}, ["user"], False),
        ({"host": "10.0.0.2"}, ["host"], True),
        ({"addresses": ["10.0.0.9"]}, ["addresses"], True),
        ({"tls": NodeTls.OFF}, ["tls"], True),
        ({"packages": "/other"}, ["packages"], False),
        ({"host_key": "SHA256:" + "A" * 43}, ["host_key"], False),
        ({"host_key": fingerprint(KEY), "addresses": ["10.0.0.1"], "packages": ""}, [], False),
    ],
)
def test_what_the_registry_has_otherwise_is_updated(
    change: dict[str, object], fields: list[str], sets_up: bool
) -> None:
    steps = plan(FleetFile(nodes={"bee-1": wanted(**change)}), THERE)
    assert [one.field for step in steps if step.action is Action.UPDATE for one in step.differences] == fields
    assert any(step.action is Action.INSTALL for step in steps) == sets_up


@pytest.mark.parametrize(
    ("there", "probe", "field"),
    [
        (node(), dataclasses.replace(PROBE, installed=VERSIONS | {"rbee-hive": "0.9"}), "rbee-hive"),
        (node(), Probe(dict.fromkeys(PACKAGES, ""), {}, None), "rbee-common"),
        (node(status=NodeStatus.SILENT), PROBE, "hive"),
        (msgspec.structs.replace(node(), enrolled=False), PROBE, "credentials"),
    ],
)
def test_a_node_that_lacks_something_is_set_up(there: Node, probe: Probe, field: str) -> None:
    (step,) = plan(FleetFile(nodes={"bee-1": wanted()}), Actual({"bee-1": there}, {"bee-1": probe}))
    assert (step.action, step.differences[0].field) == (Action.INSTALL, field)


def worker(worker_id: str, version: str, hive: str = "bee-1") -> WorkerReport:
    return WorkerReport(worker_id, hive, "b", 1, WorkerState.IDLE, version=version)


NEWER = dict.fromkeys(PACKAGES, "1.1+deb13")


def test_a_newer_source_upgrades_the_node_and_then_restarts_its_workers() -> None:
    probe = dataclasses.replace(PROBE, offered=NEWER)
    workers = [worker("b", "1.0"), worker("a", "1.0"), worker("elsewhere", "1.0", hive="bee-2"), worker("new", "1.1")]
    steps = plan(
        FleetFile(nodes={"bee-1": wanted()}), dataclasses.replace(THERE, probes={"bee-1": probe}, workers=workers)
    )
    assert told(steps) == [("set up", "bee-1"), ("restart", "a"), ("restart", "b")]
    assert steps[0].differences == [Difference(name, "1.0", "1.1+deb13") for name in PACKAGES]
    assert line_of(steps[1]) == "~ restart a on bee-1: version 1.0 -> 1.1"


@pytest.mark.parametrize(
    ("offered", "behind"), [({}, False), (VERSIONS, False), (NEWER, True), ({"rbee-hive": "1.1"}, True)]
)
def test_a_node_is_behind_where_its_source_has_other_packages(offered: dict[str, str], behind: bool) -> None:
    assert Probe(VERSIONS, offered).behind == behind


def test_workers_that_an_upgrade_left_running_are_restarted_by_a_later_run() -> None:
    actual = dataclasses.replace(THERE, probes={"bee-1": Probe(NEWER)}, workers=[worker("a", "1.0")])
    assert told(plan(FleetFile(nodes={"bee-1": wanted()}), actual)) == [("restart", "a")]
    restarted = dataclasses.replace(actual, workers=[worker("a", "1.1")])
    assert plan(FleetFile(nodes={"bee-1": wanted()}), restarted) == []


@pytest.mark.parametrize(
    "other", [{"managed": False}, {"state": WorkerState.LOADING}, {"state": WorkerState.STOPPED}, {"version": ""}]
)
def test_a_worker_that_takes_no_requests_or_is_not_systemd_s_is_not_restarted(other: dict[str, object]) -> None:
    actual = dataclasses.replace(
        THERE, probes={"bee-1": Probe(NEWER)}, workers=[msgspec.structs.replace(worker("a", "1.0"), **other)]
    )
    assert plan(FleetFile(nodes={"bee-1": wanted()}), actual) == []


def test_an_older_source_is_an_obstacle() -> None:
    probe = Probe(NEWER, VERSIONS, PROBE.hive_yaml, PACKAGES)
    actual = dataclasses.replace(THERE, probes={"bee-1": probe}, workers=[worker("a", "1.1"), worker("b", "1.0")])
    (step,) = plan(FleetFile(nodes={"bee-1": wanted()}), actual)
    assert step.action is Action.INSTALL
    assert "it has rbee-common 1.0 (1.1+deb13 is installed), rbee-hive" in step.obstacle
    assert "rbee node install bee-1 --packages" in step.obstacle


def test_a_node_that_could_not_be_looked_at_is_told_of_and_stops_no_other() -> None:
    fleet = FleetFile(nodes={"bee-1": wanted(), "bee-2": wanted()}, models=[FleetModel("hf:a/b", ["bee-1"])])
    steps = plan(fleet, dataclasses.replace(THERE, unseen={"bee-1": "no SSH there"}))
    assert told(steps) == [("look at", "bee-1"), ("add", "bee-2"), ("set up", "bee-2")]
    assert line_of(steps[0]) == "! look at bee-1: no SSH there"


def test_a_declaration_of_queen_yaml_is_an_obstacle_only_where_it_is_another() -> None:
    declared = DeclaredModel("hf:a/b", replicas=Replicas(1, 2))
    there = Actual(declarations=[Declaration("chat", declared, DeclaredBy.FILE)])
    assert plan(FleetFile(declared={"chat": declared}), there) == []
    (step,) = plan(FleetFile(declared={"chat": DeclaredModel("hf:a/b")}), there)
    assert step.differences == [Difference("replicas", '{"min":1,"max":2}', "")]
    assert "queen.yaml" in step.obstacle
    assert plan(FleetFile(declared={}), there, prune=True) == []


def test_only_what_a_section_does_not_name_is_removed_and_only_when_asked() -> None:
    there = Actual(
        {"bee-1": node(), "bee-9": node("bee-9")},
        {"bee-1": PROBE},
        catalogues={
            "bee-1": [
                row("hf:a/named"), row("hf:a/other"), row("hf:a/used", in_use=True), row("hf:a/declared"),
                row("file:///by/hand", owned=False),
            ],
            "bee-9": [row("hf:a/elsewhere")],
        },
        declarations=[
            Declaration("old", DeclaredModel("hf:a/old"), DeclaredBy.API),
            Declaration("queens", DeclaredModel("hf:a/declared"), DeclaredBy.FILE),
        ],
    )  # fmt: skip
    fleet = FleetFile(nodes={"bee-1": wanted()}, models=[FleetModel("hf:a/named")], declared={})
    assert plan(fleet, there) == []
    steps = plan(fleet, there, prune=True)
    assert told(steps) == [
        ("take back", "old"), ("remove model", parse("hf:a/other").model_id), ("remove node", "bee-9"),
    ]  # fmt: skip
    assert line_of(steps[1]).startswith("- remove model a--other-")
    assert all(step.action.removes for step in steps)
    assert plan(FleetFile(), there, prune=True) == []
    assert told(plan(FleetFile(nodes={"bee-1": wanted()}), there, prune=True)) == [("remove node", "bee-9")]


def test_a_look_by_the_registry_is_worth_nothing_where_the_way_is_another() -> None:
    known = node().details
    assert not leads_elsewhere(wanted(packages="/other", addresses=["10.0.0.2"], tls=NodeTls.OFF), known)
    assert leads_elsewhere(wanted(host="10.0.0.2"), known)
    assert leads_elsewhere(wanted(key="/other"), known)


# -- any fleet, and any that is there --------------------------------------------------------------------------------

labels = st.lists(st.sampled_from(["gpu", "fast"]), unique=True)
declared_models = st.builds(
    DeclaredModel, st.sampled_from(SOURCES), slots=st.integers(1, 3), labels=labels, replicas=st.just(Replicas(1, 2))
)
fleet_nodes = st.builds(
    wanted,
    st.sampled_from(["10.0.0.1", "10.0.0.2"]),
    user=st.sampled_from(["root", "deploy"]),
    key=st.sampled_from([None, "/key"]),
    addresses=st.sampled_from([None, ["10.0.0.1"], ["10.0.0.3", "10.0.0.4"]]),
    tls=st.sampled_from(list(NodeTls)),
    hive=st.builds(HiveSettings, labels=st.just(UNSET) | labels, idle_limit_s=st.just(UNSET) | st.just(5.0)),
)
fleets = st.builds(
    FleetFile,
    nodes=st.just(UNSET) | st.dictionaries(st.sampled_from(NAMES), fleet_nodes),
    models=st.just(UNSET)
    | st.lists(
        st.builds(
            FleetModel, st.sampled_from(SOURCES), st.lists(st.sampled_from([*NAMES, "all"]), min_size=1), st.booleans()
        ),
        unique_by=lambda model: model.source,
    ),
    declared=st.just(UNSET) | st.dictionaries(st.sampled_from(MODELS), declared_models),
)
rows = st.lists(
    st.builds(row, st.sampled_from([*SOURCES, "hf:a/c"]), pinned=st.booleans(), in_use=st.booleans()),
    unique_by=lambda one: one.id,
)
versions = st.fixed_dictionaries({name: st.sampled_from(["", "0.9", "1.0"]) for name in PACKAGES})
probes = st.builds(
    Probe, versions, st.just({}) | st.just(VERSIONS), st.sampled_from([None, "labels: [gpu]\n", "idle_limit_s: 5.0\n"])
)
known_nodes = st.builds(
    lambda status, host, enrolled: msgspec.structs.replace(node(status=status, host=host), enrolled=enrolled),
    st.sampled_from(list(NodeStatus)),
    st.sampled_from(["10.0.0.1", "10.0.0.2"]),
    st.booleans(),
)


@st.composite
def actuals(draw: st.DrawFn) -> Actual:
    nodes = draw(st.dictionaries(st.sampled_from(NAMES), known_nodes))
    declared = draw(st.dictionaries(st.sampled_from(MODELS), declared_models))
    by = st.just(DeclaredBy.API)
    return Actual(
        nodes,
        {name: draw(probes) for name in nodes},
        {},
        {name: draw(rows) for name in nodes},
        [Declaration(name, one, draw(by)) for name, one in declared.items()],
    )


def taken(fleet: FleetFile, actual: Actual, steps: Sequence[Step]) -> Actual:
    """The fleet after every step was taken, as the ways that take them would leave it."""
    nodes, probes_, disks = dict(actual.nodes), dict(actual.probes), {k: list(v) for k, v in actual.catalogues.items()}
    declared = {one.model: one for one in actual.declarations}
    for step in steps:
        name, subject = step.node or "", step.subject
        if step.action in (Action.ADD, Action.UPDATE):
            mine = fleet.machines[name]
            before = nodes.get(name, Node(node(name).details, NodeStatus.REACHABLE, 0.0, 0.0))
            details = msgspec.structs.replace(
                before.details,
                host=mine.host,
                user=mine.user,
                key_file=mine.key or before.details.key_file,
                addresses=mine.addresses or before.details.addresses,
                tls=mine.tls,
            )
            nodes[name] = msgspec.structs.replace(before, details=details)
            probes_.setdefault(name, Probe(dict.fromkeys(PACKAGES, "")))
            disks.setdefault(name, [])
        elif step.action is Action.INSTALL:
            nodes[name] = msgspec.structs.replace(nodes[name], enrolled=True, status=NodeStatus.ONLINE)
            there = probes_[name]
            text = layout.hive_yaml(
                there.hive_yaml, name=name, address="a", callback_url="u", tls=True,
                settings=fleet.machines[name].hive.keys(),
            )  # fmt: skip
            probes_[name] = Probe(there.offered or {p: v or "1.0" for p, v in there.installed.items()}, {}, text)
        elif step.action is Action.PULL:
            disks[name].append(row(subject))
        elif step.action in (Action.PIN, Action.UNPIN):
            place = next(i for i, one in enumerate(disks[name]) if one.reference == subject)
            disks[name][place] = msgspec.structs.replace(disks[name][place], pinned=step.action is Action.PIN)
        elif step.action is Action.DECLARE:
            declared[subject] = Declaration(subject, fleet.declarations[subject], DeclaredBy.API)
        elif step.action is Action.UNDECLARE:
            del declared[subject]
        elif step.action is Action.REMOVE_MODEL:
            disks[name] = [one for one in disks[name] if one.id != subject]
        elif step.action is Action.REMOVE_NODE:
            del nodes[name]
            del disks[name]
    return Actual(nodes, probes_, {}, disks, list(declared.values()))


@given(fleets, actuals(), st.booleans())
def test_once_every_step_is_taken_there_is_none(fleet: FleetFile, actual: Actual, prune: bool) -> None:
    steps = plan(fleet, actual, prune=prune)
    assert plan(fleet, taken(fleet, actual, steps), prune=prune) == []


@given(fleets, actuals(), st.booleans())
def test_steps_are_once_in_order_and_remove_only_when_asked_and_at_the_end(
    fleet: FleetFile, actual: Actual, prune: bool
) -> None:
    steps = plan(fleet, actual, prune=prune)
    assert len({(step.action, step.subject, step.node) for step in steps}) == len(steps)
    removals = [step.action.removes for step in steps]
    assert removals == sorted(removals)
    assert prune or not any(removals)
    order = list(Action)
    for name in {step.node for step in steps if step.node is not None}:
        of_node = [order.index(step.action) for step in steps if step.node == name and not step.action.removes]
        of_life = sorted(one for one in of_node if one <= order.index(Action.INSTALL))
        assert of_node[: len(of_life)] == of_life
