"""The tokens that the queen presents to nodes: a file of mode 0600 each, read once and then held. Blocking calls."""

import shutil
from pathlib import Path

from rbee.host.credentials import load_secret
from rbee.host.files import put_file
from rbee.wire.auth import Secret
from rbee.wire.errors import StorageUnavailable

HIVE_API, WORKER_API = "hive_api_token", "worker_api_token"
_NEXT = ".next"


class PresentedTokens:
    """Each node's tokens in a folder of its own. A rotated token waits as the next one until the node has it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokens: dict[tuple[str, str], Secret] = {}
        self._next: dict[tuple[str, str], Secret] = {}

    def load(self) -> None:
        """Read every file; raises ConfigError for one that others can read, StorageUnavailable for a broken folder."""
        try:
            files = sorted(self._folder.glob("*/*_token*")) if self._folder.is_dir() else []
        except OSError as error:
            raise _unavailable(error) from error
        for path in files:
            if path.name.removesuffix(_NEXT) in (HIVE_API, WORKER_API):
                held = self._next if path.name.endswith(_NEXT) else self._tokens
                held[path.parent.name, path.name.removesuffix(_NEXT)] = load_secret(path)

    def get(self, node: str, name: str) -> Secret | None:
        """The token of that name that counts now."""
        return self._tokens.get((node, name))

    def waiting(self, node: str, name: str) -> Secret | None:
        """The token of that name that will count once the node has it."""
        return self._next.get((node, name))

    def put(self, node: str, name: str, secret: Secret, *, later: bool) -> None:
        """Keep a token: at once, or as the next one; raises StorageUnavailable."""
        folder = self._folder / node
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            put_file(folder / (name + _NEXT if later else name), secret.reveal() + "\n", 0o600)
        except OSError as error:
            raise _unavailable(error) from error
        (self._next if later else self._tokens)[node, name] = secret

    def promote(self, node: str, *names: str) -> bool:
        """Let the waiting tokens of these names count; whether there were any. Raises StorageUnavailable."""
        waiting = [name for name in names if (node, name) in self._next]
        try:
            for name in waiting:
                path = self._folder / node / name
                path.with_name(name + _NEXT).replace(path)
                self._tokens[node, name] = self._next.pop((node, name))
        except OSError as error:
            raise _unavailable(error) from error
        return bool(waiting)

    def remove(self, node: str) -> None:
        """Forget the tokens of a node; raises StorageUnavailable."""
        try:
            if (self._folder / node).is_dir():
                shutil.rmtree(self._folder / node)
        except OSError as error:
            raise _unavailable(error) from error
        for held in (self._tokens, self._next):
            for key in [key for key in held if key[0] == node]:
                del held[key]


def _unavailable(error: OSError) -> StorageUnavailable:
    return StorageUnavailable(
        f"the tokens of nodes cannot be kept: {error.strerror}: check the disk and the state folder's owner",
        retry_after_s=10,
    )
