"""What happens to workers on a machine: processes that hang, units with other limits, requests that do not end."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.behaviour.support.house import House
from tests.behaviour.support.http import Http, Stream

LONG_NAME = "bee-talk-" + "x" * 110
"""A model's name that is in each chunk of an answer: an answer nobody reads fills its socket."""


def set_unit(house: House, worker: str, *lines: str) -> None:
    """Give one worker's unit further lines under [Service], as `systemctl edit` does."""
    text = "\n".join(["[Service]", *lines, ""])
    house.machine.write(f"/etc/systemd/system/rbee-worker@{worker}.service.d/test.conf", text)
    house.machine.systemctl("daemon-reload")


def reset_units(house: House) -> None:
    """Take the further lines away again."""
    house.machine.run(["sh", "-c", "rm -rf /etc/systemd/system/rbee-worker@*.service.d"])
    house.machine.systemctl("daemon-reload")


def hang(house: House, worker: str) -> None:
    """Make a worker's process hang so that no signal but SIGKILL reaches it.

    It is frozen in a control group below its unit's own one: systemd thaws that one, and continues a stopped process,
    before it ends either.
    """
    unit = house.unit(worker)
    group = f"/sys/fs/cgroup{unit['ControlGroup']}/hung"
    freeze = f"mkdir {group} && echo {unit['MainPID']} >{group}/cgroup.procs && echo 1 >{group}/cgroup.freeze"
    house.machine.run(["sh", "-c", freeze])


def signal_worker(house: House, worker: str, signal: str) -> int:
    """Send a signal to a worker's main process behind systemd's back; returns its PID."""
    pid = int(house.unit(worker)["MainPID"])
    assert pid > 1
    house.machine.run(["kill", f"-{signal}", str(pid)])
    return pid


def long_request(worker: Http) -> dict[str, Any]:
    """A chat whose answer fills the model's context, found by trying."""
    for seed in range(40):
        messages = [{"role": "user", "content": "Count to one hundred."}]
        body = {"messages": messages, "temperature": 10, "seed": seed}
        answer = worker.post("/v1/inference", body | {"stream": False})
        assert answer.status == 200, answer.body
        if answer.json["finish_reason"] == "length":
            return body
    raise AssertionError("no seed of 40 leads to an answer that fills the context")


@contextmanager
def held_request(worker: Http, body: dict[str, Any]) -> Iterator[Stream]:
    """A chat that streams to a client that does not read: it runs until the block reads it or ends."""
    with worker.stream("POST", "/v1/chat/completions", body | {"stream": True}) as stream:
        assert stream.status == 200
        yield stream
