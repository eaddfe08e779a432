"""The queen's TCP address with TLS: both ways of a request, a renewed certificate, and what is refused."""

import datetime
import ipaddress
import ssl
import time
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.unit.queen.conftest import API_TOKEN, configuration, running
from tests.unit.queen.partners import MODEL, WorkerPartner, report

from rbee.host.tls import ServerTls
from rbee.wire.errors import ConfigError


def make(folder: Path, name: str = "queen") -> dict[str, str]:
    """A certificate for 127.0.0.1 that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = {"certificate": folder / "tls.pem", "key": folder / "tls.key"}
    paths["certificate"].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths["key"].touch(mode=0o600)
    paths["key"].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return {kind: str(path) for kind, path in paths.items()}


def trusting(files: dict[str, str]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=files["certificate"])


async def test_requests_by_tls_and_a_renewed_certificate(tmp_path: Path, worker: WorkerPartner) -> None:
    files = make(tmp_path)
    before = trusting(files)
    headers = {"Authorization": f"Bearer {API_TOKEN}"}
    async with running(configuration(tmp_path, tls=files)) as queen, aiohttp.ClientSession() as client:
        url = queen.url.replace("http:", "https:")
        queen.core.registry.register(report(url=worker.url), time.monotonic())
        for stream in (False, True):
            body = {"model": MODEL, "stream": stream}
            async with client.post(url + "/v1/chat/completions", json=body, headers=headers, ssl=before) as response:
                assert response.status == 200
                assert response.headers["X-Rbee-Worker"] == "bee/w"
                assert await response.read()
        assert queen.core.upstreams.take(worker.url) is not None, "neither went the long way"
        with pytest.raises(aiohttp.ClientError):
            async with client.get(queen.url + "/health"):
                pass
        after = trusting(make(tmp_path, "renewed"))
        await queen.daemon.reload()
        async with client.get(url + "/health", ssl=after) as response:
            assert response.status == 200


def test_what_is_refused_at_the_start(tmp_path: Path) -> None:
    files = make(tmp_path)
    certificate, key = Path(files["certificate"]), Path(files["key"])
    ServerTls(certificate, key)
    with pytest.raises(ConfigError, match="cannot be read"):
        ServerTls(tmp_path / "none.pem", key)
    with pytest.raises(ConfigError, match="key cannot be read"):
        ServerTls(certificate, tmp_path / "none.key")
    with pytest.raises(ConfigError, match="not a certificate with the key"):
        ServerTls(key, key)
    key.chmod(0o604)
    with pytest.raises(ConfigError, match="lets others"):
        ServerTls(certificate, key)
