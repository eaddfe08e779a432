"""Renews this node's certificate before it ends, over the connection that the certificate itself makes."""

import asyncio
import datetime
import logging
import ssl
from collections.abc import Callable

import aiohttp

from rbee.host.files import put_file
from rbee.host.identity import life_of, load_key, request_for
from rbee.wire.errors import RbeeError
from rbee.wire.http.client import fetch_json
from rbee.wire.log import ALERT, log
from rbee.wire.nodes import Certified, CertifyRequest
from rbee.wire.tls import load_identity
from rbee.wire.tls_files import Identity

LOGGER = logging.getLogger(__name__)
ASK_LIMIT_S = 10.0
AGAIN_S = 60.0
_LONGEST_SLEEP_S = 86_400.0
_FILE_MODE = 0o644


async def keep_certificate(
    identity: Identity,
    hive_id: str,
    queen_url: str,
    session: aiohttp.ClientSession,
    client: ssl.SSLContext,
    show_end: Callable[[float], None] = lambda unix: None,
) -> None:
    """Wait until the certificate is due, renew it, for ever; a failure is an ALERT and tried again each minute.

    ``client`` is the context of ``session``. Servers of this machine take the new file at their next handshake.
    ``show_end`` is told when the present one ends, in seconds since the epoch.
    """
    told = False
    while True:
        try:
            life = life_of(identity.certificate)
            show_end(life.ends.timestamp())
            due_s = life.renewal_in_s(datetime.datetime.now(datetime.UTC))
            if due_s <= 0:
                await _renew(identity, hive_id, queen_url, session)
                load_identity(client, identity)
                log(LOGGER, logging.INFO, "this node's certificate was renewed")
                told = False
                continue
        except (RbeeError, OSError) as error:
            why = error.message if isinstance(error, RbeeError) else error.strerror
            log(LOGGER, logging.WARNING if told else ALERT, "this node's certificate cannot be renewed", why=why)
            told, due_s = True, AGAIN_S
        await asyncio.sleep(min(due_s, _LONGEST_SLEEP_S))


async def _renew(identity: Identity, hive_id: str, queen_url: str, session: aiohttp.ClientSession) -> None:
    body = CertifyRequest(hive_id, request_for(load_key(identity.key), hive_id))
    url = f"{queen_url}/v2/hives/{hive_id}/certificate"
    answer = await fetch_json(session, "POST", url, Certified, body=body, timeout_s=ASK_LIMIT_S)
    await asyncio.to_thread(put_file, identity.certificate, answer.certificate, _FILE_MODE)
