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
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from circuits.dictionaries import Dictionary
from circuits.errors import UserError

VERSION = 1
FORMAT = f"gemma-circuits dictionary {VERSION}"


def copies_folder() -> Path:
    """Where copies are kept: `GEMMA_CIRCUITS_CACHE`, or beside the Hugging Face cache."""
    from huggingface_hub import constants

    own = os.environ.get("GEMMA_CIRCUITS_CACHE")
    return Path(own) if own else Path(constants.HF_HUB_CACHE).parent / "gemma-circuits"


def copy_path(source: Path, dtype: torch.dtype) -> Path:
    """Where the copy of `source` in `dtype` is, or would be.

    A file of Gemma Scope in the Hugging Face cache is known by its content (its blob's name is the
    content's hash); another `.npz` by its path, size and time of change; what other libraries
    saved, by those of all files in its folder, as settings lie beside the weights, and by its name
    where there are several of weights. What has changed has another copy.
    """
    alone = source.suffix == ".npz"
    identity = source.resolve().name
    in_blobs = source.resolve().parent.name == "blobs"
    if not (alone and in_blobs and re.fullmatch(r"[0-9a-f]{64}", identity)):
        folder = source if source.is_dir() else source.parent  # a snapshot; its files are links
        files = [source] if alone else sorted(folder.iterdir())
        read = [(str(f.resolve()), f.stat()) for f in files if f.is_file()]
        told = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in read]
        several = sum(f.suffix in (".safetensors", ".pt") for f in files) > 1
        which = [source.name] if several else []
        identity = hashlib.sha256(repr(which + told).encode()).hexdigest()
    name = f"{identity}.{str(dtype).removeprefix('torch.')}.v{VERSION}.safetensors"
    return copies_folder() / name


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
        lock = FileLock(f"{path}.lock")
        lock.acquire()
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        if not path.exists():  # another process may have been first
            for left in path.parent.glob(f".{path.name}.*"):  # by one that was killed
                left.unlink(missing_ok=True)
            save_mapped(read(), path)
    finally:
        lock.release()
        Path(f"{path}.lock").unlink(missing_ok=True)
    return path


def save_mapped(dictionary: Dictionary, path: Path) -> None:
    """Write the copy, through a neighbouring temporary file and one rename.

    Raises:
        UserError: the disk refuses.
    """
    tensors = {key: array.detach().cpu() for key, array in dictionary.arrays.items()}
    tensors["W_enc"] = tensors["W_enc"].T  # columns in one piece
    facts = {key: getattr(dictionary, key) for key in ("name", "average_l0", "k")}
    facts["reads_residual"] = dictionary.reads_residual or None
    metadata = {key: str(value) for key, value in facts.items() if value is not None}
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
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
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def open_mapped(path: Path) -> Dictionary:
    """The dictionary of a copy, its tensors mapped from the file.

    Raises:
        UserError: the file is damaged, is no copy, or is gone.
    """
    if not path.exists():
        raise UserError(f"the copy {path} is gone; load the model again to have it made again")
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
        reads_residual="reads_residual" in metadata,
        name=metadata["name"],
        average_l0=float(metadata["average_l0"]) if "average_l0" in metadata else None,
    )


def will_need(path: Path) -> None:
    """Have the operating system read the file ahead, where it knows how to and finds it."""
    if not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError), path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _cannot_write(path: Path, error: Exception) -> UserError:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    reason = "no space left on the disk" if full else getattr(error, "strerror", None) or error
    return UserError(
        f"cannot keep a copy of a dictionary in {path.parent}: {reason}; "
        "make room, or set GEMMA_CIRCUITS_CACHE to a folder elsewhere"
    )
