"""Gemma Scope's file, `params.npz`: read without unpickling, and block by block."""

import io
import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from circuits.catalogue import FOLDER
from circuits.dictionaries import ARRAYS, Dictionary, check_finite, check_shapes, dtype_of
from circuits.errors import UserError
from circuits.files import write_atomically
from circuits.formats.array_files import check_names, read_start

BLOCK = 2**24
"""Bytes read at a time: no array is held in two dtypes."""


def load_npz(
    path: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Dictionary:
    """Read a `params.npz` in Gemma Scope's layout; nothing in it is ever unpickled.

    Name and average L0 come from the folders it lies in (`layer_L/width_W/average_l0_X`). `device`
    is the CPU and `dtype` float32 unless given.

    Raises:
        UserError: no such file; not an npz file, or a truncated or corrupt one; arrays missing,
            unknown, of the wrong shape, not floating, not finite, or objects to unpickle.
    """
    path = Path(path)
    _check_is_zip(path)
    tensors = {}
    with _damage_reported(path):
        archive = zipfile.ZipFile(path)
    with archive:
        with _damage_reported(path):
            _check_headers(archive, path)
        for key in ARRAYS:
            with _damage_reported(path), archive.open(f"{key}.npy") as member:
                array = _read_array(member, key, dtype_of(key, dtype or torch.float32))
            check_finite(key, array, path)
            tensors[key] = array.to(device)
    layout = FOLDER.fullmatch("/".join(path.absolute().parts[-4:-1]))
    name, l0 = (layout[0], float(layout["l0"])) if layout else (str(path), None)
    return Dictionary(**tensors, name=name, average_l0=l0)


def save_npz(dictionary: Dictionary, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write `dictionary` as Gemma Scope does: five float32 arrays in one uncompressed npz file.

    Makes the folders above `path`; the same dictionary gives the same bytes.

    Raises:
        UserError: `path` cannot be written, or exists and `overwrite` is false, or the dictionary
            has what this format does not know: a `k`, a skip connection, later decoders.
    """
    plain = dictionary.k is None and not dictionary.reads_residual
    if not plain or set(dictionary.arrays) != set(ARRAYS):
        raise UserError(
            f"{dictionary.name} is not a JumpReLU dictionary; a params.npz holds those alone"
        )
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path.parent}: {error.strerror}") from error
    buffer = io.BytesIO()
    arrays = {
        key: np.ascontiguousarray(array.detach().float().cpu().numpy())
        for key, array in dictionary.arrays.items()
    }
    np.savez(buffer, allow_pickle=False, **arrays)
    return write_atomically(path, buffer.getvalue(), overwrite=overwrite)


def _check_is_zip(path: Path) -> None:
    start = read_start(path, "; give the path of a params.npz")
    if start.startswith(b"\x93NUMPY"):
        raise UserError(f"{path} is a bare .npy array; save the five arrays with numpy.savez")
    if start and not start.startswith(b"PK"):
        raise UserError(f"{path} is not an npz file; save the five arrays with numpy.savez")
    if not zipfile.is_zipfile(path):
        raise _damaged(path)


@contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    """What zipfile, zlib and numpy raise on damaged bytes, as one sentence."""
    try:
        yield
    except UserError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        LookupError,
        OSError,
        RuntimeError,
        ValueError,
    ) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is truncated or corrupt; delete it and fetch or save it again")


def _check_headers(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse a file by what its arrays say they are, before any of their data is read."""
    present = [name.removesuffix(".npy") for name in archive.namelist()]
    check_names(present, ARRAYS, path, theirs="a JumpReLU dictionary's")
    shapes = {}
    for key in ARRAYS:
        with archive.open(f"{key}.npy") as member:
            shapes[key], _, dtype = _header(member)
        if dtype.hasobject:
            raise UserError(
                f"{path}: {key} holds Python objects and would need unpickling, which can run "
                "code; save it as a plain float32 array"
            )
        if dtype.kind != "f" or dtype.itemsize > 8:
            raise UserError(f"{path}: {key} is {dtype}; save it as a float32 array")
        if archive.getinfo(f"{key}.npy").file_size < math.prod(shapes[key]) * dtype.itemsize:
            raise _damaged(path)
    check_shapes(shapes, path)


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and dtype; leaves `member` at the data."""
    version = np.lib.format.read_magic(member)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    return readers[version](member)


def _read_array(member: IO[bytes], key: str, dtype: torch.dtype | None) -> Tensor:
    """The array in `dtype`; the encoder with each latent's column in one piece."""
    shape, columns_first, stored = _header(member)
    columns_first = columns_first and len(shape) == 2
    stored_shape = shape[::-1] if columns_first else shape
    array = torch.empty(shape[::-1] if key == "W_enc" else shape, dtype=dtype)
    rows = array.T if columns_first != (key == "W_enc") else array
    n_row = math.prod(stored_shape[1:]) * stored.itemsize
    step = max(1, BLOCK // n_row)
    for first in range(0, stored_shape[0], step):
        n_rows = min(step, stored_shape[0] - first)
        raw = member.read(n_rows * n_row)
        block = np.frombuffer(raw, stored).astype(stored.newbyteorder("="))  # torch takes no other
        rows[first : first + n_rows] = torch.from_numpy(block).view(n_rows, *stored_shape[1:])
    if member.read(1):  # also makes zipfile compare the checksum
        raise EOFError
    return array.T if key == "W_enc" else array
