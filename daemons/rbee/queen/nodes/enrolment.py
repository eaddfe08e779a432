"""Credentials of a node: made at enrolment, a token each way, renewed by rotation, answered once.

The token that a node's hive presents is kept as its hash; those that the queen presents are kept as files.
"""

import asyncio
import logging
import secrets
import time

import msgspec

from rbee.host.addresses import address_of, is_here, parse_address
from rbee.queen.nodes.book import NodeRecord, Nodes
from rbee.queen.nodes.fleet import Fleet
from rbee.queen.nodes.tokens import HIVE_API, WORKER_API, PresentedTokens
from rbee.wire.auth import Secret, digest_of
from rbee.wire.errors import Conflict, StorageUnavailable
from rbee.wire.log import log
from rbee.wire.nodes import CertifyRequest, Enrolment, EnrolRequest, NodeTls, TokenDigests, TokenValues

LOGGER = logging.getLogger(__name__)
_TOKEN_BYTES = 32


class Enrolments:
    """Gives nodes their credentials; one node at a time, so that two commands do not undo one another."""

    def __init__(self, nodes: Nodes, tokens: PresentedTokens, fleet: Fleet, public_url: str) -> None:
        self._nodes = nodes
        self._tokens = tokens
        self._fleet = fleet
        self._public_url = public_url
        self._lock = asyncio.Lock()

    def presented(self, hive_id: str, name: str, shared: Secret | None) -> Secret | None:
        """The token ``name`` that the queen presents to a hive's machine: an enrolled node's own, else ``shared``."""
        return self._tokens.get(hive_id, name) if self._nodes.is_enrolled(hive_id) else shared

    def refused(self, hive_id: str, name: str) -> bool:
        """The machine refused the token ``name``: a rotated one that waits counts now. Whether there was one.

        The file is renamed in the turn of the loop: that waits for no disk.
        """
        try:
            return self._nodes.is_enrolled(hive_id) and self._tokens.promote(hive_id, name)
        except StorageUnavailable as error:
            log(LOGGER, logging.ERROR, "a rotated token cannot be put in force", node=hive_id, why=error.message)
            return False

    def obstacle(self, name: str) -> str:
        """Why a node could not be enrolled now, as a sentence, or ''; raises NodeNotFound."""
        try:
            self._callback_url(self._nodes.get(name))
        except Conflict as error:
            return error.message
        return ""

    async def enrol(self, request: EnrolRequest) -> Enrolment:
        """Make the credentials that the node lacks. Raises NodeNotFound, NodeExists, Conflict, StorageUnavailable."""
        async with self._lock:
            record = self._nodes.get(request.name)
            self._nodes.refuse_if_alive_elsewhere(record.details)
            url = self._callback_url(record)
            await asyncio.to_thread(self._confirm, request.name, request.have)
            has_all = self._has_all(record, request.have)
            tokens = None if has_all else await self._make(request.name, later=False)
            if record.details.tls is NodeTls.OFF:
                return Enrolment(url, tokens)
            shown = request.certificate
            good = shown is not None and self._fleet.is_good(shown, request.name, record.details.addresses)
            return Enrolment(url, tokens, self._fleet.certificate, not good)

    async def certify(self, request: CertifyRequest) -> str:
        """A certificate (PEM) for the key of a node. Raises NodeNotFound, InvalidRequest, Conflict."""
        record = self._nodes.get(request.name)
        if record.details.tls is NodeTls.OFF or not record.digest:
            raise Conflict(
                f"node '{request.name}' takes no certificate: it is not enrolled, or TLS is off for it",
                details={"node": request.name},
            )
        made = self._fleet.certify(request.request, request.name, record.details.addresses)
        await self._nodes.note_issued(request.name, made.serial, made.ends_unix, time.time())
        return made.pem

    async def rotate(self, request: EnrolRequest) -> Enrolment:
        """Make other credentials: the old ones count until the node uses the new ones. Raises as :meth:`enrol`."""
        async with self._lock:
            record = self._nodes.get(request.name)
            if not record.digest:
                raise Conflict(
                    f"node '{request.name}' has no credentials yet: 'rbee node install {request.name}' makes them",
                    details={"node": request.name},
                )
            url = self._callback_url(record)
            await self._nodes.retire_certificates(request.name)
            tokens = await self._make(request.name, later=True)
            if record.details.tls is NodeTls.OFF:
                return Enrolment(url, tokens)
            return Enrolment(url, tokens, self._fleet.certificate, certify=True)

    async def remove(self, name: str) -> None:
        """Forget a node and its credentials, its certificates among them; raises NodeNotFound, StorageUnavailable."""
        async with self._lock:
            await self._fleet.revoke(self._nodes.certificates(name))
            await self._nodes.remove(name)
            await asyncio.to_thread(self._tokens.remove, name)

    async def heard(self, hive_id: str, shown: tuple[int, float] | None) -> None:
        """A hive reported by the certificate ``shown`` (serial number, end): what it has replaced counts no longer."""
        await self._nodes.retire_former(hive_id)
        try:
            if shown is not None and self._is_news(hive_id, shown[0]):
                await self._nodes.note_issued(hive_id, *shown, time.time())
            due = self._nodes.retired(hive_id)
            if due:
                await self._fleet.revoke(due)
                await self._nodes.forget_retired(hive_id)
        except StorageUnavailable as error:
            log(LOGGER, logging.WARNING, "a certificate is not revoked yet", node=hive_id, why=error.message)

    def _is_news(self, hive_id: str, serial: int) -> bool:
        """Whether a certificate of a node is one that an earlier version made, which remembered none."""
        known = self._nodes.has_issued(hive_id, serial) or self._fleet.is_revoked(serial)
        return self._nodes.is_enrolled(hive_id) and not known

    async def _make(self, name: str, *, later: bool) -> TokenValues:
        values = TokenValues(*(secrets.token_urlsafe(_TOKEN_BYTES) for _ in range(3)))
        for token, value in ((HIVE_API, values.hive_api_token), (WORKER_API, values.worker_api_token)):
            await asyncio.to_thread(self._tokens.put, name, token, Secret(value), later=later)
        await self._nodes.put_digest(name, digest_of(values.hive_callback_token))
        log(LOGGER, logging.INFO, "credentials made for a node", node=name, rotated=later)
        return values

    def _confirm(self, name: str, have: TokenDigests) -> None:
        """Rotated tokens that the node has by now count from now on. Blocking."""
        for token, digest in ((HIVE_API, have.hive_api_token), (WORKER_API, have.worker_api_token)):
            waiting = self._tokens.waiting(name, token)
            if waiting is not None and digest_of(waiting.reveal()) == digest:
                self._tokens.promote(name, token)

    def _has_all(self, record: NodeRecord, have: TokenDigests) -> bool:
        held = [self._tokens.get(record.details.name, token) for token in (HIVE_API, WORKER_API)]
        ours = [record.digest or None, *(None if secret is None else digest_of(secret.reveal()) for secret in held)]
        return None not in ours and ours == list(msgspec.structs.astuple(have))

    def _callback_url(self, record: NodeRecord) -> str:
        """Where the node reports; raises Conflict where that could not work."""
        if any(is_here(parse_address(text)) for text in record.details.addresses):
            raise Conflict(
                "this is the queen's own machine: its hive has the tokens of /etc/credstore and needs no enrolment",
                details={"node": record.details.name},
            )
        address = address_of(self._public_url)
        url = self._public_url if record.details.tls is NodeTls.OFF else self._fleet.url
        if url is None or (address is not None and address.is_loopback):
            raise Conflict(
                "public_url is a loopback address, which no other machine reaches: set it to the queen's own address "
                "in queen.yaml and restart rbee-queen",
                details={"field": "public_url"},
            )
        return url
