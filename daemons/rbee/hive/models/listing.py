"""What a model consists of at its source: the files, where each is got, and the digest that each must have; pure."""

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote

from rbee.wire.auth import Secret
from rbee.wire.errors import DownloadFailed, ModelSourceNotFound
from rbee.wire.model_reference import MANIFEST

MOST_FILES = 10_000
SUMS = "SHA256SUMS"
COMPANIONS = ("*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken", "*.vocab")
"""What a model needs beside its graph: configuration, tokenizer, chat template."""
OTHER_FORMATS = (
    "*.safetensors", "*.gguf", "*.ggml", "*.h5", "*.msgpack", "*.ot", "*.pt", "*.pth", "*.ckpt", "*.tflite", "*.pkl",
    "pytorch_model*", "*/pytorch_model*", "consolidated*", "openvino/*", "*.mlmodel", "*.mlpackage/*", "coreml/*",
    "*.safetensors.index.json",
)  # fmt: skip
"""Weights that ONNX Runtime does not read: they are left at the source."""
NOT_NEEDED = (".git*", "*/.git*", "*.md", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.mp4", "*.pdf", "*.py", "*.ipynb")
_SUMS_LINE = re.compile(r"(?P<hex>[0-9a-fA-F]{64}) [ *](?P<path>.+)")
_LONGEST_PATH = 1024


@dataclass(frozen=True, slots=True)
class Digest:
    """What a file's content must hash to: ``sha256``, or ``git`` (a git blob's SHA-1, its length hashed ahead)."""

    kind: str
    hex: str


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file at its source; ``size`` in bytes, None until the source tells it."""

    path: str
    url: str
    size: int | None
    digest: Digest


@dataclass(frozen=True, slots=True)
class Listing:
    """Everything to fetch. ``token`` goes to the source's own host only; ``archive``: the one file is unpacked.

    ``of_hive``: the source is another node's hive.
    """

    files: tuple[RemoteFile, ...]
    token: Secret | None = None
    archive: bool = False
    of_hive: bool = False

    @property
    def total(self) -> int:
        """Bytes of all files as far as they are known."""
        return sum(file.size or 0 for file in self.files)


def safe_path(path: str) -> str:
    """Return ``path`` if it stays in its folder; raises DownloadFailed for one that is absolute or leads outside."""
    parts = path.split("/")
    bad = len(path) > _LONGEST_PATH or "\\" in path or not path.isprintable() or {"", ".", ".."} & set(parts)
    if bad or parts[-1].startswith(MANIFEST):
        raise DownloadFailed(
            "the source names a file that would lie outside the model's folder: nothing of it is kept; "
            "tell whoever publishes the model",
            details={"reason": "unsafe_path"},
        )
    return path


def chosen(paths: Sequence[str], pattern: str | None) -> list[str]:
    """The files to fetch of those in a repository.

    Without a pattern: everything but other formats' weights and what is not needed. With one: what it matches, and
    the configuration and tokenizer files. Raises ModelSourceNotFound when nothing is left.
    """
    useful = [path for path in paths if not _matches(path, OTHER_FORMATS + NOT_NEEDED)]
    if pattern is not None:
        matched = [path for path in paths if fnmatch.fnmatchcase(path, pattern)]
        if not matched:
            raise ModelSourceNotFound(
                "the repository has no file that the pattern of the reference matches: check what follows the ':'",
                details={"reason": "no_file_matches"},
            )
        useful = sorted({*matched, *(path for path in useful if _matches(path, COMPANIONS))})
    if not any(path.endswith(".onnx") for path in useful):
        raise ModelSourceNotFound(
            "the repository has no ONNX file that fits: name one that has been exported to ONNX",
            details={"reason": "no_onnx"},
        )
    return useful


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def parse_sums(text: str) -> dict[str, str]:
    """Paths and their SHA-256 from a SHA256SUMS file, as sha256sum(1) writes it; raises DownloadFailed."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = _SUMS_LINE.fullmatch(line)
        if match is None:
            raise DownloadFailed(
                f"{SUMS} at the source has a line that is not 'HEX  PATH': write it with sha256sum",
                details={"reason": "bad_sums"},
            )
        found[safe_path(match["path"].removeprefix("./"))] = match["hex"].lower()
    if not found or len(found) > MOST_FILES:
        raise DownloadFailed(
            f"{SUMS} at the source names {len(found)} files; expected 1 to {MOST_FILES}", details={"reason": "bad_sums"}
        )
    return found


def under(base: str, path: str) -> str:
    """The URL of a file under a folder's URL."""
    return f"{base.rstrip('/')}/{quote(path)}"


def parent_of(url: str) -> tuple[str, str]:
    """A URL's folder, and the name of the file in it."""
    return url.rpartition("/")[0] + "/", PurePosixPath(url).name
