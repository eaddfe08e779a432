"""What the host's own apt configuration says about where Debian comes from."""

import re
import subprocess
from pathlib import Path

from tests.machines.testbed.errors import TestbedError

_NETWORK_OPTION = re.compile(r'^(Acquire::(?:[\w-]+::)*(?:Proxy|CaInfo|CaPath|Verify-Peer)\S*) "(.+)";$', re.I)


def codename() -> str:
    """The host's release name, from /etc/os-release."""
    text = Path("/etc/os-release").read_text()
    found = re.search(r'^VERSION_CODENAME="?(\w+)"?$', text, re.M)
    if not found:
        raise TestbedError("/etc/os-release has no VERSION_CODENAME: the testbed runs on a Debian host")
    return found[1]


def _one_line_entries(text: str) -> list[tuple[str, str]]:
    lines = re.findall(r"^deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+.*\bmain\b", text, re.M)
    return [(uri, suite) for uri, suite in lines]


def _deb822_entries(text: str) -> list[tuple[str, str]]:
    entries = []
    for stanza in re.split(r"\n\s*\n", re.sub(r"^#.*\n?", "", text, flags=re.M)):
        fields = {key.lower(): value.split() for key, value in re.findall(r"^([\w-]+):[ \t]*(.*)$", stanza, re.M)}
        if "deb" in fields.get("types", []) and "main" in fields.get("components", []):
            entries += [(uri, suite) for uri in fields.get("uris", []) for suite in fields.get("suites", [])]
    return entries


def mirror() -> str:
    """The address the host itself gets its release from.

    Raises:
        TestbedError: no apt source names the host's release.
    """
    folder = Path("/etc/apt")
    entries: list[tuple[str, str]] = []
    for path in [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]:
        if path.is_file():
            read = _deb822_entries if path.suffix == ".sources" else _one_line_entries
            entries += read(path.read_text())
    host = codename()
    for uri, suite in entries:
        if suite == host:
            return uri
    raise TestbedError(f"no apt source in /etc/apt names {host} main: add one, then run the tests again")


def network_options() -> list[str]:
    """The host's proxy and certificate settings as apt option lines, for apt runs in other trees."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    found = (_NETWORK_OPTION.match(line) for line in dump.splitlines())
    return [f'{match[1]} "{match[2]}"' for match in found if match]
