"""A machine's certificate: its key and the request for it, and how long it still counts."""

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from rbee.wire.errors import ConfigError

RENEW_AT = 2 / 3
"""The part of a certificate's life after which it is renewed."""


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh private key (P-256)."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """The key as PEM (PKCS #8), not encrypted: it belongs into a file that its owner alone reads."""
    forms = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(*forms).decode()


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key of a PEM file; raises ConfigError."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: the private key cannot be read: {type(error).__name__}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path}: the private key is of another kind than rbee makes")
    return key


def request_for(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    """A certificate signing request (PKCS #10, PEM) of the key; what the certificate is for, the queen decides."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


@dataclass(frozen=True, slots=True)
class Life:
    """When a certificate counts."""

    begins: datetime.datetime
    ends: datetime.datetime

    def renewal_in_s(self, now: datetime.datetime) -> float:
        """Seconds until its renewal is due, negative once it is."""
        return (self.begins + (self.ends - self.begins) * RENEW_AT - now).total_seconds()


def life_of(certificate: Path) -> Life:
    """When the certificate of a PEM file counts; raises ConfigError."""
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{certificate}: the certificate cannot be read: {type(error).__name__}") from None
    return Life(found.not_valid_before_utc, found.not_valid_after_utc)
