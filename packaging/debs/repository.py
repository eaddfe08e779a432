"""The folder that apt installs from: packages, their index for each release, and signatures."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

from tests.machines.testbed.errors import TestbedError
from tests.machines.testbed.trees import Release

from debs import roots

KEYRING = "rbee-archive-keyring.gpg"
_IDENTITY = "rbee packages"


def add(folder: Path, release: Release, debs: list[Path], sign_key: Path | None) -> None:
    """Put the release's packages in place of those that ``folder`` had for it, and sign their index.

    Without ``sign_key`` (an exported secret key) the folder's own key is used, made at the first call and kept beside
    the user's configuration, so that machines that trust the folder go on doing so.

    Raises:
        TestbedError: the index could not be made or signed.
    """
    pool = folder / "pool" / release
    dist = folder / "dists" / release
    for stale in (pool, dist):
        shutil.rmtree(stale, ignore_errors=True)
    index = dist / "main/binary-amd64"
    pool.mkdir(parents=True)
    index.mkdir(parents=True)
    for deb in debs:
        shutil.copy(deb, pool)
    (index / "Packages").write_text(_packages(folder, release))
    _tell(["gzip", "--keep", "--no-name", index / "Packages"])
    _write_release(dist, release)
    with _keyring(sign_key) as home:
        gpg: list[str | Path] = ["gpg", "--homedir", home, "--batch", "--yes", "--quiet"]
        _tell([*gpg, "--clearsign", "--output", dist / "InRelease", dist / "Release"])
        _tell([*gpg, "--detach-sign", "--armor", "--output", dist / "Release.gpg", dist / "Release"])
        _tell([*gpg, "--output", folder / KEYRING, "--export"])


def _packages(folder: Path, release: Release) -> str:
    # apt-ftparchive of the build root: the machine that builds needs no tool of apt's.
    script = 'mount --bind "$1" "$2/build" && exec chroot "$2" sh -c "cd /build && apt-ftparchive packages pool/$3"'
    command: list[str | Path] = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", script, "sh"]
    return _tell([*command, folder.resolve(), roots.root(release), release])


def _write_release(dist: Path, release: Release) -> None:
    now = format_datetime(datetime.now(UTC).replace(tzinfo=UTC), usegmt=True)
    lines = ["Origin: rbee", "Label: rbee", f"Suite: {release}", f"Codename: {release}", f"Date: {now}"]
    lines += ["Architectures: amd64", "Components: main", "Description: rbee, private inference on bare metal"]
    lines += ["Acquire-By-Hash: no", "SHA256:"]
    for path in sorted(dist.rglob("Packages*")):
        data = path.read_bytes()
        lines.append(f" {hashlib.sha256(data).hexdigest()} {len(data)} {path.relative_to(dist)}")
    (dist / "Release").write_text("\n".join(lines) + "\n")


@contextmanager
def _keyring(sign_key: Path | None) -> Iterator[Path]:
    """A GnuPG home with one secret key; gpg's agent is ended afterwards."""
    kept = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "rbee/archive-key"
    with tempfile.TemporaryDirectory(prefix="rbee-gnupg-") as passing:
        home = kept if sign_key is None else Path(passing)
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        gpg: list[str | Path] = ["gpg", "--homedir", home, "--batch", "--quiet"]
        try:
            if sign_key is not None:
                _tell([*gpg, "--import", sign_key])
            elif not _tell([*gpg, "--list-secret-keys"]).strip():
                _tell([*gpg, "--passphrase", "", "--quick-generate-key", _IDENTITY, "ed25519", "sign", "never"])
            yield home
        finally:
            subprocess.run(["gpgconf", "--homedir", home, "--kill", "gpg-agent"], check=False, capture_output=True)


def _tell(argv: list[str | Path]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise TestbedError(f"{argv[0]} failed ({done.returncode}): {done.stderr[-2000:]}")
    return done.stdout
