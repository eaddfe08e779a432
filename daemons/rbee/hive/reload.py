"""What a reload of the hive changes at once, and what waits for a restart."""

import aiohttp

from rbee.hive.config import HiveConfig
from rbee.host.credentials import find_secret
from rbee.wire.auth import Secret

_RELOADABLE = frozenset({"limits", "models", "tokens", "log_level", "idle_limit_s", "model_roots", "audit"})


def needing_restart(old: HiveConfig, new: HiveConfig) -> list[str]:
    """The fields that differ and that a reload does not put in force."""
    return [
        name for name in old.__struct_fields__ if name not in _RELOADABLE and getattr(old, name) != getattr(new, name)
    ]


def callback_token(config: HiveConfig) -> Secret | None:
    """The token that the hive presents to the queen; raises ConfigError."""
    file = config.tokens.hive_callback_token
    return find_secret("hive_callback_token", config.paths.config_dir / file if file else None)


def put_bearer(session: aiohttp.ClientSession, token: Secret | None) -> None:
    """Present another token from the next request on, or none."""
    if token is None:
        session.headers.popall("Authorization", None)
    else:
        session.headers["Authorization"] = f"Bearer {token.reveal()}"
