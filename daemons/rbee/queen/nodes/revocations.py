"""Certificates of nodes that count no longer: a list signed by the queen's authority (RFC 5280, section 5).

Blocking calls. Whoever verifies a certificate of the authority has the list beside it, and TLS itself holds peers
against it. List and entries end with the authority: the queen hands each new list to the nodes, and a node that she
cannot reach keeps the one that it has.
"""

import datetime
import hashlib
from collections.abc import Collection
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from rbee.host.files import put_file
from rbee.wire.errors import ConfigError

SKEW = datetime.timedelta(minutes=5)
"""How far a node's clock may be behind the queen's."""


class Revocations:
    """The list in ``file``; ``pem`` is what nodes get, ``digest`` its SHA-256 in hex, by which they name theirs."""

    def __init__(self, file: Path, key: ec.EllipticCurvePrivateKey, authority: x509.Certificate) -> None:
        self._file = file
        self._key = key
        self._authority = authority
        self._revoked: dict[int, datetime.datetime] = {}
        self._number = 0
        self._latest: datetime.datetime | None = None
        self.pem = ""

    def open(self, now: datetime.datetime) -> None:
        """Read the list, or make an empty one. Raises OSError, and ConfigError for a file that is none of ours."""
        if not self._file.exists():
            self._issue(now)
            return
        self.pem = self._file.read_text()
        try:
            found = x509.load_pem_x509_crl(self.pem.encode())
            number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        except (ValueError, x509.ExtensionNotFound):
            number = None
        if number is None or not found.is_signature_valid(self._authority.public_key()):  # type: ignore[arg-type]
            raise ConfigError(
                f"{self._file}: the list of revoked certificates is damaged: move it away, and run 'rbee node rotate' "
                "for each node"
            )
        self._number, self._latest = number, found.last_update_utc
        self._revoked = {one.serial_number: one.revocation_date_utc for one in found}

    def __contains__(self, serial: int) -> bool:
        return serial in self._revoked

    @property
    def digest(self) -> str:
        """The SHA-256 of the list in hex."""
        return hashlib.sha256(self.pem.encode()).hexdigest()

    def add(self, serials: Collection[int], now: datetime.datetime) -> None:
        """Let certificates count no longer; raises OSError, and then changes nothing."""
        before = self._revoked
        self._revoked = dict.fromkeys(serials, now) | before
        try:
            self._issue(now)
        except OSError:
            self._revoked = before
            raise

    def _issue(self, now: datetime.datetime) -> None:
        # whoever has two lists takes the one that was issued later, by the second
        issued = (now - SKEW).replace(microsecond=0)
        if self._latest is not None:
            issued = max(issued, self._latest + datetime.timedelta(seconds=1))
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._authority.subject)
            .last_update(issued)
            .next_update(self._authority.not_valid_after_utc)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.CRLNumber(self._number + 1), critical=False)
        )
        for serial, at in self._revoked.items():
            one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at).build()
            builder = builder.add_revoked_certificate(one)
        pem = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
        put_file(self._file, pem, 0o644)
        self.pem, self._number, self._latest = pem, self._number + 1, issued
