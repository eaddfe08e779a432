"""The list of revoked certificates on a node: handed over by the queen, held against by hive and workers."""

import asyncio
import hashlib
import logging
import ssl

from rbee.host.files import put_file
from rbee.wire.errors import ConfigError
from rbee.wire.log import ALERT, log
from rbee.wire.tls import load_identity
from rbee.wire.tls_files import Identity

LOGGER = logging.getLogger(__name__)
_FILE_MODE = 0o644


class RevokedList:
    """Keeps the list beside the node's certificate; ``client`` is the context of the hive's own connections.

    Servers of this machine take a new list at their next handshake.
    """

    def __init__(self, identity: Identity, client: ssl.SSLContext) -> None:
        self._identity = identity
        self._client = client
        self.digest = ""

    def read(self) -> None:
        """Know the list that is there; one that cannot be read is asked for anew. Blocking."""
        try:
            self.digest = hashlib.sha256(self._identity.revoked.read_bytes()).hexdigest()
        except OSError:
            self.digest = ""

    async def put(self, pem: str) -> None:
        """Put a list of the queen's in force; where that fails a person is told, and the next heartbeat asks again."""
        try:
            await asyncio.to_thread(put_file, self._identity.revoked, pem, _FILE_MODE)
            load_identity(self._client, self._identity)
        except (OSError, ConfigError) as error:
            why = error.message if isinstance(error, ConfigError) else error.strerror
            log(LOGGER, ALERT, "the list of revoked certificates cannot be kept: revoked ones still count", why=why)
            return
        self.digest = hashlib.sha256(pem.encode()).hexdigest()
        log(LOGGER, logging.INFO, "the list of revoked certificates is a new one")
