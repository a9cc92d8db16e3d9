"""Arrays and settings from other libraries' files, read without running anything in them."""

import json
import pickle
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from circuits.dictionaries import check_finite
from circuits.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
    """The settings in `path`.

    Raises:
        UserError: no such file, not JSON, or something else than an object at the top.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is truncated or is not JSON; delete it and fetch or save it again"
        ) from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds a {type(settings).__name__}; it should hold settings, {{}}")
    return settings


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors in `path`, on the CPU, as they are stored.

    Raises:
        UserError: no such file, not a safetensors file, or a truncated one.
    """
    with _safetensors(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping


def safetensors_metadata(path: Path) -> dict[str, str]:
    """The free text in the header of the safetensors file `path`.

    Raises:
        UserError: see `read_safetensors`.
    """
    with _safetensors(path) as file:
        return file.metadata() or {}


def safetensors_names(path: Path) -> list[str]:
    """The names of the tensors in `path`; nothing but its header is read.

    Raises:
        UserError: see `read_safetensors`.
    """
    with _safetensors(path) as file:
        return list(file.keys())


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors that `torch.save` put into `path`, on the CPU; nothing else is unpickled.

    Raises:
        UserError: no such file; truncated, corrupt or not from `torch.save`; anything in it that is
            not a tensor.
    """
    read_start(path)
    try:
        if zipfile.is_zipfile(path):
            _check_sums(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors, and unpickling that can run code, or it is damaged; "
            "save a state_dict with torch.save, or fetch it again"
        ) from error
    except Exception as error:  # damaged bytes lead torch and pickle to raise almost anything
        raise _damaged(path) from error
    if not isinstance(state, Mapping) or not all(isinstance(a, Tensor) for a in state.values()):
        raise UserError(f"{path} is not a state dict of tensors; save ae.state_dict() there")
    return {str(key): tensor.detach() for key, tensor in state.items()}


def take(
    tensors: Mapping[str, Tensor],
    keys: Collection[str],
    path: Path,
    *,
    what: str,
    ignore: Iterable[str] = (),
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """The arrays `keys` in float32, or in `dtype` where that is wider.

    Args:
        what: What has these arrays, for the message: `a gated dictionary`.
        ignore: Others that may be there.

    Raises:
        UserError: one is missing, not floating or not finite, or `tensors` holds another one.
    """
    check_names(tensors, keys, path, theirs=f"those of {what}", ignore=ignore)
    arrays = {}
    for key in keys:
        stored = tensors[key]
        if not stored.is_floating_point() or stored.layout is not torch.strided:
            kind = str(stored.dtype).removeprefix("torch.")
            raise UserError(f"{path}: {key} is {kind}; save it as a dense float32 array")
        wide = torch.promote_types(dtype or torch.float32, torch.float32)
        arrays[key] = stored.to(wide, copy=True)  # safetensors maps the file, which may change
        if stored.numel():  # a size of 0 is refused by its shape
            check_finite(key, arrays[key], path)
    return arrays


def _safetensors(path: Path) -> Any:
    read_start(path)
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path) from error


def read_start(path: Path, advice: str = "") -> bytes:
    """The first 64 bytes; refuses a file that cannot be read, with `advice`, or is a pointer."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}{advice}") from error
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer; fetch the file itself with git lfs pull")
    return start


def _check_sums(path: Path) -> None:
    """Refuse a damaged zip file; torch compares no checksums, and leaves memory as it finds it for
    an entry that is marked as a folder.
    """
    with zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None or any(i.external_attr & 0x10 for i in archive.infolist()):
            raise _damaged(path)


def _damaged(path: Path) -> UserError:
    kind = "safetensors" if path.suffix == ".safetensors" else "torch.save"
    return UserError(
        f"{path} is truncated or corrupt, or is no {kind} file; delete it and fetch it again"
    )


def check_names(
    present: Collection[str],
    keys: Collection[str],
    path: Path,
    *,
    theirs: str,
    ignore: Iterable[str] = (),
) -> None:
    """Refuse a file that does not hold the arrays `keys`, or holds others.

    Args:
        theirs: Whose arrays `keys` are, for the message: `those of a gated dictionary`.
        ignore: Others that may be there.
    """
    missing = [key for key in keys if key not in present]
    unknown = [key for key in present if key not in {*keys, *ignore}]
    if missing or unknown:
        wrong = [f"lacks {', '.join(missing)}"] if missing else []
        wrong += [f"holds an unknown {', '.join(unknown)}"] if unknown else []
        raise UserError(
            f"{path} {' and '.join(wrong)}; its arrays are {', '.join(present) or 'none'}, "
            f"{theirs} are {', '.join(keys)}"
        )
