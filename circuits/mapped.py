"""A dictionary's copy that is read by mapping it into memory: nothing moves before it is used.

Gemma Scope's `params.npz` is float32 in a zip archive, and has to be read whole. Its copy is a
safetensors file in the dtype that is asked for, the encoder with each latent's column in one piece.
Opening one takes no time and no memory; what is used comes from the disk, or from the operating
system's cache of it, and goes again when the dictionary is let go.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from circuits.dictionaries import Dictionary
from circuits.errors import UserError

FORMAT = "gemma-circuits dictionary 1"


def copies_folder() -> Path:
    """Where copies are kept: `GEMMA_CIRCUITS_CACHE`, or beside the Hugging Face cache."""
    from huggingface_hub import constants

    own = os.environ.get("GEMMA_CIRCUITS_CACHE")
    return Path(own) if own else Path(constants.HF_HUB_CACHE).parent / "gemma-circuits"


def copy_path(source: Path, dtype: torch.dtype) -> Path:
    """Where the copy of `source` in `dtype` is, or would be.

    A file in the Hugging Face cache is known by its content (its blob's name is the content's
    hash), another by its path, size and time of change, a folder by its files': what has changed
    has another copy.
    """
    source = source.resolve()
    identity = source.name
    if source.parent.name != "blobs":
        files = sorted(source.iterdir()) if source.is_dir() else [source]
        told = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
        identity = hashlib.sha256(repr(told).encode()).hexdigest()
    return copies_folder() / f"{identity}.{str(dtype).removeprefix('torch.')}.safetensors"


def mapped_copy(source: Path, dtype: torch.dtype, read: Callable[[], Dictionary]) -> Path:
    """The path of `source`'s copy in `dtype`, made if there is none.

    Written whole or not at all, once, however many processes ask for it.

    Args:
        source: The file, or the folder, that the copy is of.
        dtype: Of its matrices.
        read: Reads the dictionary from `source` in `dtype`.

    Raises:
        UserError: what `read` raises, or the copy cannot be written.
    """
    path = copy_path(source, dtype)
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():  # another process may have been first
                save_mapped(read(), path)
        Path(f"{path}.lock").unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error
    return path


def save_mapped(dictionary: Dictionary, path: Path) -> None:
    """Write the copy, through a neighbouring temporary file and one rename.

    Raises:
        UserError: the disk refuses.
    """
    tensors = {key: array.detach().cpu() for key, array in dictionary.arrays.items()}
    tensors["W_enc"] = tensors["W_enc"].T  # columns in one piece
    facts = {"name": dictionary.name, "average_l0": dictionary.average_l0, "k": dictionary.k}
    metadata = {key: str(value) for key, value in facts.items() if value is not None}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(
            {key: array.contiguous() for key, array in tensors.items()},
            temporary,
            metadata=metadata | {"format": FORMAT},
        )
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except (OSError, SafetensorError) as error:
        raise _cannot_write(path, error) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def open_mapped(path: Path) -> Dictionary:
    """The dictionary of a copy, its tensors mapped from the file.

    Raises:
        UserError: the file is damaged or is no copy.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path} ({error}); delete it, it will be made again") from None
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} was not written by this version; delete it, it will be made again")
    arrays["W_enc"] = arrays["W_enc"].T
    return Dictionary(
        **arrays,
        k=int(metadata["k"]) if "k" in metadata else None,
        name=metadata["name"],
        average_l0=float(metadata["average_l0"]) if "average_l0" in metadata else None,
    )


def will_need(path: Path) -> None:
    """Have the operating system read the file ahead, where it knows how to."""
    if not hasattr(os, "posix_fadvise"):
        return
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _cannot_write(path: Path, error: Exception) -> UserError:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    reason = "no space left on the disk" if full else getattr(error, "strerror", None) or error
    return UserError(
        f"cannot keep a copy of a dictionary in {path.parent}: {reason}; "
        "make room, or set GEMMA_CIRCUITS_CACHE to a folder elsewhere"
    )
