"""The HTTP sessions that models come by: one for sources on the web, one for other hives of the fleet."""

import ssl
from dataclasses import dataclass
from typing import Self

import aiohttp

from rbee.wire.http.client import client_session


@dataclass(frozen=True, slots=True)
class Sessions:
    """``web`` takes the environment's proxies; ``hives`` takes none and shows other nodes this node's certificate."""

    web: aiohttp.ClientSession
    hives: aiohttp.ClientSession

    @classmethod
    def opened(cls, tls: ssl.SSLContext | None) -> Self:
        """Sessions to be closed by whoever opens them; ``tls`` is None on a network that is trusted."""
        return cls(client_session(proxies=True), client_session(tls=tls))

    async def close(self) -> None:
        """Close both."""
        await self.web.close()
        await self.hives.close()
