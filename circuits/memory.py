"""How much memory there is, and how much was asked for."""

import re
from collections.abc import Callable, Iterator
from typing import TypeVar

import psutil
import torch
from torch import Tensor

from circuits.errors import UserError

UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
BINARY_UNITS = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}

T = TypeVar("T")

SHARE = 0.75
"""Of what is free, what dictionaries may take when nobody says how much."""


def parse_bytes(amount: str | int | float) -> int:
    """`20GB`, `1.5 GiB`, `800MB` or a number of bytes.

    Raises:
        UserError: something else, or less than a kilobyte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmgt]?i?)b?", str(amount).strip().lower())
    units = UNITS | BINARY_UNITS
    if match is None or match[2] not in units or (n := float(match[1]) * units[match[2]]) < 1000:
        raise UserError(f"memory={amount!r}; write for example '20GB', '800MB' or '16GiB'")
    return int(n)


def show_bytes(n: float) -> str:
    """`20.0 GB`, in powers of ten."""
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}"
        n /= 1000
    return f"{n:.1f} GB"


def free_bytes(device: torch.device) -> int:
    """What `device` has left."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def halving(run: Callable[[Tensor], T], batch: Tensor) -> Iterator[tuple[Tensor, T]]:
    """`run(batch)`, and where there is no memory for that, the same of its halves, in order.

    Raises:
        UserError: there is not enough memory for one element of `batch [k]`.
    """
    result, message = None, None
    try:
        result = run(batch)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        message = str(error).split("\n")[0]
    # only here: the exception held what the failed run had allocated
    if message is None:
        yield batch, result  # pyright: ignore[reportReturnType]
    elif len(batch) == 1:
        raise UserError(
            f"not enough memory for one alone ({message}); take a shorter prompt, or give the "
            "dictionaries less with load(..., memory=)"
        )
    else:
        for half in batch.split((len(batch) + 1) // 2):
            yield from halving(run, half)


def _is_out_of_memory(error: Exception) -> bool:
    """Also on a CPU, where torch raises a plain `RuntimeError`."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "can't allocate memory" in str(error)
    )
