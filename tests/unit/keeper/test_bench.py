"""`rbee bench` against a daemon that answers well, fails, or never ends."""

import json
import time
from pathlib import Path

import pytest
from tests.unit.keeper.command import Person
from tests.unit.keeper.peer import STREAM_END, STREAM_HEAD, Asked, Peer, Send, error, event

from rbee.keeper.bench import Level, Plan, Sample, Usage, quantile

PACE_S = 0.01


def pieces(asked: Asked, send: Send) -> None:
    send(STREAM_HEAD)
    for _ in range(asked.json["max_tokens"]):
        time.sleep(PACE_S)
        send(event(None, {"choices": [{"text": "a"}], "usage": None}))
    usage = {"prompt_tokens": 7, "completion_tokens": asked.json["max_tokens"], "total_tokens": 9}
    send(event(None, {"choices": [], "usage": usage}) + event(None, "[DONE]") + STREAM_END)


def test_each_level_is_measured_and_printed(person: Person, folder: Path) -> None:
    ask = ("bench", "m", "--clients", "1,2", "--requests", 4, "--max-tokens", 5, "--json")
    with Peer(pieces, folder / "q.sock") as peer:
        done = person.rbee("--socket", folder / "q.sock", *ask)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [level["clients"] for level in found["levels"]] == [1, 2]
    for level in found["levels"]:
        assert (level["done"], level["failed"], level["unfinished"]) == (4, {}, 0)
        assert (level["prompt_tokens"], level["completion_tokens"]) == (28, 20)
        # what the daemon took is the least that can have been measured
        assert level["ttft_ms"]["p50"] >= PACE_S * 1000
        assert level["inter_token_ms"]["p50"] >= PACE_S * 500
        assert level["seconds"] >= 5 * PACE_S * 4 / level["clients"]
        assert level["tokens_per_s"] == pytest.approx(20 / level["seconds"], rel=0.01)
    bodies = [asked.json for asked in peer.asked]
    assert len({body["prompt"] for body in bodies}) == len(bodies) == 9
    assert all((body["model"], body["ignore_eos"], body["temperature"]) == ("m", True, 0) for body in bodies)


def test_the_table_has_a_row_for_each_level(person: Person, folder: Path) -> None:
    with Peer(pieces, folder / "q.sock"):
        done = person.rbee("--socket", folder / "q.sock", "bench", "m", "--clients", "1", "--max-tokens", 2)
    head, row = done.stdout.splitlines()
    assert head.startswith("clients\trequests\tfailed\ttokens/s")
    assert row.startswith("1\t8/8\t0\t")
    assert "prompts of 7 tokens, answers of 2" in done.stderr


def test_requests_that_fail_are_counted_by_their_reason(person: Person, folder: Path) -> None:
    asked_before: list[int] = []

    def every_second(asked: Asked, send: Send) -> None:
        asked_before.append(1)
        if len(asked_before) % 2:
            pieces(asked, send)
        else:
            send(error("ALL_SLOTS_BUSY", "busy", 503))

    ask = ("bench", "m", "--clients", "1", "--requests", 4, "--max-tokens", 2)
    with Peer(every_second, folder / "q.sock"):
        done = person.rbee("--socket", folder / "q.sock", *ask)
    assert done.returncode == 0
    assert "1 clients: 2 requests failed with ALL_SLOTS_BUSY" in done.stderr
    assert done.stdout.splitlines()[1].startswith("1\t2/4\t2\t")


def test_a_model_that_cannot_be_asked_is_one_error(person: Person, folder: Path) -> None:
    with Peer(lambda _, send: send(error("MODEL_NOT_FOUND", "no such model", 404)), folder / "q.sock"):
        done = person.rbee("--socket", folder / "q.sock", "bench", "m", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert json.loads(done.stderr)["error"]["code"] == "MODEL_NOT_FOUND"


def test_it_ends_at_its_time_limit(person: Person, folder: Path) -> None:
    asked_before: list[int] = []

    def once(asked: Asked, send: Send) -> None:
        asked_before.append(1)
        if len(asked_before) == 1:
            pieces(asked, send)
            return
        send(STREAM_HEAD)
        while True:  # until the reader is gone
            send(event(None, {"choices": [{"text": "a"}], "usage": None}))
            time.sleep(0.05)

    ask = ("bench", "m", "--clients", "2", "--requests", 4, "--max-tokens", 2, "--time-limit", 1)
    with Peer(once, folder / "q.sock"):
        done = person.rbee("--socket", folder / "q.sock", *ask)
    assert done.returncode == 1
    assert "4 of 4 requests were not done in time" in done.stderr
    assert "--time-limit" in done.stderr


@pytest.mark.parametrize("clients", ["0", "257", "1,,2", "x", "-1", "1.5"])
def test_numbers_of_clients_are_checked(person: Person, clients: str) -> None:
    done = person.rbee("bench", "m", f"--clients={clients}")
    assert done.returncode == 2
    assert "from 1 to 256" in done.stderr


def test_quantiles_and_rates_of_nothing_and_of_something() -> None:
    assert quantile([], 0.5) is None
    assert [quantile([3, 1, 2], share) for share in (0.01, 0.5, 0.99)] == [1, 2, 3]
    level = Level(2, 3)
    assert (level.tokens_per_s, level.first_s(0.5), level.gap_s(0.5), level.unfinished) == (0.0, None, None, 3)
    level.samples = [Sample(0.5, (0.1, 0.2), Usage(3, 10)), Sample(0.7, (), Usage(3, 1))]
    level.seconds = 2.0
    assert (level.tokens_per_s, level.first_s(0.99), level.gap_s(0.99), level.unfinished) == (5.5, 0.7, 0.2, 1)
    prompts = [Plan("m", 4, 30, 1.0).body(number)["prompt"] for number in (1, 2)]
    assert [len(prompt.split()) for prompt in prompts] == [30, 30]
    assert prompts[0].split()[0] != prompts[1].split()[0]
