"""packaging/build: packages of a release, and a signed repository of them."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.machines.testbed.errors import TestbedError
from tests.machines.testbed.packages import CHECKOUT
from tests.machines.testbed.trees import Release

from debs import build, repository, source

HOW_TO = """{folder} is ready. On a machine with Debian ({release}), as root:

  install -m 0644 {folder}/{keyring} /usr/share/keyrings/
  echo 'deb [signed-by=/usr/share/keyrings/{keyring}] file:{folder} {release} main' > /etc/apt/sources.list.d/rbee.list
  apt update && apt install rbee

(http://HOST/PATH instead of file: where a web server shows the folder.)
"""


def main() -> int:
    """Build; the exit code."""
    options = _options()
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="rbee-debs-") as passing:
            quick = options.quick
            debs = build.build(options.release, Path(passing, "one"), lint=not quick, quick=quick)
            _say(f"built {source.version(options.release)} in {time.monotonic() - started:.0f} s")
            if options.twice:
                again = build.build(options.release, Path(passing, "two"), lint=False, quick=quick)
                different = build.differing(debs, again)
                if different:
                    raise TestbedError(f"a second build gave other bytes: {', '.join(different)}")
                _say("a second build gave the same bytes")
            folder = options.out.resolve()
            repository.add(folder, options.release, debs, options.sign_key)
    except TestbedError as error:
        _say(f"error: {error}")
        return 1
    sys.stdout.write(HOW_TO.format(folder=folder, release=options.release, keyring=repository.KEYRING))
    return 0


def _say(what: str) -> None:
    sys.stderr.write(f"packaging/build: {what}\n")
    sys.stderr.flush()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="packaging/build", description="Build the Debian packages and a repository.")
    parser.add_argument("--release", type=Release, choices=list(Release), required=True, help="for which Debian")
    parser.add_argument("--out", type=Path, default=CHECKOUT / "build/repository", help="the repository's folder")
    parser.add_argument("--sign-key", type=Path, metavar="FILE", help="exported secret key; else one made and kept")
    parser.add_argument("--twice", action="store_true", help="build again and compare every byte")
    parser.add_argument("--quick", action="store_true", help="for tests: without lintian, larger packages")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
