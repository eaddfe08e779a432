"""The queen's side of mutual TLS: her authority, her listener for nodes, and a certificate of hers that is renewed."""

import asyncio
import datetime
import logging
import socket
import ssl
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rbee.host.addresses import address_of, is_here
from rbee.host.sockets import bind_tcp
from rbee.queen.config import QueenConfig
from rbee.wire.errors import RbeeError, StorageUnavailable
from rbee.wire.log import ALERT, log
from rbee.wire.tls import client_context, load_identity, server_context

if TYPE_CHECKING:
    from rbee.queen.nodes.authority import Authority, Certificate

LOGGER = logging.getLogger(__name__)
_LONGEST_SLEEP_S = 86_400.0
_AGAIN_S = 60.0


class Fleet:
    """``client`` is the context of every connection that the queen opens to a node.

    She listens for nodes on ``fleet.port`` where others can reach her: while ``public_url`` is a loopback address there
    are no other machines, and no listener.
    """

    def __init__(self, config: QueenConfig, public_url: str) -> None:
        self._settings = config.fleet
        self._host = urlsplit(public_url).hostname or ""
        self._folder = Path(config.state_dir) / "queen" / "authority"
        self._opened: Authority | None = None
        self._socket: socket.socket | None = None
        self._server: ssl.SSLContext | None = None
        self.client = client_context()

    def listen(self, public_url: str) -> list[socket.socket]:
        """Bind the listener for nodes, if there is to be one; raises ConfigError."""
        address = address_of(public_url)
        if address is not None and address.is_loopback and self._settings.host is None:
            return []
        every = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104 - nobody gets in without a certificate
        host = self._settings.host or (str(address) if address is not None and is_here(address) else every)
        self._socket = bind_tcp(host, self._settings.port)
        return [self._socket]

    def open(self) -> None:
        """Make or read the authority and the queen's certificate. Blocking; raises StorageUnavailable, ConfigError."""
        # imported where it is used: a queen without nodes does not pay its memory
        from rbee.queen.nodes.authority import Authority

        now = _now()
        self._opened = Authority(self._folder)
        self._authority.open(now)
        self._authority.certify_queen(self._names(), self._life, now)
        load_identity(self.client, self._authority.identity)
        self._server = server_context(self._authority.identity)

    def context_of(self, bound: socket.socket) -> ssl.SSLContext | None:
        """By what a listening socket is served: TLS on the one for nodes."""
        return self._server if bound is self._socket else None

    @property
    def _authority(self) -> "Authority":
        if self._opened is None:
            raise StorageUnavailable("the queen's certificate authority is not open: look at her log")
        return self._opened

    @property
    def url(self) -> str | None:
        """Where nodes with a certificate report; None while there is no listener for them."""
        if self._socket is None:
            return None
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"https://{host}:{self._socket.getsockname()[1]}"

    @property
    def certificate(self) -> str:
        """The authority's certificate (PEM), which is no secret."""
        return self._authority.certificate

    def certify(self, request: str, name: str, addresses: list[str]) -> "Certificate":
        """A certificate for a node's key; raises InvalidRequest, StorageUnavailable."""
        log(LOGGER, logging.INFO, "certificate made for a node", node=name, days=self._settings.certificate_days)
        return self._authority.certify(request, name, addresses, self._life, _now())

    def is_good(self, certificate: str, name: str, addresses: list[str]) -> bool:
        """Whether a node's certificate is ours, fits it, and is not due for renewal."""
        return self._authority.is_good(certificate, name, addresses, _now())

    @property
    def revoked(self) -> tuple[str, str] | None:
        """The list of revoked certificates (PEM) and its digest; None while there is no authority."""
        if self._opened is None:
            return None
        revocations = self._opened.revocations
        return revocations.pem, revocations.digest

    def is_revoked(self, serial: int) -> bool:
        """Whether that certificate counts no longer."""
        return self._opened is not None and serial in self._opened.revocations

    async def revoke(self, serials: Collection[int]) -> None:
        """Let certificates of nodes count no longer, here at once; raises StorageUnavailable."""
        if self._opened is None or not serials:
            return
        await asyncio.to_thread(self._opened.revoke, serials, _now())
        load_identity(self.client, self._opened.identity)
        log(LOGGER, logging.INFO, "certificates were revoked", certificates=len(serials))

    async def keep_certificate(self) -> None:
        """Renew the queen's own certificate before it ends, for ever."""
        from rbee.host.identity import life_of

        identity = self._authority.identity
        while True:
            try:
                due_s = life_of(identity.certificate).renewal_in_s(_now())
                if due_s <= 0:
                    await asyncio.to_thread(self._authority.certify_queen, self._names(), self._life, _now())
                    load_identity(self.client, identity)
                    log(LOGGER, logging.INFO, "the queen's certificate was renewed")
                    continue
            except RbeeError as error:
                log(LOGGER, ALERT, "the queen's certificate cannot be renewed", why=error.message)
                due_s = _AGAIN_S
            await asyncio.sleep(min(due_s, _LONGEST_SLEEP_S))

    @property
    def _life(self) -> datetime.timedelta:
        return datetime.timedelta(days=self._settings.certificate_days)

    def _names(self) -> list[str]:
        return [name for name in dict.fromkeys((self._host, self._settings.host)) if name]


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
