"""From files to a model's dictionaries: small ones into memory, large ones as mapped copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from tqdm import tqdm

from circuits.dictionaries import Dictionary
from circuits.errors import UserError
from circuits.formats.recognise import load_dictionary
from circuits.loading.hub import verify
from circuits.loading.mapped import mapped_copy
from circuits.loading.store import DictionaryStore, passing_bytes
from circuits.memory import SHARE, free_bytes, parse_bytes
from circuits.sites import Site

COPY_FROM = 2**25
"""Bytes from which on a dictionary gets a mapped copy; smaller ones are read in no time."""


def gather(
    places: Mapping[Site, Path | Dictionary | Callable[[], Path]],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    memory: str | int | None = None,
) -> DictionaryStore:
    """The dictionaries at `places`, each checked; of the large ones nothing is in memory yet.

    Args:
        places: Each site's file or folder, or what gives it after downloading it if need be, or
            the dictionary itself.
        device: The CPU by default.
        dtype: Of the matrices; float32 by default.
        memory: What dictionaries may take on `device`; three quarters of what is free by default.

    Raises:
        UserError: a file is damaged or does not fit its site, a copy cannot be written, or
            `memory` is too little.
    """
    device, dtype = torch.device(device or "cpu"), dtype or torch.float32
    sources: dict[Site, Dictionary | Path] = {}
    for site in tqdm(places, "dictionaries", unit="file", delay=1, leave=False, disable=None):
        place = places[site]
        if isinstance(place, Dictionary):
            sources[site] = place.to(device=device, dtype=dtype)
            continue
        path = place if isinstance(place, Path) else place()

        def read(site: Site = site, path: Path = path) -> Dictionary:
            return _read(site, path, dtype)

        large = path.exists() and _size(path) >= COPY_FROM
        sources[site] = mapped_copy(path, dtype, read) if large else read().to(device=device)
    if memory is not None:
        return DictionaryStore(sources, device=device, budget=parse_bytes(memory))
    in_memory = sum(d.n_bytes for d in sources.values() if isinstance(d, Dictionary))
    least = passing_bytes(p.stat().st_size for p in sources.values() if isinstance(p, Path))
    budget = max(int(SHARE * free_bytes(device)), least)
    return DictionaryStore(sources, device=device, budget=in_memory + budget)


def _read(site: Site, path: Path, dtype: torch.dtype) -> Dictionary:
    try:
        dictionary = load_dictionary(path, dtype=dtype)
    except UserError:
        verify(path)  # what is damaged in the hub's cache must not stay there
        raise
    if dictionary.d_in != dictionary.d_out and site.kind != "transcoder":
        raise UserError(
            f"{path} reads {dictionary.d_in} numbers and writes {dictionary.d_out}; "
            f"a sparse autoencoder at {site} writes what it reads"
        )
    return dictionary


def _size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
