"""A server's certificate and key as a TLS context; a renewed certificate is taken up without a restart."""

import ssl
import stat
from pathlib import Path

from rbee.wire.errors import ConfigError


class ServerTls:
    """TLS 1.2 and later with the certificate chain and key of two PEM files.

    Raises ConfigError for a file that is missing, no PEM, or does not fit the other, and a key that others can read.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self.load()

    def load(self) -> None:
        """Read both files (again): connections made from now on get what is in them; raises ConfigError."""
        _check_mode(self._key)
        try:
            self.context.load_cert_chain(self._certificate, self._key)
        except ssl.SSLError as error:
            why = error.reason or "no PEM"
            raise ConfigError(
                f"{self._certificate}: not a certificate with the key {self._key}: {why}: name PEM files of the two"
            ) from None
        except OSError as error:
            raise ConfigError(f"{self._certificate}: cannot be read: {error.strerror}: check path and owner") from None


def _check_mode(key: Path) -> None:
    try:
        mode = stat.S_IMODE(key.stat().st_mode)
    except OSError as error:
        raise ConfigError(f"{key}: the TLS key cannot be read: {error.strerror}: check path and owner") from None
    if mode & 0o007:
        raise ConfigError(f"{key}: mode {mode:04o} lets others at the TLS key: run 'chmod o=' on it")
