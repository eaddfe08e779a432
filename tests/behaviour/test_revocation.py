"""A removed node's certificate at a real queen, and at what serves with the list that she hands out."""

import json
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from rbee import __version__
from rbee.host.identity import key_pem, new_key, request_for
from rbee.wire.tls import client_context, load_identity, server_context
from rbee.wire.tls_files import Identity
from tests.behaviour.support.http import until
from tests.behaviour.support.stack import Stack, free_port

scenarios("features/revocation.feature")

HERE, PUBLIC = "127.0.0.1", "http://203.0.113.5:8080"
PREFIX = "/v2/registry/beehives"
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHzs1hTJ1Lq8iE8tZkq0o6l8l0TqmyvO3pHqz6Zk0mQd"
ADDRESSES = {"near": "198.51.100.7", "far": "198.51.100.8"}
MACHINE = {
    "hostname": "m", "cores": 1, "ram_total_bytes": 1, "ram_available_bytes": 1, "disk_total_bytes": 1,
    "disk_available_bytes": 1,
}  # fmt: skip


@dataclass
class Nodes:
    stack: Stack
    port: int
    identities: dict[str, Identity]
    tokens: dict[str, str]

    def connect(self, name: str) -> ssl.SSLSocket:
        """A connection to the queen by a node's certificate; raises OSError where she refuses it."""
        context = client_context()
        load_identity(context, self.identities[name])
        context.check_hostname = False  # the queen's certificate is for her public address
        raw = socket.create_connection((HERE, self.port), timeout=10)
        return context.wrap_socket(raw)

    def ask(self, name: str, method: str, path: str, body: object = None) -> dict[str, Any]:
        """What the queen answers a node; raises OSError."""
        data = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: queen\r\nConnection: close\r\nContent-Length: {len(data)}\r\n"
            f"Authorization: Bearer {self.tokens[name]}\r\n\r\n"
        )
        with self.connect(name) as connection:
            connection.sendall(head.encode() + data)
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        if not answer:
            raise ConnectionResetError("the queen ended the connection")
        status, _, rest = answer.partition(b"\r\n")
        assert b" 200 " in status, answer
        found: dict[str, Any] = json.loads(rest.partition(b"\r\n\r\n")[2])
        return found

    def beat(self, name: str) -> dict[str, Any]:
        body = {
            "hive_id": name, "boot_id": "b", "revision": time.monotonic_ns(), "version": __version__,
            "interval_s": 5.0, "sent_unix": time.time(), "api_url": None, "machine": MACHINE, "workers": [],
            "revoked": "",
        }  # fmt: skip
        return self.ask(name, "POST", f"/v2/hives/{name}/heartbeat", body)


@given("a queen with the nodes near and far, each with its credentials", target_fixture="nodes")
def two_nodes(stack: Stack, tmp_path: Path) -> Nodes:
    port = free_port()
    stack.queen_config = {"public_url": PUBLIC, "fleet": {"host": HERE, "port": port}}
    stack.start_queen()
    nodes = Nodes(stack, port, {}, {})
    for name, address in ADDRESSES.items():
        details = {"name": name, "host": address, "host_key": HOST_KEY, "addresses": [address]}
        assert stack.admin.post(f"{PREFIX}/add", details).status == 201
        enrolment = stack.admin.post(f"{PREFIX}/enrol", {"name": name}).json
        key = new_key()
        asked = {"name": name, "request": request_for(key, name)}
        made = stack.admin.post(f"{PREFIX}/certify", asked).json["certificate"]
        folder = tmp_path / name
        folder.mkdir()
        identity = nodes.identities[name] = Identity(folder / "ca.pem", folder / "node.pem", folder / "node.key")
        identity.authority.write_text(enrolment["authority"])
        identity.certificate.write_text(made)
        identity.key.write_text(key_pem(key))
        nodes.tokens[name] = enrolment["tokens"]["hive_callback_token"]
        assert nodes.beat(name)["success"]
    return nodes


@when(parsers.parse("the node {name} is removed"))
def node_removed(nodes: Nodes, name: str) -> None:
    assert nodes.stack.admin.post(f"{PREFIX}/remove", {"name": name}).status == 200


@when("the queen is stopped and started")
def queen_again(nodes: Nodes) -> None:
    assert nodes.stack.queen is not None
    nodes.stack.queen.stop()
    nodes.stack.start_queen()


@then("far's certificate gets no connection to the queen, and she alerts: certificate revoked")
def far_is_refused(nodes: Nodes) -> None:
    queen = nodes.stack.queen
    assert queen is not None
    start = len(queen.log)
    with pytest.raises(OSError):
        nodes.ask("far", "GET", "/health")
    line = queen.wait_log("certificate was refused", start=start)
    assert " ALERT " in line and "certificate revoked" in line


@then("near reports as before, and is handed a list by which far is refused there too")
def near_is_told(nodes: Nodes) -> None:
    near, far = nodes.identities["near"], nodes.identities["far"]
    near.revoked.write_text(nodes.beat("near")["revoked"])
    refused: list[str] = []

    def serve(listener: socket.socket) -> None:
        # what a hive or a worker of near serves with, here by hand
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        side = server_context(near).wrap_bio(incoming, outgoing, server_side=True)
        connection, _ = listener.accept()
        with connection:
            while True:
                try:
                    side.do_handshake()
                    return
                except ssl.SSLWantReadError:
                    connection.sendall(outgoing.read())
                    incoming.write(connection.recv(1 << 16))
                except ssl.SSLCertVerificationError as error:
                    refused.append(error.verify_message)
                    return

    context = client_context()
    load_identity(context, far)
    context.check_hostname = False
    with socket.create_server((HERE, 0)) as listener:
        serving = threading.Thread(target=serve, args=(listener,))
        serving.start()
        raw = socket.create_connection(listener.getsockname(), timeout=10)
        try:
            context.wrap_socket(raw).close()
        except OSError:
            pass  # by TLS 1.3 the client may be done before it is refused
        finally:
            raw.close()
        serving.join(10)
    assert refused == ["certificate revoked"]


@then("the queen's log has node.remove of who did it")
def removal_audited(nodes: Nodes) -> None:
    path = nodes.stack.state_dir / "queen" / "audit.jsonl"

    def found() -> dict[str, Any] | None:
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        return next((one for one in entries if one["event_type"] == "node.remove"), None)

    entry = until(found)
    assert entry["actor"].startswith("uid:") and entry["details"]["node"] == "far"
