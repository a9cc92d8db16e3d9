"""From files to a model's dictionaries: small ones into memory, large ones as mapped copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from circuits.catalogue import DictionaryFile
from circuits.dictionaries import Dictionary
from circuits.errors import UserError
from circuits.hub import verify
from circuits.mapped import mapped_copy
from circuits.memory import SHARE, free_bytes, parse_bytes
from circuits.npz import load_npz
from circuits.sites import Site
from circuits.store import DictionaryStore

COPY_FROM = 2**25
"""Bytes from which on a file gets a mapped copy; smaller ones are read in no time."""


def gather(
    files: Sequence[DictionaryFile],
    locate: Callable[[DictionaryFile], Path],
    *,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    memory: str | int | None,
) -> DictionaryStore:
    """The dictionaries in `files`, each checked; of the large ones nothing is in memory yet.

    Args:
        files: One a site.
        locate: Where a file is, after downloading it if need be.
        device: The CPU by default.
        dtype: Of the matrices; float32 by default.
        memory: What dictionaries may take on `device`; three quarters of what is free by default.

    Raises:
        UserError: a file is damaged or does not fit its site, a copy cannot be written, or
            `memory` is too little.
    """
    device, dtype = torch.device(device or "cpu"), dtype or torch.float32
    sources: dict[Site, Dictionary | Path] = {}
    for file in tqdm(files, "dictionaries", unit="file", delay=1, leave=False, disable=None):
        path = locate(file)

        def read(file: DictionaryFile = file, path: Path = path) -> Dictionary:
            return _read(file, path, dtype)

        if path.exists() and path.stat().st_size >= COPY_FROM:
            sources[file.site] = mapped_copy(path, dtype, read)
        else:
            sources[file.site] = read().to(device=device)
    if memory is not None:
        return DictionaryStore(sources, device=device, budget=parse_bytes(memory))
    largest = max((p.stat().st_size for p in sources.values() if isinstance(p, Path)), default=0)
    budget = max(int(SHARE * free_bytes(device)), 2 * largest)
    return DictionaryStore(sources, device=device, budget=budget)


def _read(file: DictionaryFile, path: Path, dtype: torch.dtype) -> Dictionary:
    try:
        dictionary = load_npz(path, dtype=dtype)
    except UserError:
        verify(path)  # what is damaged in the hub's cache must not stay there
        raise
    if dictionary.name != file.path:  # the embedding's folder is no layer's
        dictionary = replace(dictionary, name=file.path, average_l0=file.average_l0)
    if dictionary.d_in != dictionary.d_out and file.site.kind != "transcoder":
        raise UserError(
            f"{path} reads {dictionary.d_in} numbers and writes {dictionary.d_out}; "
            f"a sparse autoencoder at {file.site} writes what it reads"
        )
    return dictionary
