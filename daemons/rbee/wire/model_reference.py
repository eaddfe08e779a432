"""References to models: hf:, http(s):// and file:///, taken apart once; and the name of the folder each is kept in.

The folder's name follows from the reference alone, so that a worker finds a model without asking the hive.
"""

import enum
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rbee.wire import names
from rbee.wire.errors import InvalidModelReference

ARCHIVES = (".tar.gz", ".tgz", ".tar")
MANIFEST = ".rbee-model.json"
"""The file in a fetched model's folder that says where it came from; a folder without it is none of the store's."""
MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MOST_SLUG = 80
_DIGEST = "#sha256="
_FILE_SCHEME = "file://"
_REMOTE = ("hf:", "http://", "https://")
_MODEL_FILE = ".onnx"


class Provider(enum.StrEnum):
    """Where a model comes from."""

    HF = "hf"
    HTTP = "http"
    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A reference taken apart. ``text`` is the whole of it.

    hf: ``repo`` (org/name), ``revision`` and ``pattern`` where given. http: ``url`` without the fragment, and the
    ``sha256`` that the fragment named. local: ``path``.
    """

    text: str
    provider: Provider
    repo: str = ""
    revision: str | None = None
    pattern: str | None = None
    url: str = ""
    sha256: str | None = None
    path: str = ""

    @property
    def fetched(self) -> bool:
        """Whether the model is brought here from elsewhere, rather than served from where it lies."""
        return self.provider is not Provider.LOCAL

    @property
    def model_name(self) -> str:
        """What clients call the model where its definition gives it no name."""
        return self.repo if self.provider is Provider.HF else self._last

    @property
    def model_id(self) -> str:
        """Names the model on a machine, and its folder in the store where it was fetched."""
        stem = self.repo.replace("/", "--") if self.provider is Provider.HF else self._last
        return f"{stem[:_MOST_SLUG]}-{hashlib.sha256(self.text.encode()).hexdigest()[:8]}"

    @property
    def _last(self) -> str:
        if self.provider is Provider.LOCAL:
            return re.sub(r"[^A-Za-z0-9._-]", "-", PurePosixPath(self.path).name).lstrip("._-") or "model"
        last = PurePosixPath(self.url.partition("://")[2]).name
        ending = next((ending for ending in (*ARCHIVES, _MODEL_FILE) if last.endswith(ending)), "")
        return last.removesuffix(ending).lstrip("._-~+").replace("~", "-").replace("+", "-") or "model"


def parse(text: str) -> ModelReference:
    """Take a reference apart; raises InvalidModelReference, which repeats nothing of it."""
    names.model_reference(text)
    if text.startswith("hf:"):
        rest, _, pattern = text.removeprefix("hf:").partition(":")
        repo, _, revision = rest.partition("@")
        return ModelReference(text, Provider.HF, repo=repo, revision=revision or None, pattern=pattern or None)
    if text.startswith(_FILE_SCHEME):
        return ModelReference(text, Provider.LOCAL, path=text.removeprefix(_FILE_SCHEME))
    url, _, digest = text.partition(_DIGEST)
    return ModelReference(text, Provider.HTTP, url=url, sha256=digest or None)


def of_definition(model: str) -> ModelReference | None:
    """The reference of a model that is fetched, or None where a definition names a folder.

    Raises InvalidModelReference for one that is malformed.
    """
    return parse(model) if is_fetched(model) else None


def is_fetched(text: str) -> bool:
    """Whether a reference, well-formed or not, is of a model that is brought here from elsewhere."""
    return text.startswith(_REMOTE)


def model_name_of(model: str) -> str:
    """What clients call the model of a definition that gives it no name: the folder's name, or the reference's own."""
    try:
        reference = of_definition(model)
    except InvalidModelReference:
        reference = None
    return PurePosixPath(model).name if reference is None else reference.model_name


def kept_folder(reference: ModelReference, models: Path) -> Path | None:
    """The folder under ``models`` that holds the fetched model whole, or None where it is not there."""
    folder = models / reference.model_id
    return folder if (folder / MANIFEST).is_file() and not folder.is_symlink() else None
