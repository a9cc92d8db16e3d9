"""A dictionary: a JumpReLU sparse autoencoder, and the file it is kept in."""

import io
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from circuits.errors import UserError
from circuits.files import write_atomically

ARRAYS = ("W_enc", "b_enc", "threshold", "W_dec", "b_dec")
"""The arrays of a `params.npz`, as Gemma Scope names them."""

LAYOUT = re.compile(r"layer_(?P<layer>\d+)/width_(?P<width>\w+)/average_l0_(?P<l0>\d+(?:\.\d+)?)")
"""The folders of a `params.npz`, as Gemma Scope names them."""


@dataclass(frozen=True, eq=False, repr=False)
class Dictionary:
    """A JumpReLU sparse autoencoder (Gemma Scope, arXiv 2408.05147, equations 1 to 3).

        pre = x @ W_enc + b_enc
        acts = relu(pre) * (pre > threshold)
        x_hat = acts @ W_dec + b_dec

    All tensors are finite, of one floating dtype and on one device.

    Attributes:
        W_enc: `[d_in, d_sae]`.
        b_enc: `[d_sae]`.
        threshold: `[d_sae]`.
        W_dec: `[d_sae, d_out]`.
        b_dec: `[d_out]`.
        name: Where it came from, for example `layer_3/width_1k/average_l0_14`.
        average_l0: Active latents a token, as measured by whoever trained it.

    Raises:
        UserError: shapes, dtypes or devices that do not agree, or values that are not finite.
    """

    W_enc: Tensor
    b_enc: Tensor
    threshold: Tensor
    W_dec: Tensor
    b_dec: Tensor
    name: str = "unnamed"
    average_l0: float | None = None

    def __post_init__(self) -> None:
        arrays = self.arrays
        _check_shapes({key: tuple(array.shape) for key, array in arrays.items()}, self.name)
        dtypes = {str(array.dtype).removeprefix("torch.") for array in arrays.values()}
        if len(dtypes) > 1 or not self.W_enc.is_floating_point():
            raise UserError(
                f"{self.name}: arrays of dtype {', '.join(sorted(dtypes))}; "
                "give all five the same floating dtype, for example float32"
            )
        devices = {str(array.device) for array in arrays.values()}
        if len(devices) > 1:
            raise UserError(
                f"{self.name}: arrays on {' and '.join(sorted(devices))}; use one device"
            )
        for key, array in arrays.items():
            _check_finite(key, array, self.name)

    def __repr__(self) -> str:
        sizes = f"d_in={self.d_in}, d_sae={self.d_sae}, d_out={self.d_out}"
        return f"Dictionary({self.name!r}, {sizes}, {self.W_enc.dtype}, {self.W_enc.device})"

    @property
    def arrays(self) -> dict[str, Tensor]:
        """The five tensors by name, in the order of the fields."""
        return {key: getattr(self, key) for key in ARRAYS}

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    def pre_acts(self, x: Tensor) -> Tensor:
        """Pre-activations `[..., d_sae]` of `x [..., d_in]`, in the dictionary's own dtype.

        A float32 dictionary reads a bfloat16 model's activations as float32.
        """
        return x.to(self.W_enc.dtype) @ self.W_enc + self.b_enc

    def encode(self, x: Tensor) -> Tensor:
        """Activations `[..., d_sae]` of `x [..., d_in]`.

        A gradient reaches `x` through the active latents alone (`d acts / d pre` is 1 or 0); the
        thresholds get none.
        """
        pre = self.pre_acts(x)
        return torch.relu(pre) * (pre > self.threshold)  # strictly: one at its threshold is off

    def decode(self, acts: Tensor) -> Tensor:
        """Reconstruction `[..., d_out]` from `acts [..., d_sae]`."""
        return acts.to(self.W_dec.dtype) @ self.W_dec + self.b_dec

    def to(
        self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Dictionary":
        """The same dictionary on `device` in `dtype`; `None` keeps what it has.

        Raises:
            UserError: values too large for `dtype`.
        """
        return replace(
            self,
            **{key: array.to(device=device, dtype=dtype) for key, array in self.arrays.items()},
        )


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
                array = np.lib.format.read_array(member, allow_pickle=False)
            # at once, so that no more than one array is held in two dtypes
            tensors[key] = _tensor(array).to(device=device, dtype=dtype or torch.float32)
    layout = LAYOUT.fullmatch("/".join(path.absolute().parts[-4:-1]))
    name, l0 = (layout[0], float(layout["l0"])) if layout else (str(path), None)
    return Dictionary(**tensors, name=name, average_l0=l0)


def save_npz(dictionary: Dictionary, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write `dictionary` as Gemma Scope does: five float32 arrays in one uncompressed npz file.

    Makes the folders above `path`; the same dictionary gives the same bytes.

    Raises:
        UserError: `path` cannot be written, or exists and `overwrite` is false.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path.parent}: {error.strerror}") from error
    buffer = io.BytesIO()
    arrays = {key: array.detach().float().cpu().numpy() for key, array in dictionary.arrays.items()}
    np.savez(buffer, allow_pickle=False, **arrays)
    return write_atomically(path, buffer.getvalue(), overwrite=overwrite)


def _check_is_zip(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; give the path of a params.npz"
        ) from error
    if start.startswith(b"\x93NUMPY"):
        raise UserError(f"{path} is a bare .npy array; save the five arrays with numpy.savez")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer; fetch the file itself with git lfs pull")
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
    missing = [key for key in ARRAYS if key not in present]
    unknown = [key for key in present if key not in ARRAYS]
    if missing or unknown:
        wrong = [f"lacks {', '.join(missing)}"] if missing else []
        wrong += [f"holds an unknown {', '.join(unknown)}"] if unknown else []
        raise UserError(
            f"{path} {' and '.join(wrong)}; its arrays are {', '.join(present) or 'none'}, "
            f"a JumpReLU dictionary's are {', '.join(ARRAYS)}"
        )
    shapes = {}
    for key in ARRAYS:
        shapes[key], dtype = _header(archive, key)
        if dtype.hasobject:
            raise UserError(
                f"{path}: {key} holds Python objects and would need unpickling, which can run "
                "code; save it as a plain float32 array"
            )
        if dtype.kind != "f" or dtype.itemsize > 8:
            raise UserError(f"{path}: {key} is {dtype}; save it as a float32 array")
        if archive.getinfo(f"{key}.npy").file_size < math.prod(shapes[key]) * dtype.itemsize:
            raise _damaged(path)
    _check_shapes(shapes, path)


def _header(archive: zipfile.ZipFile, key: str) -> tuple[tuple[int, ...], np.dtype]:
    with archive.open(f"{key}.npy") as member:
        version = np.lib.format.read_magic(member)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, _, dtype = readers[version](member)
    return shape, dtype


def _tensor(array: np.ndarray) -> Tensor:
    native = array.dtype.newbyteorder("=")  # torch takes no other
    return torch.from_numpy(np.ascontiguousarray(array, dtype=native))


def _check_shapes(shapes: Mapping[str, tuple[int, ...]], name: str | Path) -> None:
    d_in, d_sae = shapes["W_enc"] if len(shapes["W_enc"]) == 2 else ("d_in", "d_sae")
    d_out = shapes["W_dec"][-1] if len(shapes["W_dec"]) == 2 else "d_out"
    expected = {
        "W_enc": (d_in, d_sae),
        "b_enc": (d_sae,),
        "threshold": (d_sae,),
        "W_dec": (d_sae, d_out),
        "b_dec": (d_out,),
    }
    if shapes != expected or any(0 in shape for shape in shapes.values()):
        lines = [
            f"{key} {_brackets(shapes[key])} (expected {_brackets(expected[key])})"
            for key in ARRAYS
        ]
        raise UserError(
            f"{name}: shapes that do not agree: {', '.join(lines)}, with no size 0, "
            "where W_enc is [d_in, d_sae] and W_dec [d_sae, d_out]"
        )


def _brackets(shape: tuple[int | str, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _check_finite(key: str, array: Tensor, name: str) -> None:
    low, high = array.detach().aminmax()  # NaN wins both; unlike isfinite() needs no second array
    if not (low.isfinite() and high.isfinite()):
        n_bad = int((~array.isfinite()).sum())
        raise UserError(
            f"{name}: {n_bad} of the {array.numel()} values of {key} are NaN or infinite; "
            "train or fetch the dictionary again"
        )
