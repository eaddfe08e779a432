"""Steps of features/fleet.feature; the scenarios share one fleet and run in the feature's order."""

import json
import re
from collections.abc import Iterator

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from tests.behaviour.support.fleet import MODEL, SHARED, WORKER, Fleet, set_up
from tests.machines.testbed import Machine, Network, Release, debs, wait_until

scenarios("features/fleet.feature")
pytestmark = pytest.mark.timeout(400)

AUTHORITY = "/etc/rbee/authority.pem"
CERTIFICATE, KEY = "/var/lib/rbee/hive/tls/node.pem", "/var/lib/rbee/hive/tls/node.key"
CALLBACK_TOKEN = "/etc/credstore/rbee.hive_callback_token"
SHOWN = ("--cacert", AUTHORITY, "--cert", CERTIFICATE, "--key", KEY)
EXPIRED = """
import datetime, json, pathlib, sys
from rbee.host.identity import key_pem, new_key, request_for
from rbee.queen.nodes.authority import Authority
life = datetime.timedelta(days=1)
then = datetime.datetime.now(datetime.UTC) - 2 * life
authority, key = Authority(pathlib.Path("/var/lib/rbee/queen/authority")), new_key()
authority.open(then)
certificate = authority.certify(request_for(key, "far"), "far", [sys.argv[1]], life, then).pem
print(json.dumps({"expired.key": key_pem(key), "expired.pem": certificate}))
"""


@pytest.fixture(scope="module")
def shared_fleet(repositories: dict[Release, debs.Repositories]) -> Iterator[Fleet]:
    release = debs.RELEASES[0]
    with Network() as network:
        yield set_up(network, release, repositories[release])


@given(
    "a queen's machine, and a bare machine that was added, installed and asked as the node far", target_fixture="fleet"
)
def a_fleet(shared_fleet: Fleet) -> Fleet:
    return shared_fleet


def listed(machine: Machine) -> str:
    """Every file of ours on a machine, with its time and inode."""
    files = "find /etc /var/lib/rbee /usr/share/keyrings -xdev -type f -printf '%p %T@ %i\\n' | sort"
    return machine.run(["sh", "-c", files]).stdout


# -- installation ----------------------------------------------------------------------------------------------------


@then(parsers.parse("each step was shown with its time: {steps}"))
def steps_were_shown(fleet: Fleet, steps: str) -> None:
    said = fleet.said["install"]
    for step in steps.split(", "):
        assert re.search(rf"^  {step}: (changed|as it was), [\d.]+ (s|min)", said, re.M), (step, said)
    assert "far: set up" in said
    assert "rbee node install far" in fleet.said["add"]
    print(said)


@then("the model's answer came from far, whose worker is at an https address of far")
def answer_came(fleet: Fleet) -> None:
    assert "4 tokens" in fleet.said["infer"]
    assert fleet.row(f"far/{WORKER}")["url"].startswith(f"https://{fleet.far.address}:")


@then("far is online with the version of its package")
def far_is_online(fleet: Fleet) -> None:
    node = fleet.node("far")
    assert (node["status"], node["enrolled"], node["problem"]) == ("online", True, "")
    installed = fleet.far.run(["dpkg-query", "--show", "--showformat=${Version}", "rbee-hive"]).stdout
    assert node["details"]["version"] == installed


@then("tokens and the key on far are readable by whom they are for, and by nobody else")
def modes_are_tight(fleet: Fleet) -> None:
    asked = [
        "stat",
        "-c",
        "%a %U:%G",
        CALLBACK_TOKEN,
        "/etc/credstore/rbee.worker_api_token",
        KEY,
        "/etc/rbee/hive.yaml",
    ]
    modes = fleet.far.run(asked).stdout.split("\n")[:4]
    assert modes == ["600 root:root", "600 root:root", "640 rbee-hive:rbee-worker", "644 root:root"]
    told = "".join(str(record.get("MESSAGE")) for record in fleet.far.journal() + fleet.queen.journal())
    assert fleet.far.read(CALLBACK_TOKEN).strip() not in told + "".join(fleet.said.values())


@then("the queen has alerted nobody")
def no_alert(fleet: Fleet) -> None:
    assert fleet.alerts() == []


@when("rbee node install far is run again")
def installed_again(fleet: Fleet) -> None:
    fleet.seen["files"] = listed(fleet.far)
    fleet.seen["life"] = fleet.far.unit("rbee-hive.service")["InvocationID"]
    fleet.seen["result"] = fleet.json("node", "install", "far")


@then("it says that nothing was to change")
def nothing_to_change(fleet: Fleet) -> None:
    assert fleet.seen["result"]["changed"] is False, fleet.seen["result"]


@then("no file of far is another than before, and its hive was not restarted")
def as_before(fleet: Fleet) -> None:
    assert listed(fleet.far) == fleet.seen["files"]
    assert fleet.far.unit("rbee-hive.service")["InvocationID"] == fleet.seen["life"]


# -- check -----------------------------------------------------------------------------------------------------------


@when("rbee node check far is run with --json")
def far_is_checked(fleet: Fleet) -> None:
    found = fleet.json("node", "check", "far")
    assert found["good"], found
    fleet.seen["checks"] = {check["name"]: check for check in found["checks"]}


@then("these checks are good:")
def checks_are_good(fleet: Fleet, datatable: list[list[str]]) -> None:
    for name, words in datatable[1:]:
        check = fleet.seen["checks"][name]
        assert check["good"], check
        assert words in check["found"], check


@when(parsers.parse("rbee workers health --node {node} is run"))
def health_is_asked(fleet: Fleet, node: str) -> None:
    fleet.seen["said"] = fleet.rbee("workers", "health", "--node", node)


@then(parsers.parse("it shows {worker} of {node}, which answers"))
def worker_answers(fleet: Fleet, worker: str, node: str) -> None:
    (line,) = [line for line in fleet.seen["said"].splitlines() if line.startswith(worker)]
    assert line.split("\t")[1:4] == [node, "idle", "yes"]


# -- who gets in -----------------------------------------------------------------------------------------------------


def curl(machine: Machine, *arguments: str) -> int:
    return machine.run(["curl", "-sS", "--output", "/dev/null", *arguments], check=False).returncode


@then("on far curl reaches the queen's listener for nodes with far's certificate, and not without")
def queen_wants_certificate(fleet: Fleet) -> None:
    url = f"https://{fleet.queen.address}:8443/health"
    assert curl(fleet.far, *SHOWN, url) == 0
    assert curl(fleet.far, "--cacert", AUTHORITY, url) != 0


@then("on far curl does not reach the worker without a certificate")
def worker_wants_certificate(fleet: Fleet) -> None:
    url = f"{fleet.row(f'far/{WORKER}')['url']}/health"
    assert curl(fleet.far, *SHOWN, url) == 0
    assert curl(fleet.far, "--cacert", AUTHORITY, url) != 0


@then("the hive of far does not answer plain HTTP on its address")
def hive_wants_certificate(fleet: Fleet) -> None:
    assert curl(fleet.queen, f"http://{fleet.far.address}:9200/health") != 0


def report(fleet: Fleet, hive: str, url: str) -> int:
    """Report a ready worker with everything that far has; the HTTP status of the answer."""
    fleet.seen.setdefault("alerts", len(fleet.alerts()))
    body = {
        "worker_id": "w", "hive_id": hive, "boot_id": "stolen", "revision": 1, "state": "idle", "url": url,
        "model": MODEL, "model_ref": f"file:///{MODEL}", "backend": "cpu", "slots_total": 1,
    }  # fmt: skip
    fleet.far.write("/root/header", f"Authorization: Bearer {fleet.far.read(CALLBACK_TOKEN).strip()}\n", 0o600)
    fleet.far.write("/root/body", json.dumps(body))
    asked = ["curl", "-sS", *SHOWN, "--header", "@/root/header", "--data", "@/root/body", "--write-out", "%{http_code}"]
    target = f"https://{fleet.queen.address}:8443/v2/workers/ready"
    return int(fleet.far.run([*asked, "--output", "/dev/null", target]).stdout)


@when("somebody with all of far's credentials reports a worker of another hive")
def other_hive_reported(fleet: Fleet) -> None:
    fleet.seen["status"] = report(fleet, "queen", f"https://{fleet.far.address}:9999")


@when("somebody with all of far's credentials reports a worker of far at the queen's address")
def other_address_reported(fleet: Fleet) -> None:
    fleet.seen["status"] = report(fleet, "far", f"https://{fleet.queen.address}:9999")


@then(parsers.parse("the answer is {status:d}"))
def answer_is(fleet: Fleet, status: int) -> None:
    assert fleet.seen["status"] == status


@then(parsers.parse("the queen has alerted {count:d} times more"))
def alerted(fleet: Fleet, count: int) -> None:
    assert len(fleet.alerts()) == fleet.seen["alerts"] + count, fleet.alerts()


@when("far shows the queen a certificate of her authority that expired yesterday")
def expired_is_shown(fleet: Fleet) -> None:
    before = len(fleet.alerts())
    made = json.loads(fleet.queen.run(["/usr/lib/rbee/venv/bin/python", "-c", EXPIRED, fleet.far.address]).stdout)
    for path, text in made.items():
        fleet.far.write(f"/root/{path}", text, 0o600)
    shown = ("--cacert", AUTHORITY, "--cert", "/root/expired.pem", "--key", "/root/expired.key")
    fleet.seen["code"] = curl(fleet.far, *shown, f"https://{fleet.queen.address}:8443/health")
    wait_until(lambda: len(fleet.alerts()) > before, "the alert", 30)


@then("nothing was answered, and the queen has alerted that a certificate has expired")
def expired_is_refused(fleet: Fleet) -> None:
    assert fleet.seen["code"] != 0
    last = fleet.queen.journal("rbee-queen.service", "PRIORITY=1")[-1]
    assert "certificate has expired" in json.dumps(last), last


@when("far reports to the queen with its own certificate and a token that is none of hers")
def wrong_token_is_shown(fleet: Fleet) -> None:
    url = f"https://{fleet.queen.address}:8443/v2/registry/beehives/list"
    token = ["--header", f"Authorization: Bearer {'0' * 64}"]
    asked = ["curl", "-sS", *SHOWN, *token, "--write-out", "%{http_code}", "--output", "/dev/null", url]
    fleet.seen["status"] = int(fleet.far.run(asked).stdout)


@then("the queen's log says so")
def refusal_is_logged(fleet: Fleet) -> None:
    told = [str(record.get("MESSAGE")) for record in fleet.queen.journal("rbee-queen.service", "PRIORITY=4")]
    assert any("authentication failed" in one for one in told), told


@when("another machine is to take the place of far, whose hive is alive")
def place_taken(fleet: Fleet) -> None:
    body = {"name": "far", "addresses": [fleet.queen.address]}
    answer = fleet.queen.http("POST", "/run/rbee/queen.sock", "/v2/registry/beehives/update", json_body=body)
    fleet.seen["answer"] = (answer.status, answer.text)


@then(parsers.parse("the queen answers {status:d}: {words}"))
def queen_answered(fleet: Fleet, status: int, words: str) -> None:
    assert fleet.seen["answer"][0] == status
    assert words in fleet.seen["answer"][1]


# -- rotation --------------------------------------------------------------------------------------------------------


def credentials(machine: Machine) -> dict[str, str]:
    names = ("hive_callback_token", "hive_api_token", "worker_api_token")
    paths = [*(f"/etc/credstore/rbee.{name}" for name in names), CERTIFICATE, KEY]
    return {path: machine.read(path) for path in paths}


@when("rbee node rotate far is run while the model is asked all along")
def rotated(fleet: Fleet) -> None:
    fleet.seen["credentials"] = credentials(fleet.far)
    with fleet.asked_all_along() as outcomes:
        fleet.seen["said"] = fleet.rbee("node", "rotate", "far")
        before = outcomes.ended.total()
        wait_until(lambda: outcomes.ended.total() >= before + 5, "answers after the rotation", 120)
    fleet.seen["outcomes"] = outcomes


@then("every request was answered")
def all_answered(fleet: Fleet) -> None:
    assert list(fleet.seen["outcomes"].ended) == ["ok"], fleet.seen["outcomes"]


@then("tokens, key and certificate of far are others")
def credentials_are_others(fleet: Fleet) -> None:
    now = credentials(fleet.far)
    assert not set(now.values()) & set(fleet.seen["credentials"].values())
    wait_until(lambda: fleet.node("far")["silent_s"] < 6, "its report", 30)


@then("the former token of far's hive is not accepted")
def former_token_refused(fleet: Fleet) -> None:
    former = fleet.seen["credentials"][CALLBACK_TOKEN].strip()
    fleet.far.write("/root/header", f"Authorization: Bearer {former}\n", 0o600)
    asked = ["curl", "-sS", *SHOWN, "--header", "@/root/header", "--write-out", "%{http_code}", "--output", "/dev/null"]
    url = f"https://{fleet.queen.address}:8443/v2/registry/beehives/list"
    wait_until(lambda: fleet.far.run([*asked, url]).stdout == "401", "the refusal", 30)


# -- logs and life ---------------------------------------------------------------------------------------------------


@when("rbee logs --node far --follow is run and interrupted")
def logs_are_followed(fleet: Fleet) -> None:
    follow = ["timeout", "--preserve-status", "--signal=INT", "5", "rbee", "logs", "--node", "far", "--follow"]
    done = fleet.queen.run(follow, check=False, timeout=60)
    fleet.seen["logs"] = (done.returncode, done.stdout)


@then("it has shown the journal of far's hive and ends with 130")
def logs_were_shown(fleet: Fleet) -> None:
    code, out = fleet.seen["logs"]
    assert "hive ready" in out
    assert code == 130


@when(parsers.re(r"rbee node (?P<order>stop|start) far is run"))
def hive_is_told(fleet: Fleet, order: str) -> None:
    fleet.seen["said"] = fleet.rbee("node", order, "far")


@then("systemd on far says that rbee-hive is inactive, and the worker goes on")
def hive_is_inactive(fleet: Fleet) -> None:
    assert "rbee-hive is inactive" in fleet.seen["said"]
    assert fleet.far.unit("rbee-hive.service")["ActiveState"] == "inactive"
    assert fleet.far.unit(f"rbee-worker@{WORKER}.service")["ActiveState"] == "active"


@when("far loses its power and is switched on again")
def power_lost(fleet: Fleet) -> None:
    fleet.far.kill_power()
    fleet.far.boot()


@then("far is online again and the model answers")
def far_is_back(fleet: Fleet) -> None:
    wait_until(lambda: fleet.node("far")["status"] == "online" and fleet.node("far")["silent_s"] < 6, "far", 60)
    assert "4 tokens" in fleet.infer()


# -- another node ----------------------------------------------------------------------------------------------------


@when("a bare machine is added as near with TLS off and installed from a line of apt")
def near_is_installed(fleet: Fleet) -> None:
    near = fleet.seen["near"] = fleet.bare("near")
    fleet.add("near", near, "--tls", "off")
    line = f"deb [signed-by=/usr/share/keyrings/rbee-archive-keyring.gpg] file:{SHARED} {near.release} main"
    keyring = f"{SHARED}/rbee-archive-keyring.gpg"
    fleet.rbee("node", "install", "near", "--packages", line, "--keyring", keyring)


@then("near is online, its worker is at an http address of near, and the model answers from near")
def near_answers(fleet: Fleet) -> None:
    assert fleet.node("near")["status"] == "online"
    fleet.rbee("worker", "spawn", WORKER, "--node", "near")
    row = fleet.row(f"near/{WORKER}")
    assert row["url"].startswith(f"http://{fleet.seen['near'].address}:")
    fleet.rbee("worker", "stop", WORKER, "--node", "far")
    assert "worker near/talk" in fleet.infer()


@when("rbee node remove near --purge is run")
def near_is_purged(fleet: Fleet) -> None:
    fleet.seen["said"] = fleet.rbee("node", "remove", "near", "--purge")


@then("near has no package, credential, user or unit of ours, and is not in the registry")
def near_is_bare(fleet: Fleet) -> None:
    near: Machine = fleet.seen["near"]
    assert all(node["details"]["name"] != "near" for node in fleet.json("node", "list")["nodes"])
    packages = near.run(["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", "rbee*"], check=False)
    assert "installed" not in packages.stdout.replace("not-installed", "")
    for left in (
        ["find", "/etc", "-xdev", "-path", "*rbee*", "-type", "f", "-not", "-path", "/etc/rbee/workers/*"],
        ["grep", "rbee", "/etc/passwd"],
        ["systemctl", "list-units", "--no-legend", "rbee*"],
    ):
        assert near.run(left, check=False).stdout.strip() == "", left
