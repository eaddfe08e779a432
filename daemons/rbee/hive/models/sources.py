"""Asks a model's source what the model consists of: a hub, a web folder with SHA256SUMS, one file, another hive."""

import asyncio
import logging
import os
import sys
from http import HTTPStatus
from pathlib import PurePosixPath

import aiohttp
import msgspec

from rbee.hive.models.hub_listing import HUB_LIMIT_S, HubAnswer, HubFile, HubQuestion
from rbee.hive.models.listing import (
    MOST_FILES,
    SUMS,
    Digest,
    Listing,
    RemoteFile,
    chosen,
    parent_of,
    parse_sums,
    safe_path,
    under,
)
from rbee.hive.models.manifest import sha256_bytes
from rbee.hive.models.sessions import Sessions
from rbee.hive.models.transfer import bearer, interrupted, refusal, refusal_of
from rbee.hive.models.tries import Tries
from rbee.wire.auth import Secret
from rbee.wire.errors import (
    DownloadFailed,
    DownloadTimeout,
    InvalidModelReference,
    ModelAccessDenied,
    ModelSourceNotFound,
    ProtocolError,
)
from rbee.wire.http.client import decode_answer, request_headers
from rbee.wire.log import log
from rbee.wire.model_messages import CopySource, FileList
from rbee.wire.model_reference import ARCHIVES, ModelReference, Provider

LOGGER = logging.getLogger(__name__)
ASK_LIMIT_S = 30.0
HUB_COMMAND = (sys.executable, "-m", "rbee.hive.models.hub_listing")
_HEADS_AT_ONCE = 8
_MOST_LISTING_BYTES = 16 << 20
_READ_CHUNK = 1 << 16
_KEPT_ENVIRONMENT = (
    "PATH",
    "PYTHONPATH",
    "LANG",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
)


class Sources:
    """Resolves references; ``endpoint`` is the hub's address, ``hub_token`` what is presented to it."""

    def __init__(self, sessions: Sessions, tries: Tries, endpoint: str, hub_token: Secret | None) -> None:
        self._sessions = sessions
        self._tries = tries
        self._endpoint = endpoint
        self._hub_token = hub_token

    async def resolve(self, reference: ModelReference, source: CopySource | None) -> Listing:
        """What to fetch for ``reference``, from ``source`` where one is named.

        Raises DownloadFailed, DownloadTimeout, ModelSourceNotFound, ModelAccessDenied, InvalidModelReference.
        """
        if source is not None:
            try:
                return await self._of_hive(reference, source)
            except (DownloadFailed, DownloadTimeout, ModelAccessDenied, ModelSourceNotFound) as error:
                if not source.optional:
                    raise
                log(LOGGER, logging.WARNING, "no copy from another hive: fetching from the source", why=error.message)
        if reference.provider is Provider.HF:
            return await self._of_hub(reference)
        if reference.url.endswith("/"):
            return await self._of_web_folder(reference)
        return await self._of_web_file(reference)

    # A hub.

    async def _of_hub(self, reference: ModelReference) -> Listing:
        answer = await self._tries.run(lambda: self._ask_hub(reference), reference.repo)
        by_path = {each.path: each for each in answer.files}
        files = tuple(_hub_file(by_path[path]) for path in chosen(sorted(by_path), reference.pattern))
        return Listing(files, token=self._hub_token)

    async def _ask_hub(self, reference: ModelReference) -> HubAnswer:
        token = None if self._hub_token is None else self._hub_token.reveal()
        question = HubQuestion(self._endpoint, reference.repo, reference.revision, token)
        answer = await _run_hub(question)
        if answer.status != HTTPStatus.OK:
            raise refusal_of(answer.status)
        return answer

    # The web.

    async def _of_web_folder(self, reference: ModelReference) -> Listing:
        body = await self._get(self._sessions.web, under(reference.url, SUMS))
        if reference.sha256 is not None and sha256_bytes(body) != reference.sha256:
            raise DownloadFailed(
                f"{SUMS} at the source is not the one that the reference names: check the digest after '#sha256='",
                details={"reason": "checksum_mismatch"},
            )
        sums = parse_sums(body.decode(errors="replace"))
        gate = asyncio.Semaphore(_HEADS_AT_ONCE)

        async def file(path: str, digest: str) -> RemoteFile:
            url = under(reference.url, path)
            async with gate:
                return RemoteFile(path, url, await self._size(url), Digest("sha256", digest))

        return Listing(tuple(await asyncio.gather(*(file(path, digest) for path, digest in sums.items()))))

    async def _of_web_file(self, reference: ModelReference) -> Listing:
        folder, name = parent_of(reference.url)
        archive = name.endswith(ARCHIVES)
        if not archive and not name.endswith(".onnx"):
            raise InvalidModelReference(
                f"the reference names a file that is no model: give a folder (ending in '/') with a {SUMS}, "
                f"an .onnx file, or an archive ({', '.join(ARCHIVES)})",
                details={"field": "model_ref"},
            )
        digest = reference.sha256 or await self._sum_beside(folder, name)
        file = RemoteFile(name, reference.url, await self._size(reference.url), Digest("sha256", digest))
        return Listing((file,), archive=archive)

    async def _sum_beside(self, folder: str, name: str) -> str:
        try:
            sums = parse_sums((await self._get(self._sessions.web, under(folder, SUMS))).decode(errors="replace"))
        except ModelSourceNotFound:
            sums = {}
        if name not in sums:
            raise InvalidModelReference(
                f"there is no checksum of this model: add '#sha256=HEX' to the reference, or a {SUMS} beside the file",
                details={"field": "model_ref"},
            )
        return sums[name]

    async def _size(self, url: str) -> int | None:
        """The size that a HEAD tells; None where the source does not say."""
        headers = request_headers() | {"Accept-Encoding": "identity"}
        try:
            async with (
                asyncio.timeout(ASK_LIMIT_S),
                self._sessions.web.head(url, headers=headers, allow_redirects=True) as response,
            ):
                return response.content_length if response.status == HTTPStatus.OK else None
        except (TimeoutError, aiohttp.ClientError, OSError):
            return None  # the transfer itself meets the same source with all its tries

    async def _get(self, session: aiohttp.ClientSession, url: str, token: Secret | None = None) -> bytes:
        """A small document; six tries."""
        return await self._tries.run(lambda: self._get_once(session, url, token), PurePosixPath(url).name)

    async def _get_once(self, session: aiohttp.ClientSession, url: str, token: Secret | None) -> bytes:
        body = bytearray()
        headers = request_headers() | bearer(token) | {"Accept-Encoding": "identity"}
        try:
            async with asyncio.timeout(ASK_LIMIT_S), session.get(url, headers=headers) as response:
                if response.status != HTTPStatus.OK:
                    raise refusal(response)
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > _MOST_LISTING_BYTES:
                        raise ModelSourceNotFound("the list of files at the source is over 16 MiB: it is none of ours")
        except TimeoutError:
            raise DownloadTimeout(f"the source did not answer within {ASK_LIMIT_S:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise interrupted(error, len(body)) from error
        return bytes(body)

    # Another hive.

    async def _of_hive(self, reference: ModelReference, source: CopySource) -> Listing:
        ticket = Secret(source.ticket)
        base = f"{source.url}/v1/models/{source.model}/files"
        try:
            # one that may be done without is asked once
            ask = self._get_once if source.optional else self._get
            listed = decode_answer(await ask(self._sessions.hives, base, ticket), FileList)
        except ProtocolError as error:
            raise DownloadFailed(f"the other hive does not speak the protocol: {error.message}") from None
        if listed.reference != reference.text or not 0 < len(listed.files) <= MOST_FILES:
            raise DownloadFailed(
                "the other hive has another model under that name: pull it from its source",
                details={"reason": "another_model"},
            )
        files = (
            RemoteFile(safe_path(each.path), under(base, each.path), each.size, Digest("sha256", each.sha256))
            for each in listed.files
        )
        return Listing(tuple(files), token=ticket, of_hive=True)


def _hub_file(file: HubFile) -> RemoteFile:
    if file.sha256 is not None:
        return RemoteFile(safe_path(file.path), file.url, file.size, Digest("sha256", file.sha256))
    if file.blob is None or file.size is None:
        raise DownloadFailed(
            "the hub gives no checksum of a file: it cannot be verified, and is not taken",
            details={"reason": "no_checksum"},
        )
    return RemoteFile(safe_path(file.path), file.url, file.size, Digest("git", file.blob))


async def _run_hub(question: HubQuestion) -> HubAnswer:
    """Ask the hub in a process of its own; raises DownloadFailed, DownloadTimeout, ModelSourceNotFound."""
    environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        *HUB_COMMAND,
        env={**environment, "HF_HUB_DISABLE_TELEMETRY": "1"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(2 * HUB_LIMIT_S):
            output, complaint = await _answer_of(process, msgspec.json.encode(question))
    except TimeoutError:
        raise DownloadTimeout(f"the hub did not answer within {2 * HUB_LIMIT_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        last = complaint.decode(errors="replace").strip().rpartition("\n")[2][:200]
        raise DownloadFailed(
            f"the hub could not be asked ({last or 'its client ended without a word'}): check that this machine "
            f"reaches {question.endpoint} (models.hf_endpoint of hive.yaml), by its proxy if it has one"
        )
    try:
        return msgspec.json.decode(output, type=HubAnswer)
    except msgspec.MsgspecError:
        raise DownloadFailed("the hub's answer does not fit its protocol") from None


async def _answer_of(process: asyncio.subprocess.Process, question: bytes) -> tuple[bytes, bytes]:
    """Ask a process and return what it wrote to stdout and stderr; raises ModelSourceNotFound for too much."""
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise DownloadFailed("the hub could not be asked: its client has no pipes")
    process.stdin.write(question)
    process.stdin.close()
    complaint = asyncio.create_task(_bounded(process.stderr), name="what the hub's client complains of")
    try:
        output = await _bounded(process.stdout)
        await process.wait()
        return output, await complaint
    finally:
        complaint.cancel()
        await asyncio.gather(complaint, return_exceptions=True)


async def _bounded(stream: asyncio.StreamReader) -> bytes:
    found = bytearray()
    while chunk := await stream.read(_READ_CHUNK):
        found += chunk
        if len(found) > _MOST_LISTING_BYTES:
            raise ModelSourceNotFound(
                "the hub's list of the repository's files is over 16 MiB: it holds more than a model; name another one"
            )
    return bytes(found)
