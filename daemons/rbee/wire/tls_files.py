"""Where the files of mutual TLS are on a machine, as configurations name them."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import msgspec


@dataclass(frozen=True, slots=True)
class Identity:
    """Files of one side: the authority's certificate, and its own certificate with the key to it (PEM).

    Beside the certificate lies the authority's list of certificates that count no longer, once the queen gave one.
    """

    authority: Path
    certificate: Path
    key: Path

    def stamp(self) -> tuple[int, ...]:
        """What changes when a file is replaced; raises OSError."""
        found = [self.certificate.stat(), self.key.stat()]
        with contextlib.suppress(FileNotFoundError):
            found.append(self.revoked.stat())
        return tuple(number for one in found for number in (one.st_ino, one.st_mtime_ns))

    @property
    def revoked(self) -> Path:
        """The list of revoked certificates, which may be absent."""
        return self.certificate.with_name("revoked.pem")


class TlsFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A node's files; without an authority there is no TLS: one machine, or a network that is trusted."""

    authority: str | None = None
    certificate: str = "/var/lib/rbee/hive/tls/node.pem"
    key: str = "/var/lib/rbee/hive/tls/node.key"

    @property
    def identity(self) -> Identity | None:
        """The files as one, or None where TLS is off."""
        if self.authority is None:
            return None
        return Identity(Path(self.authority), Path(self.certificate), Path(self.key))
