"""The command's SSH, against a real SSH server on loopback: commands, quoting, keys that are refused, strangers."""

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from rbee.keeper.nodes import preflight
from rbee.keeper.nodes.failures import HostKeyRefused, SshRefused, SshUnreachable, StepFailed
from rbee.keeper.nodes.ssh import Ssh, Target, shown_key
from rbee.wire.nodes import Check

_FORMS = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()


def key_file(path: Path) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(ed25519.Ed25519PrivateKey.generate().private_bytes(*_FORMS))
    return path


def public(path: Path) -> str:
    key = paramiko.Ed25519Key.from_private_key_file(str(path))
    return f"{key.get_name()} {key.get_base64()}"


class Shell(paramiko.ServerInterface):
    """Lets one key in, and runs what it is told by sh, as sshd does."""

    def __init__(self, accepted: str) -> None:
        self._accepted = accepted

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        good = f"{key.get_name()} {key.get_base64()}" == self._accepted
        return paramiko.AUTH_SUCCESSFUL if good else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Thread(target=self._run, args=(channel, command)).start()
        return True

    @staticmethod
    def _run(channel: paramiko.Channel, command: bytes) -> None:
        done = subprocess.run(["sh", "-c", command.decode()], capture_output=True, check=False, timeout=20)
        channel.sendall(done.stdout)
        channel.sendall_stderr(done.stderr)
        channel.send_exit_status(done.returncode)
        channel.close()


class Server:
    """An SSH server on a port of 127.0.0.1."""

    def __init__(self, host_key: Path, accepted: str) -> None:
        self._key = paramiko.Ed25519Key.from_private_key_file(str(host_key))
        self._accepted = accepted
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._transports: list[paramiko.Transport] = []
        self.connections = 0
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            transport = paramiko.Transport(connection)
            transport.add_server_key(self._key)
            self._transports.append(transport)
            try:
                transport.start_server(server=Shell(self._accepted))
            except (paramiko.SSHException, EOFError, OSError):  # who looks at the key alone hangs up at once
                transport.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        for transport in self._transports:
            transport.close()


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return key_file(tmp_path / "id")


@pytest.fixture
def host_key(tmp_path: Path) -> Path:
    return key_file(tmp_path / "host")


@pytest.fixture
def server(key: Path, host_key: Path) -> Iterator[Server]:
    made = Server(host_key, public(key))
    yield made
    made.close()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def target(server: Server, key: Path) -> Target:
    return Target("127.0.0.1", server.port, "root", key, 5.0)


def test_a_command_is_an_argv_and_no_word_of_it_is_the_shells(
    target: Target, host_key: Path, said: list[str], tmp_path: Path
) -> None:
    odd = ["a b", "$(touch /nowhere)", "`id`", "'\"\\", ";", "*", "é\n"]
    with Ssh(target, public(host_key), said.append) as ssh:
        assert ssh.address == "127.0.0.1"
        assert ssh.run(["printf", "%s|", *odd]).out == "".join(f"{word}|" for word in odd)
        ran = ssh.run(["sh", "-c", "echo out; echo err >&2; exit 3"], check=False)
        assert (ran.code, ran.out, ran.err) == (3, "out\n", "err\n")
        with pytest.raises(StepFailed, match="ended with 3"):
            ssh.run(["sh", "-c", "exit 3"])
        large = ssh.run(["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x; head -c 300000 /dev/zero >&2"])
        assert (len(large.out), len(large.err)) == (3_000_000, 300_000)
        assert b"".join(ssh.stream(["echo", "stream"])) == b"stream\n"
        with pytest.raises(StepFailed, match="no answer within"):
            ssh.run(["sleep", "3"], limit_s=0.2)
    assert said == []


def test_a_key_that_is_refused_is_tried_once_and_its_mode_is_named(
    target: Target, server: Server, host_key: Path, said: list[str], tmp_path: Path
) -> None:
    other = key_file(tmp_path / "other")
    other.chmod(0o644)
    wrong = Target(target.host, target.port, "root", other, 5.0)
    with (
        pytest.raises(SshRefused, match=r"publickey.*mode is 0644.*chmod 600"),
        Ssh(wrong, public(host_key), said.append),
    ):
        pass
    assert (server.connections, said) == (1, [])


def test_another_host_key_than_the_pinned_one_ends_it_before_anything_is_sent(
    target: Target, host_key: Path, said: list[str], tmp_path: Path
) -> None:
    assert shown_key(target, [], said.append) == public(host_key)
    with pytest.raises(HostKeyRefused, match="another one is pinned"):
        Ssh(target, public(key_file(tmp_path / "pinned")), said.append).__enter__()


def test_what_is_no_ssh_server_and_what_is_not_there_are_told_apart(said: list[str], key: Path, host_key: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def rubbish() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n" * 200)

        thread = threading.Thread(target=rubbish)
        thread.start()
        with pytest.raises(SshUnreachable, match="does not speak SSH"):
            shown_key(Target("127.0.0.1", port, "root", key, 2.0), [], said.append)
        thread.join(10)
    with pytest.raises(SshUnreachable, match="3 tries"):
        shown_key(Target("127.0.0.1", port, "root", key, 2.0), [], said.append)
    assert [line.rpartition(", ")[2] for line in said] == [f"try {n} of 3: connection refused" for n in (1, 2, 3)]
    with pytest.raises(SshUnreachable, match="has no address"):
        shown_key(Target("no-such-host.invalid", 22, "root", key, 2.0), [], said.append)


def check_of(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


@pytest.mark.parametrize(("took_s", "hint"), [(0.02, ""), (0.25, "look at the network")])
def test_the_preflight_is_facts(target: Target, host_key: Path, said: list[str], took_s: float, hint: str) -> None:
    moments = iter([0.0, took_s])
    clock: Callable[[], float] = lambda: next(moments)  # noqa: E731
    with Ssh(target, public(host_key), said.append) as ssh:
        found = preflight.look(ssh, "far", clock)
    assert found.good
    assert check_of(found.checks, "echo").found == "'test'"
    latency = check_of(found.checks, "latency")
    assert latency.found.startswith(f"{took_s * 1000:.1f} ms")
    assert hint in latency.hint
    assert "rbee node install far" in check_of(found.checks, "package").hint
    assert found.hive_version == ""
