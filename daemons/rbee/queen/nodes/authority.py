"""The queen's own certificate authority: it certifies nodes and herself, and nobody else trusts or needs it.

Blocking calls. Keys are P-256; certificates are X.509 v3 (RFC 5280). What a certificate is for comes from the registry
of nodes, never from the request.
"""

import datetime
import ipaddress
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from rbee.host.files import put_file
from rbee.host.identity import RENEW_AT, key_pem, load_key, new_key
from rbee.queen.nodes.revocations import SKEW, Revocations
from rbee.wire.errors import InvalidRequest, StorageUnavailable
from rbee.wire.tls_files import Identity

QUEEN = "rbee queen"
"""The name in the queen's own certificate: no node can have it, for a node's name has no space."""
_AUTHORITY_DAYS = 3650
_MOST_REQUEST = 8192


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that was made: as PEM, its serial number, and when it ends."""

    pem: str
    serial: int
    ends_unix: float


class Authority:
    """A key and a certificate in ``folder``, made at the first call of :meth:`open`; ``certificate`` is PEM."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key: ec.EllipticCurvePrivateKey | None = None
        self._subject: x509.Certificate | None = None
        self._revocations: Revocations | None = None
        self.certificate = ""

    @property
    def identity(self) -> Identity:
        """The queen's own files, once :meth:`certify_queen` has written them."""
        return Identity(self._folder / "authority.pem", self._folder / "queen.pem", self._folder / "queen.key")

    def open(self, now: datetime.datetime) -> None:
        """Read key and certificate, or make them. Raises StorageUnavailable, ConfigError."""
        key_file, file = self._folder / "authority.key", self._folder / "authority.pem"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not file.exists():
                key = new_key()
                put_file(key_file, key_pem(key), 0o600)
                put_file(file, _pem(_self_signed(key, now)), 0o644)
            self.certificate = file.read_text()
            self._subject = x509.load_pem_x509_certificate(self.certificate.encode())
        except OSError as error:
            raise _unavailable(error) from error
        self._key = load_key(key_file)
        self._revocations = Revocations(self.identity.revoked, self._key, self._subject)
        try:
            self._revocations.open(now)
        except OSError as error:
            raise _unavailable(error) from error

    @property
    def revocations(self) -> Revocations:
        """The list of certificates that count no longer; raises StorageUnavailable before :meth:`open`."""
        if self._revocations is None:
            raise StorageUnavailable("the queen's certificate authority is not open: look at her log")
        return self._revocations

    def revoke(self, serials: Collection[int], now: datetime.datetime) -> None:
        """Let certificates count no longer; raises StorageUnavailable, and then changes nothing."""
        try:
            self.revocations.add(serials, now)
        except OSError as error:
            raise _unavailable(error) from error

    def certify(
        self, request: str, name: str, addresses: Sequence[str], life: datetime.timedelta, now: datetime.datetime
    ) -> Certificate:
        """A certificate for the key of a request (PKCS #10, PEM); raises InvalidRequest for one that is none.

        ``addresses`` are IP addresses or host names that it is shown at.
        """
        try:
            if len(request) > _MOST_REQUEST:
                raise ValueError("it is too long")
            asked = x509.load_pem_x509_csr(request.encode())
            key = asked.public_key()
            if not asked.is_signature_valid or not isinstance(key, ec.EllipticCurvePublicKey):
                raise ValueError("it is not signed by a key of the accepted kind")
        except (ValueError, InvalidSignature):
            raise InvalidRequest(
                "the field 'request' is not acceptable: expected a certificate signing request in PEM with a key of "
                "elliptic curve P-256",
                details={"field": "request"},
                param="request",
            ) from None
        signed = self._sign(key, name, addresses, life, now)
        return Certificate(_pem(signed), signed.serial_number, signed.not_valid_after_utc.timestamp())

    def certify_queen(self, addresses: Sequence[str], life: datetime.timedelta, now: datetime.datetime) -> None:
        """Write a certificate and key of the queen's own; raises StorageUnavailable."""
        key = new_key()
        certificate = self._sign(key.public_key(), QUEEN, addresses, life, now)
        try:
            put_file(self.identity.key, key_pem(key), 0o600)
            put_file(self.identity.certificate, _pem(certificate), 0o644)
        except OSError as error:
            raise _unavailable(error) from error

    def is_good(self, certificate: str, name: str, addresses: Sequence[str], now: datetime.datetime) -> bool:
        """Whether a certificate (PEM) is one of ours, for that node at those addresses, and not due for renewal."""
        if self._subject is None or self._revocations is None:
            return False
        try:
            shown = x509.load_pem_x509_certificate(certificate.encode())
            shown.verify_directly_issued_by(self._subject)
            names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return False
        due = shown.not_valid_before_utc + (shown.not_valid_after_utc - shown.not_valid_before_utc) * RENEW_AT
        if shown.serial_number in self._revocations:
            return False
        return shown.subject == _name(name) and list(names) == _names(addresses) and now < due

    def _sign(
        self,
        key: ec.EllipticCurvePublicKey,
        name: str,
        addresses: Sequence[str],
        life: datetime.timedelta,
        now: datetime.datetime,
    ) -> x509.Certificate:
        if self._key is None or self._subject is None:
            raise StorageUnavailable("the queen's certificate authority is not open: look at her log")
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return (
            _builder(name, key, now, life)
            .issuer_name(self._subject.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(_names(addresses)), critical=False)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )


def _self_signed(key: ec.EllipticCurvePrivateKey, now: datetime.datetime) -> x509.Certificate:
    name = f"rbee authority {x509.random_serial_number() >> 128:08x}"
    public = key.public_key()
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    return (
        _builder(name, public, now, datetime.timedelta(days=_AUTHORITY_DAYS))
        .issuer_name(_name(name))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def _builder(
    name: str, key: ec.EllipticCurvePublicKey, now: datetime.datetime, life: datetime.timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - min(SKEW, life / 10))
        .not_valid_after(now + life)
    )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _names(addresses: Sequence[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for address in addresses:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(address)))
        except ValueError:
            found.append(x509.DNSName(address))
    return found


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _unavailable(error: OSError) -> StorageUnavailable:
    return StorageUnavailable(
        f"the queen's certificates cannot be kept: {error.strerror}: check the disk and the state folder's owner",
        retry_after_s=10,
    )
