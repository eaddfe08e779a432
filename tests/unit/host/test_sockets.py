"""Listening sockets: inherited ones, taken ports, stale files, and no public address without a token."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rbee.host import sockets
from rbee.wire.auth import Role, Secret, TokenVerifier
from rbee.wire.errors import ConfigError

CHILD = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid()) if sys.argv[1] == "mine" else "1"
from rbee.host.sockets import inherited
found = inherited()
print([bound.family.name for bound in found], [name for name in os.environ if name.startswith("LISTEN")])
print([os.get_inheritable(bound.fileno()) for bound in found])
"""


@pytest.mark.parametrize(("whose", "families"), [("mine", "['AF_INET', 'AF_UNIX']"), ("another", "[]")])
def test_sockets_of_the_manager_are_adopted_when_meant_for_us(tmp_path: Path, whose: str, families: str) -> None:
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        unix.bind(str(tmp_path / "s"))
        unix.listen()

        def place() -> None:
            # numbers 3 and 4 are where a service manager puts them; copies keep either from covering the other
            for number, copy in ((3, os.dup(tcp.fileno())), (4, os.dup(unix.fileno()))):
                os.dup2(copy, number)

        ran = subprocess.run(
            [sys.executable, "-c", CHILD, whose], env={**os.environ, "LISTEN_FDS": "2"}, preexec_fn=place,
            close_fds=False, capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
    first, second = ran.stdout.splitlines()
    assert first == f"{families} []"
    assert "True" not in second


def test_a_taken_port_is_passed_over_in_a_range_and_refused_alone() -> None:
    with sockets.bind_tcp("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        if port == 65535:
            pytest.skip("the system gave the last port of all")
        with pytest.raises(ConfigError, match=f"port {port}"):
            sockets.bind_tcp("127.0.0.1", port)
        with pytest.raises(ConfigError, match="every port"):
            sockets.bind_tcp_range("127.0.0.1", port, port)
        found, passed_over = sockets.bind_tcp_range("127.0.0.1", port, 65535)
        with found:
            assert passed_over[0] == port
            assert sockets.tcp_address([found]) == ("127.0.0.1", port + len(passed_over))


def test_a_stale_socket_file_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    sockets.bind_unix(path).close()
    assert path.is_socket()
    with sockets.bind_unix(path):
        assert path.stat().st_mode & 0o777 == 0o666
        with pytest.raises(ConfigError, match="another process"):
            sockets.bind_unix(path)


def test_a_live_socket_whose_queue_is_full_is_not_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as waiting:
        busy.bind(str(path))
        busy.listen(0)
        with pytest.raises(BlockingIOError):
            while True:
                client = waiting.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(path))
        with pytest.raises(ConfigError, match="another process"):
            sockets.bind_unix(path)
        assert path.is_socket()


@pytest.mark.parametrize(("host", "public"), [("127.0.0.1", False), ("::1", False), ("0.0.0.0", True), ("::", True)])
def test_a_public_address_wants_a_token(host: str, public: bool) -> None:
    with sockets.bind_tcp(host, 0) as bound:
        sockets.refuse_public_without_token([bound], TokenVerifier({Role.API: [Secret("t")]}))
        if public:
            with pytest.raises(ConfigError, match="token"):
                sockets.refuse_public_without_token([bound], TokenVerifier({}))
        else:
            sockets.refuse_public_without_token([bound], TokenVerifier({}))
