"""Mutual TLS between machines: every side shows a certificate of the queen's own authority, and checks the other's.

The identity of a daemon is a private key and a certificate in two PEM files. A certificate that was renewed on disk is
used from the next handshake on, and so is a new list of revoked ones: nothing has to be restarted or told.
"""

import contextlib
import logging
import ssl

from aiohttp import web

from rbee.wire.errors import ConfigError
from rbee.wire.log import ALERT, log
from rbee.wire.tls_files import Identity

LOGGER = logging.getLogger(__name__)
HANDSHAKE_LIMIT_S = 10.0


class _AlertingObject(ssl.SSLObject):
    """A server's side of a connection that tells a person of a peer whose certificate does not count."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLCertVerificationError as error:
            log(LOGGER, ALERT, "a peer's certificate was refused", why=error.verify_message)
            raise


def server_context(identity: Identity) -> ssl.SSLContext:
    """What a server shows and asks for: only peers with a certificate of the same authority get in.

    Raises ConfigError for files that are missing, damaged, or do not fit.
    """
    context = _Renewing(ssl.PROTOCOL_TLS_SERVER)
    context.latest = _Latest(identity, _server(identity))
    return context


def client_context() -> ssl.SSLContext:
    """For a client: it trusts nobody and shows nothing until :func:`load_identity`."""
    return _empty(ssl.PROTOCOL_TLS_CLIENT)


def load_identity(context: ssl.SSLContext, identity: Identity) -> None:
    """Trust the authority, and show the certificate on the connections made from now on; raises ConfigError.

    Where the authority gave a list of revoked certificates, peers are held against it.
    """
    try:
        context.load_verify_locations(identity.authority)
        if identity.revoked.exists():
            context.load_verify_locations(identity.revoked)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        context.load_cert_chain(identity.certificate, identity.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{identity.certificate}: the certificate, its key and {identity.authority} cannot be used: "
            f"{error.strerror or type(error).__name__}: 'rbee node install' writes them anew"
        ) from None


class _Renewing(ssl.SSLContext):
    """Begins each connection by the latest context: what a connection checks is settled when it begins."""

    latest: "_Latest"

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return self.latest.context().wrap_bio(incoming, outgoing, server_side, server_hostname, session)


class _Latest:
    """The context of the files as they are now; while they do not fit together, the one before."""

    def __init__(self, identity: Identity, first: ssl.SSLContext) -> None:
        self._identity = identity
        self._context = first
        self._stamp = identity.stamp()

    def context(self) -> ssl.SSLContext:
        # a look at two inodes for each new connection, and connections are kept
        with contextlib.suppress(OSError, ConfigError):
            stamp = self._identity.stamp()
            if stamp != self._stamp:
                self._context, self._stamp = _server(self._identity), stamp
        return self._context


def _empty(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _server(identity: Identity) -> ssl.SSLContext:
    context = _empty(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = _AlertingObject
    context.num_tickets = 0  # a session that is resumed would skip the look at the peer's certificate
    load_identity(context, identity)
    return context


def peer_name(request: web.Request) -> str | None:
    """The name in the certificate of whoever sent the request; None where it did not come by TLS."""
    certificate = None if request.transport is None else request.transport.get_extra_info("peercert")
    if not certificate:
        return None
    names = [value for part in certificate["subject"] for key, value in part if key == "commonName"]
    return names[0] if names else ""


def peer_serial(request: web.Request) -> tuple[int, float] | None:
    """The serial number of the certificate of whoever sent the request, and when it ends (Unix); None without one."""
    certificate = None if request.transport is None else request.transport.get_extra_info("peercert")
    if not certificate:
        return None
    return int(certificate["serialNumber"], 16), float(ssl.cert_time_to_seconds(certificate["notAfter"]))


def is_encrypted(request: web.Request) -> bool:
    """Whether the request came by TLS."""
    return request.transport is not None and request.transport.get_extra_info("ssl_object") is not None
