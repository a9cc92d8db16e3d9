"""One file from the Hugging Face hub, through its cache."""

import errno
from pathlib import Path

from circuits.errors import UserError


def download(repo: str, filename: str) -> Path:
    """The local path of `filename` of the model repository `repo`, fetched if it is not cached.

    `huggingface_hub` does the work, so its settings hold: `HF_TOKEN`, `HF_HOME`, `HF_ENDPOINT`,
    `HF_HUB_OFFLINE`, progress bars.

    Raises:
        UserError: the hub refuses, cannot be reached or lacks the file, or the disk is full.
    """
    from huggingface_hub import hf_hub_download  # takes half a second: only when needed

    try:
        return Path(hf_hub_download(repo, filename))
    # a broken connection shows as an exception of whichever HTTP library the hub's client uses
    except Exception as error:
        raise hub_error(error, repo, filename) from error


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
    if isinstance(error, errors.HfHubHTTPError):
        return UserError(f"{what}: {_advice(error.response.status_code)}")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return UserError(
            f"{what}: no space left on the disk of {constants.HF_HUB_CACHE}; "
            "make room or set HF_HOME to another disk"
        )
    return UserError(
        f"{what} from {constants.ENDPOINT}: {type(error).__name__}: {_first_line(error)}; "
        "check the connection and try again, what has arrived is kept"
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
