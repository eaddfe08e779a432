"""Secrets from files and systemd credentials (systemd.exec(5), CREDENTIALS), refused when others could read them."""

import os
import re
import stat
from pathlib import Path

from rbee.wire.auth import Secret
from rbee.wire.errors import ConfigError

CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"
_ACCEPTED_MODES = (0o600, 0o400)
_MOST_BYTES = 4096
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def find_secret(name: str, configured: Path | None) -> Secret | None:
    """The secret ``name``: from the configured file, else from the unit's credentials, else None.

    Raises ConfigError for a file that is configured and missing, readable by others, empty, or of several lines.
    """
    if configured is not None:
        return load_secret(configured)
    folder = os.environ.get(CREDENTIALS_VARIABLE)
    if folder is None:
        return None
    path = Path(folder) / name
    return load_secret(path) if path.exists() else None


def find_named(prefix: str) -> dict[str, Secret]:
    """The unit's credentials whose id begins with ``prefix``, by the rest of it: letters, digits and ``._-``.

    Raises ConfigError as :func:`load_secret`, and for another name.
    """
    folder = os.environ.get(CREDENTIALS_VARIABLE)
    if folder is None:
        return {}
    found = sorted(path for path in Path(folder).glob(f"{prefix}*") if path.name != prefix)
    odd = next((path.name for path in found if not _NAME.fullmatch(path.name.removeprefix(prefix))), None)
    if odd is not None:
        raise ConfigError(f"the credential {odd!r}: behind {prefix!r} expected is a name of letters, digits and ._-")
    return {path.name.removeprefix(prefix): load_secret(path) for path in found}


def load_secret(path: Path) -> Secret:
    """Read one secret: mode 0600 or 0400, one line, not empty, the trailing newline left out.

    Raises ConfigError whose sentence names the path only.
    """
    try:
        with path.open("rb") as file:
            _check_mode(path, stat.S_IMODE(os.fstat(file.fileno()).st_mode))
            data = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: the secret is missing: 'rbee credentials init' makes it") from None
    except OSError as error:
        raise ConfigError(f"{path}: the secret cannot be read: {error.strerror}: check its owner") from None
    return Secret(_one_line(path, data))


def _check_mode(path: Path, mode: int) -> None:
    if mode in _ACCEPTED_MODES or _is_credential(path, mode):
        return
    raise ConfigError(f"{path}: mode {mode:04o} found, 0600 or 0400 expected: run 'chmod 600' on it")


def _is_credential(path: Path, mode: int) -> bool:
    # systemd makes a credential 0400 for root and grants a service's own user by an ACL, whose mask shows as 0440
    folder = os.environ.get(CREDENTIALS_VARIABLE)
    return folder is not None and path.parent == Path(folder) and mode == 0o440


def _one_line(path: Path, data: bytes) -> str:
    if len(data) > _MOST_BYTES:
        raise ConfigError(f"{path}: the secret is over {_MOST_BYTES} bytes: this is no token of ours")
    try:
        text = data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: the secret is not UTF-8 text: write one line of text") from None
    if not text.strip():
        raise ConfigError(f"{path}: the secret is empty: write one line of text")
    if "\n" in text or "\r" in text:
        raise ConfigError(f"{path}: the secret has more than one line: write exactly one")
    if any(not character.isprintable() for character in text) or text != text.strip():
        raise ConfigError(f"{path}: the secret has white space at an end, or a control character: write it anew")
    return text
