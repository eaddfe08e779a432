"""What a node's files say: pure texts from what was enrolled, so that a second run finds nothing to change."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from rbee.keeper.failure import CommandFailed

HIVE_YAML, WORKER_YAML = "/etc/rbee/hive.yaml", "/etc/rbee/worker.yaml"
AUTHORITY, CERTIFICATE, KEY = (
    "/etc/rbee/authority.pem",
    "/var/lib/rbee/hive/tls/node.pem",
    "/var/lib/rbee/hive/tls/node.key",
)
TLS_FOLDER = "/var/lib/rbee/hive/tls"
TOKEN_FILES = {
    "hive_callback_token": "/etc/credstore/rbee.hive_callback_token",
    "hive_api_token": "/etc/credstore/rbee.hive_api_token",
    "worker_api_token": "/etc/credstore/rbee.worker_api_token",
}
SOCKET_DROP_IN = "/etc/systemd/system/rbee-hive.socket.d/node.conf"
WORKER_DROP_IN = "/etc/systemd/system/rbee-worker@.service.d/node.conf"
SOURCES = "/etc/apt/sources.list.d/rbee.list"
KEYRING = "/usr/share/keyrings/rbee-archive-keyring.gpg"
DROP_INS = (SOCKET_DROP_IN, WORKER_DROP_IN)
HIVE_PORT = 9200
_BY = "written by 'rbee node install', which writes it again: use another drop-in for changes of your own"


def hive_yaml(
    present: str | None,
    *,
    name: str,
    address: str,
    callback_url: str,
    tls: bool,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """hive.yaml with what makes it a node's, and its operator's ``settings``; every other key stays.

    ``present`` itself where nothing differs. Raises CommandFailed for one that is no mapping.
    """
    wanted: dict[str, Any] = dict(settings or {}) | {
        "hive_id": name,
        "api_url": f"{'https' if tls else 'http'}://{_bracketed(address)}:{HIVE_PORT}",
        "queen": {"callback_url": callback_url},
        "tls": {"authority": AUTHORITY} if tls else {"authority": None},
    }
    return _laid_over(HIVE_YAML, present, wanted)


def unlike(present: str | None, settings: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Each of ``settings`` that hive.yaml has otherwise: its dotted key, what is there (None: nothing), what is wanted.

    Raises CommandFailed for a text that is no mapping.
    """
    return list(_unlike(_known(HIVE_YAML, present), settings, ""))


def _unlike(known: Mapping[str, Any], wanted: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any, Any]]:
    for key, value in wanted.items():
        there = known.get(key)
        if isinstance(value, Mapping):
            yield from _unlike(there if isinstance(there, Mapping) else {}, value, f"{above}{key}.")
        elif key not in known or there != value:
            yield f"{above}{key}", there, value


def worker_yaml(present: str | None, *, address: str, tls: bool) -> str:
    """worker.yaml with where the node's workers listen; every other key stays."""
    wanted = {"listen_host": address, "tls": {"authority": AUTHORITY} if tls else {"authority": None}}
    return _laid_over(WORKER_YAML, present, wanted)


def socket_drop_in(address: str) -> str:
    """The hive's socket on the node's address, beside loopback; bound before the network is up."""
    return f"# {_BY}.\n[Socket]\nListenStream={_bracketed(address)}:{HIVE_PORT}\nFreeBind=yes\n"


def worker_drop_in(addresses: Sequence[str]) -> str:
    """Who may reach the node's workers: the queen, and the node itself."""
    allowed = "".join(f"IPAddressAllow={address}\n" for address in dict.fromkeys(addresses))
    return f"# {_BY}.\n[Service]\n{allowed}"


def _known(path: str, present: str | None) -> dict[str, Any]:
    try:
        known = yaml.safe_load(present or "") or {}
    except yaml.YAMLError:
        known = None
    if not isinstance(known, dict):
        raise CommandFailed(f"{path} on the node is not what it should be: mend it there, then run this again")
    return known


def _laid_over(path: str, present: str | None, wanted: dict[str, Any]) -> str:
    known = _known(path, present)
    merged = _merged(known, wanted)
    if present is not None and merged == known:
        return present
    return f"# Completed by 'rbee node install'.\n{yaml.safe_dump(merged, sort_keys=True)}"


def _merged(known: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    result = dict(known)
    for key, value in wanted.items():
        inner = known.get(key)
        result[key] = _merged(inner, value) if isinstance(value, dict) and isinstance(inner, dict) else value
    return result


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
