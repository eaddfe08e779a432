"""Listening sockets: inherited from systemd (sd_listen_fds(3)) or bound here."""

import errno
import ipaddress
import logging
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

from rbee.wire.auth import TokenVerifier
from rbee.wire.errors import ConfigError
from rbee.wire.log import log

LOGGER = logging.getLogger(__name__)
LISTEN_VARIABLES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
LEAST_PORT = 1024
_FIRST_FD = 3


def inherited() -> list[socket.socket]:
    """The sockets that systemd passed to this process; the variables are removed from the environment.

    Their order differs between releases of systemd: tell them apart by address family.
    """
    count = os.environ.get("LISTEN_FDS", "0")
    ours = os.environ.get("LISTEN_PID") == str(os.getpid())
    for name in LISTEN_VARIABLES:
        os.environ.pop(name, None)
    if not ours or not count.isdigit():
        return []
    sockets = []
    for descriptor in range(_FIRST_FD, _FIRST_FD + int(count)):
        os.set_inheritable(descriptor, False)
        bound = socket.socket(fileno=descriptor)
        bound.setblocking(False)
        sockets.append(bound)
    return sockets


def bind_tcp(host: str, port: int) -> socket.socket:
    """A TCP socket bound to an address (port 0: a free one); raises ConfigError that says what is in the way.

    The ports below 1024 are the system's own: only its init binds them, and hands them over.
    """
    if 0 < port < LEAST_PORT:
        raise ConfigError(
            f"port {port} is one of the system's own: use one of {LEAST_PORT} to 65535, or a socket unit for it",
            details={"field": "listen.port"},
        )
    try:
        return _bind_tcp(host, port)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}: free the port or configure another"
        ) from None


def bind_tcp_range(host: str, first: int, last: int) -> tuple[socket.socket, list[int]]:
    """The first free port of a range, both ends included, and the ports that were taken; ConfigError when none is."""
    taken: list[int] = []
    for port in range(first, last + 1):
        try:
            return _bind_tcp(host, port), taken
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}") from None
            taken.append(port)
    raise ConfigError(f"every port from {first} to {last} is taken on {host}: free one or widen the range")


def _bind_tcp(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        # listening at once makes a second bind fail here and now, not at its listen()
        bound.listen(1024)
    except OSError:
        bound.close()
        raise
    bound.setblocking(False)
    return bound


def bind_unix(path: Path, mode: int = 0o666) -> socket.socket:
    """A Unix socket at ``path``, in place of a stale one; anybody may connect, the peer's identity decides.

    Raises ConfigError where the folder is missing or not writable, or another process listens there.
    """
    _remove_stale(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        bound.bind(str(path))
        path.chmod(mode)
        bound.listen(1024)
    except OSError as error:
        bound.close()
        raise ConfigError(f"{path}: cannot listen there: {error.strerror}: check the folder's owner") from None
    bound.setblocking(False)
    return bound


def _remove_stale(path: Path) -> None:
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except (BlockingIOError, TimeoutError):
            pass  # somebody listens there and is behind with accepting
        except OSError as error:
            raise ConfigError(f"{path}: cannot be looked at: {error.strerror}: check its owner") from None
    raise ConfigError(f"{path}: another process listens there: stop it first")


def tcp_address(sockets: Sequence[socket.socket]) -> tuple[str, int] | None:
    """Host and port of the first TCP socket, or None."""
    for bound in sockets:
        if bound.family in (socket.AF_INET, socket.AF_INET6):
            host, port = bound.getsockname()[:2]
            return host, port
    return None


def is_loopback(bound: socket.socket) -> bool:
    """Whether a listening socket can be reached from this machine only."""
    if bound.family == socket.AF_UNIX:
        return True
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback


def encrypted_for_others(
    sockets: Sequence[socket.socket], make: Callable[[], ssl.SSLContext] | None
) -> Callable[[socket.socket], ssl.SSLContext | None]:
    """By which context each of ``sockets`` is served: TLS where other machines reach it, if ``make`` makes any."""
    needed = make is not None and not all(is_loopback(bound) for bound in sockets)
    context = make() if make is not None and needed else None
    return lambda bound: None if is_loopback(bound) else context


def refuse_public_without_token(sockets: Sequence[socket.socket], verifier: TokenVerifier) -> None:
    """Raise ConfigError when one of ``sockets`` is not loopback and no token is configured.

    On loopback alone that is the development mode, which is said once.
    """
    if not verifier.empty:
        return
    if not all(is_loopback(bound) for bound in sockets):
        raise ConfigError(
            "a public address without a token: anybody could use this daemon: "
            "configure its token ('rbee credentials init') or listen on 127.0.0.1"
        )
    log(LOGGER, logging.WARNING, "development mode: no token is configured, every caller on this machine is trusted")
