"""Files from the Hugging Face hub, through its cache: one of them, or a model's weights."""

import errno
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from circuits.errors import UserError

Revision = str | Mapping[str, str] | None
"""A commit, tag or branch; or one for each repository, by its name; or `None` for `main`."""

MODEL_FILES = ("*.json", "*.safetensors", "*.model")
"""What of a model's repository is fetched: configuration, weights, tokenizer."""


def download(repo: str, filename: str, *, revision: Revision = None) -> Path:
    """The local path of `filename` of the model repository `repo`, fetched if it is not cached.

    `huggingface_hub` does the work, so its settings hold: `HF_TOKEN`, `HF_HOME`, `HF_ENDPOINT`,
    `HF_HUB_OFFLINE`, progress bars.

    Raises:
        UserError: the hub refuses, cannot be reached or lacks the file, or the disk is full.
    """
    from huggingface_hub import hf_hub_download  # takes half a second: only when needed

    try:
        return Path(hf_hub_download(repo, filename, revision=revision_of(repo, revision)))
    # a broken connection shows as an exception of whichever HTTP library the hub's client uses
    except Exception as error:
        raise hub_error(error, repo, filename) from error


def download_model(repo: str, *, revision: Revision = None) -> Path:
    """The folder with configuration, weights and tokenizer of `repo`, fetched if not cached.

    Weights are checked by what their headers say of their sizes, the other files by their hashes.

    Raises:
        UserError: see `download`; or a file is damaged.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(
            snapshot_download(
                repo, revision=revision_of(repo, revision), allow_patterns=list(MODEL_FILES)
            )
        )
    except Exception as error:
        lacking: list[str] = []
        if isinstance(error, errors.LocalEntryNotFoundError):
            partial = getattr(error, "snapshot_path", None)  # of what an earlier call left
            lacking = _lacking(Path(partial)) if partial else []
        raise hub_error(error, repo, ", ".join(lacking) or "the files") from error
    lacking = _lacking(folder)
    if lacking:  # offline, or the hub is out of reach: a folder is given with what it has
        raise UserError(
            f"cannot fetch {', '.join(lacking)} of {repo}: not in the cache, and offline mode is "
            "on or the hub lacks it; unset HF_HUB_OFFLINE and load it once with a connection"
        )
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        if path.suffix == ".safetensors":
            _check_weights(path)
        else:
            verify(path)
    return folder


def list_files(repo: str, *, revision: Revision = None) -> list[str]:
    """Paths of all files of `repo` on the hub, asked for once and briefly.

    Raises:
        UserError: the hub refuses or cannot be reached, or offline mode is on.
    """
    from huggingface_hub import HfApi, constants

    try:
        info = HfApi().model_info(
            repo, revision=revision_of(repo, revision), timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
    except Exception as error:
        raise hub_error(error, repo, "the list of files") from error
    return [file.rfilename for file in info.siblings or ()]


def revision_of(repo: str, revision: Revision) -> str | None:
    """What `revision` says of the repository `repo`."""
    return revision.get(repo) if isinstance(revision, Mapping) else revision


def check_revision(revision: Revision, repositories: Iterable[str], owner: str) -> None:
    """Refuse a pinned repository that has no part in what is loaded.

    Raises:
        UserError: a repository that is not one of `repositories`.
    """
    known = sorted(set(repositories))
    unknown = sorted(set(revision) - set(known)) if isinstance(revision, Mapping) else []
    if unknown:
        raise UserError(
            f"revision pins {', '.join(unknown)}; the repositories of {owner} are "
            f"{', '.join(known) or 'none'}"
        )


def commit_of(path: str | Path) -> str | None:
    """The commit that a file or folder in the hub's cache belongs to; `None` elsewhere."""
    match = re.search(
        r"/models--[^/]+/snapshots/([0-9a-f]{40})(?:/|$)", Path(path).absolute().as_posix()
    )
    return match[1] if match else None


def verify(path: str | Path) -> None:
    """Compare a large file in the hub's cache with its SHA-256, after which its blob is named.

    Files elsewhere, and small ones, which have other names, pass. A file that differs is removed
    from the cache, so that the next call fetches it again.

    Raises:
        UserError: the file differs or cannot be read.
    """
    path = Path(path)
    if not path.is_symlink():
        return
    # one step only: a blob may itself be a link into a store where names are other hashes
    blob = path.parent / path.readlink()
    named_by_hash = re.fullmatch(r"[0-9a-f]{64}", blob.name) and blob.parent.name == "blobs"
    if not named_by_hash or not blob.is_file():
        return
    try:
        with blob.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found == blob.name:
            return
        for damaged in (blob.resolve(), blob, path):
            damaged.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read, or is damaged and cannot be removed ({error.strerror}); "
            "delete it and load again to fetch it"
        ) from error
    raise UserError(
        f"{path} was not what the hub has, a download or the disk has damaged it; "
        "it is removed from the cache, load again to fetch it"
    )


def hub_error(error: BaseException, repo: str, filename: str) -> UserError:
    """What to tell the user about an `error` of `huggingface_hub`."""
    from huggingface_hub import constants, errors

    what = f"cannot fetch {filename} of {repo}"
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        # it only says that the cache lacks the file; the cause says why the hub was no help
        error = error.__cause__
    if isinstance(error, errors.OfflineModeIsEnabled):
        return UserError(
            f"{what}: it is not in the cache and offline mode is on; "
            "unset HF_HUB_OFFLINE and load it once with a connection"
        )
    if isinstance(error, errors.GatedRepoError):
        return UserError(
            f"{what}: the repository is gated; accept its licence at {constants.ENDPOINT}/{repo} "
            "and log in with `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(
            f"{what}: {constants.ENDPOINT} has no such repository or does not show it to you; "
            "log in with `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(
            f"{what}: the repository has no such revision; "
            "give a commit, tag or branch that it has, or none for main"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return UserError(f"{what}: {_advice(error.response.status_code)}")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"{what}: no space left on the disk of {constants.HF_HUB_CACHE}; "
            "make room or set HF_HOME to another disk"
        )
    unusable = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.EEXIST)
    if isinstance(error, OSError) and error.errno in unusable:
        return UserError(
            f"{what}: {constants.HF_HUB_CACHE} cannot be written ({error.strerror}); "
            "set HF_HOME to a folder that can"
        )
    return UserError(
        f"{what} from {constants.ENDPOINT}: {type(error).__name__}: {_first_line(error)}; "
        "check the connection and try again, files that arrived whole are kept"
    )


def _advice(status: int) -> str:
    if status == 401:
        return "the hub wants a valid token (401); log in with `hf auth login` or set HF_TOKEN"
    if status == 403:
        return "the token may not read this repository (403); use one with read access to it"
    if status == 404:
        return "the repository has no such file (404)"
    if status == 429:
        return "too many requests (429); wait some minutes, or log in with `hf auth login`"
    return f"the hub answered {status}; try again later"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "no reason given")


def _lacking(folder: Path) -> list[str]:
    """What a model needs and `folder` has not; weights as their index lists them."""
    needed = {"config.json"}
    if not (folder / "tokenizer.model").is_file():
        needed.add("tokenizer.json")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            needed |= set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, LookupError, AttributeError, TypeError):
            verify(index)
            raise UserError(f"{index} is damaged; delete it and load again") from None
    else:
        needed.add("model.safetensors")
    return sorted(name for name in needed if not (folder / name).is_file())


def _check_weights(path: Path) -> None:
    """Refuse weights whose size is not what their header says, or that have no header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        verify(path)
        raise UserError(
            f"{path} is truncated or corrupt ({_first_line(error)}); "
            "delete it and load again to fetch it"
        ) from error
