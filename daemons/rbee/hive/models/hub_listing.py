"""Asks a Hugging Face hub what a repository holds; a process of its own, so that the hive does not carry the library.

It reads a :class:`HubQuestion` as JSON from stdin (a token is in neither argv nor environment) and prints a
:class:`HubAnswer`.
"""

import os
import sys

import msgspec

HUB_LIMIT_S = 30.0


class HubQuestion(msgspec.Struct, frozen=True):
    """Which repository of which hub, at which revision (None: its main branch)."""

    endpoint: str
    repo: str
    revision: str | None = None
    token: str | None = None


class HubFile(msgspec.Struct, frozen=True):
    """A file of the repository: ``sha256`` where it is kept as a large file, else git's own ``blob``."""

    path: str
    url: str
    size: int | None = None
    sha256: str | None = None
    blob: str | None = None


class HubAnswer(msgspec.Struct, frozen=True):
    """The files of one commit; or, where the hub refused, its HTTP status and why."""

    files: list[HubFile] = []
    commit: str = ""
    status: int = 200
    why: str = ""


def ask(question: HubQuestion) -> HubAnswer:
    """Ask the hub; blocks."""
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi(endpoint=question.endpoint, token=question.token or False, library_name="rbee")
    try:
        info = api.model_info(question.repo, revision=question.revision, files_metadata=True, timeout=HUB_LIMIT_S)
    except GatedRepoError:
        return HubAnswer(status=403, why="gated")
    except RevisionNotFoundError:
        return HubAnswer(status=404, why="revision")
    except RepositoryNotFoundError as error:
        # a hub answers 401 for a repository that is not there as for one that is private
        return HubAnswer(status=404 if error.response.status_code != 403 else 403, why="repository")
    except HfHubHTTPError as error:
        return HubAnswer(status=error.response.status_code, why="refused")
    commit = info.sha or question.revision or "main"
    files = [
        HubFile(
            each.rfilename,
            hf_hub_url(question.repo, each.rfilename, revision=commit, endpoint=question.endpoint),
            each.size,
            each.lfs.sha256 if each.lfs is not None else None,
            each.blob_id,
        )
        for each in info.siblings or []
    ]
    return HubAnswer(files, commit)


def main() -> None:
    """Answer one question; exit code 0 also where the hub refused, a traceback where it was not reached."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=HubQuestion)
    sys.stdout.buffer.write(msgspec.json.encode(ask(question)))


if __name__ == "__main__":
    main()
