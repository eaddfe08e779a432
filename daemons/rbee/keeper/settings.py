"""Where the daemons are and which token to present: flags over RBEE_CONFIG over the user's file over the system's."""

import grp
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from rbee.host.config import load_config
from rbee.wire.errors import ConfigError

SYSTEM_FILE = Path("/etc/rbee/rbee.yaml")
ADMIN_GROUP = "rbee"

Address = Annotated[str, Meta(pattern=r"^https?://[A-Za-z0-9.\[\]:_-]+/?$", max_length=300)]


class KeeperConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The command's configuration file; each key may be left out."""

    queen_url: Address | None = None
    token_file: str | None = None
    queen_socket: str | None = None
    hive_url: Address | None = None
    hive_token_file: str | None = None
    hive_socket: str | None = None
    node_packages: str | None = None
    node_keyring: str | None = None


@dataclass(frozen=True, slots=True)
class Flags:
    """What was given on the command line before the command's name."""

    config: Path | None = None
    queen_url: str | None = None
    token_file: Path | None = None
    queen_socket: Path | None = None
    hive_socket: Path | None = None
    hive_url: str | None = None
    timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where one daemon is reached: ``socket`` where there is one, else ``url`` with the token of ``token_file``."""

    name: str
    unit: str
    url: str
    socket: Path | None = None
    token_file: Path | None = None

    @property
    def label(self) -> str:
        """What a message calls the address."""
        return str(self.socket) if self.socket else self.url


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that a command needs to talk to its daemons; ``source`` is the file that was read, if any.

    ``node_packages`` is where nodes' packages come from, ``node_keyring`` the file of the key that signs them.
    """

    queen: Place
    hive: Place
    timeout_s: float
    source: Path | None
    node_packages: str | None = None
    node_keyring: str | None = None


def user_file(environment: Mapping[str, str]) -> Path:
    """The user's configuration file: ~/.config/rbee/config.yaml, XDG_CONFIG_HOME respected."""
    return Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "rbee" / "config.yaml"


def state_folder(environment: Mapping[str, str]) -> Path:
    """Where the command keeps what it must not lose: ~/.local/state/rbee, XDG_STATE_HOME respected."""
    return Path(environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "rbee"


def resolve(flags: Flags, environment: Mapping[str, str]) -> Settings:
    """Combine flags, environment and files; raises ConfigError naming the file, the line and the field."""
    config, source = _read(flags, environment)
    queen = _place(
        Place("queen", "rbee-queen", "http://127.0.0.1:8080", Path("/run/rbee/queen.sock")),
        (flags.queen_socket, flags.queen_url, flags.token_file),
        (config.queen_socket, config.queen_url, config.token_file),
    )
    hive = _place(
        Place("hive", "rbee-hive", "http://127.0.0.1:9200", Path("/run/rbee/hive.sock")),
        (flags.hive_socket, flags.hive_url, flags.token_file if flags.hive_url else None),
        (config.hive_socket, config.hive_url, config.hive_token_file),
    )
    return Settings(queen, hive, flags.timeout_s, source, config.node_packages, config.node_keyring)


def _read(flags: Flags, environment: Mapping[str, str]) -> tuple[KeeperConfig, Path | None]:
    named = flags.config or (Path(environment["RBEE_CONFIG"]) if environment.get("RBEE_CONFIG") else None)
    if named is not None:
        if not named.is_file():
            raise ConfigError(
                f"the configuration file {named} is not there: write it (rbee config init), or name another"
            )
        return load_config(KeeperConfig, named, required=True).value, named
    for path in (user_file(environment), SYSTEM_FILE):
        if path.is_file():
            return load_config(KeeperConfig, path, required=True).value, path
    return KeeperConfig(), None


def _place(
    default: Place,
    flags: tuple[Path | None, str | None, Path | None],
    config: tuple[str | None, str | None, str | None],
) -> Place:
    """Decide between socket and URL: a flag settles it, then the file, then what exists on this machine."""
    flag_socket, flag_url, flag_token = flags
    file_socket, file_url, file_token = config
    token_file = flag_token or (Path(file_token).expanduser() if file_token else None)
    url = (flag_url or file_url or default.url).rstrip("/")
    if flag_socket is not None:
        return Place(default.name, default.unit, "http://" + default.name, flag_socket)
    if flag_url is not None or (file_url is not None and file_socket is None):
        return Place(default.name, default.unit, url, None, token_file)
    socket = Path(file_socket) if file_socket else default.socket
    if socket is not None and _usable(socket, has_token=token_file is not None):
        return Place(default.name, default.unit, "http://" + default.name, socket)
    return Place(default.name, default.unit, url, None, token_file)


def _usable(socket: Path, *, has_token: bool) -> bool:
    """Whether to go by ``socket``: it is there, and we are an administrator or have no token to go by URL."""
    try:
        owner = socket.stat().st_uid
    except OSError:
        return False
    return not has_token or os.geteuid() in (0, owner) or _in_admin_group()


def _in_admin_group() -> bool:
    try:
        return grp.getgrnam(ADMIN_GROUP).gr_gid in (*os.getgroups(), os.getegid())
    except KeyError:
        return False
