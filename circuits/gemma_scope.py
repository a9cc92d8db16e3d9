"""The dictionaries of a model: Gemma Scope from the hub, or a folder that mirrors the hub."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from circuits.catalogue import KIND_OF_SUFFIX, DictionaryFile, catalogue, choose_files
from circuits.dictionaries import LAYOUT, Dictionary, load_npz
from circuits.errors import UserError
from circuits.hub import download
from circuits.sites import KINDS, Site, check_kinds


def gemma_scope(
    model: str,
    *,
    sites: Iterable[str] = KINDS,
    layers: Iterable[int] | None = None,
    width: str = "16k",
    l0: int | float | str = "canonical",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> dict[Site, Dictionary]:
    """Gemma Scope's dictionaries for `model`, in the order of the sites, from the Hugging Face hub.

    Nothing is downloaded before every site has its file chosen.

    Args:
        model: `gemma-2-2b`, `gemma-2-9b`, `gemma-2-27b` or `gemma-2-9b-it`.
        sites: Kinds of site: any of `attn`, `mlp`, `resid`.
        layers: The layers wanted; by default all that Gemma Scope has of each kind.
        width: Number of latents: `16k`, `65k`, `131k`, ...
        l0: Of several sparsities, `canonical` (average L0 nearest 100), a number, or `nearest:50`.
        device: The CPU by default.
        dtype: float32 by default.

    Raises:
        UserError: Gemma Scope has no such dictionary (the message names those it has), or the hub
            refuses or cannot be reached.
    """
    return _load(
        scope_files(model, sites=sites, layers=layers, width=width, l0=l0),
        lambda file: download(file.source, f"{file.path}/params.npz"),
        device=device,
        dtype=dtype,
    )


def scope_files(model: str, **choice: Any) -> tuple[DictionaryFile, ...]:
    """The files that `gemma_scope` would load, with its `sites`, `layers`, `width` and `l0`.

    Raises:
        UserError: Gemma Scope has no such dictionary.
    """
    model = model.removeprefix("google/")
    if model not in catalogue():
        raise UserError(
            f"Gemma Scope has no dictionaries for {model!r}, only for {', '.join(catalogue())}"
        )
    return choose_files(catalogue()[model], owner=model, **choice)


def dictionaries_from_folder(
    folder: str | Path,
    *,
    sites: Iterable[str] = KINDS,
    layers: Iterable[int] | None = None,
    width: str = "16k",
    l0: int | float | str = "canonical",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> dict[Site, Dictionary]:
    """The dictionaries in a folder that mirrors the hub, in the order of the sites.

    In `folder` lies one folder a kind, its name ending in `-res`, `-att` or `-mlp`, below it
    `layer_L/width_W/average_l0_X/params.npz`. `width` and `l0` choose where a layer has several
    files; the other arguments are those of `gemma_scope`.

    Raises:
        UserError: no such folder, two folders of one kind, a site asked for that is not there,
            or a file that cannot be read.
    """
    folder = Path(folder)
    kinds = check_kinds(sites)
    layers = None if layers is None else tuple(layers)
    homes = _kind_folders(folder, kinds)
    if "mlp" in kinds and "mlp" not in homes and "transcoder" in homes:
        raise UserError(
            f"{homes['transcoder']}: transcoders are not supported yet; "
            "give sparse autoencoders in a folder ending in -mlp, or leave out mlp"
        )
    files = [
        file for kind in kinds if kind in homes for file in _files_of(homes[kind], kind, layers)
    ]
    chosen = choose_files(files, sites=kinds, layers=layers, width=width, l0=l0, owner=str(folder))
    return _load(
        chosen,
        lambda file: Path(file.source) / file.path / "params.npz",
        device=device,
        dtype=dtype,
    )


def _kind_folders(folder: Path, kinds: Sequence[str]) -> dict[str, Path]:
    """The folder of each kind in `folder`; of those in `kinds` there must not be two."""
    if not folder.is_dir():
        raise UserError(
            f"no folder {folder}; name one that holds folders ending in -res, -att, -mlp"
        )
    suffixes = {**KIND_OF_SUFFIX, "transcoders": "transcoder"}
    homes: dict[str, Path] = {}
    for child in sorted(child for child in folder.iterdir() if child.is_dir()):
        kind = suffixes.get(child.name.rpartition("-")[2]) if "-" in child.name else None
        if kind in homes and kind in kinds:
            raise UserError(
                f"{homes[kind]} and {child} are both for {kind}; keep one, or move the other away"
            )
        if kind is not None:
            homes[kind] = child
    if not homes:
        raise UserError(f"{folder} holds no folder whose name ends in -res, -att or -mlp")
    return homes


def _files_of(home: Path, kind: str, layers: Iterable[int] | None) -> Iterator[DictionaryFile]:
    """Gemma Scope's layout below `home`."""
    for layer in sorted(home.glob("layer_*")):
        number = layer.name.removeprefix("layer_")
        if not number.isdecimal():
            continue
        found = [
            match
            for path in sorted(layer.glob("width_*/average_l0_*"))
            if (match := LAYOUT.fullmatch(path.relative_to(home).as_posix()))
        ]
        if not found and (layers is None or int(number) in layers):
            raise UserError(
                f"{layer} holds no width_W/average_l0_X/params.npz; add it, or fetch it again"
            )
        for match in found:
            yield DictionaryFile(
                source=str(home),
                site=Site(int(number), kind),
                width=match["width"],
                average_l0=float(match["l0"]),
                path=match[0],
                canonical=(home.name, match[0]) in _canonical_paths(),
            )


@cache
def _canonical_paths() -> frozenset[tuple[str, str]]:
    """Repository (without its owner) and path: a mirror of the hub answers as the hub does."""
    return frozenset(
        (file.source.rpartition("/")[2], file.path)
        for files in catalogue().values()
        for file in files
        if file.canonical
    )


def _load(
    files: Sequence[DictionaryFile],
    locate: Callable[[DictionaryFile], Path],
    *,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> dict[Site, Dictionary]:
    dictionaries = {}
    for file in tqdm(files, "dictionaries", unit="file", delay=1, leave=False, disable=None):
        path = locate(file)
        dictionary = load_npz(path, device=device, dtype=dtype)
        if dictionary.d_in != dictionary.d_out:
            raise UserError(
                f"{path} reads {dictionary.d_in} numbers and writes {dictionary.d_out}; "
                f"a sparse autoencoder at {file.site} writes what it reads"
            )
        dictionaries[file.site] = dictionary
    return dictionaries
