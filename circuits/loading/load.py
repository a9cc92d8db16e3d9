"""A model with its dictionaries, in one call."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from circuits.catalogue import DEFAULT_WIDTH, catalogue
from circuits.dictionaries import Dictionary
from circuits.errors import UserError
from circuits.loading.gemma_scope import (
    dictionaries_from_folder,
    fetch,
    known_files,
    scope_files,
)
from circuits.loading.hub import Revision, check_revision, revision_of
from circuits.loading.models import BUNDLED, HUB_MODELS, bundled_models, load_gemma, short_name
from circuits.loading.shapes import shapes
from circuits.loading.sources import gather
from circuits.memory import parse_bytes, show_bytes
from circuits.model import SplicedModel
from circuits.sites import KINDS, Site, check_kinds
from circuits.splice import splice


def load(
    name: str | Path,
    *,
    dictionaries: str | Path | Mapping[Site, str | Path | Dictionary] | None = None,
    sites: Iterable[str] = KINDS,
    width: str = DEFAULT_WIDTH,
    l0: int | float | str = "canonical",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    memory: str | int | None = None,
    revision: Revision = None,
) -> SplicedModel:
    """Gemma 2 with a dictionary spliced in at every layer that has one, at each kind of site.

    Args:
        name: `tiny` (ships with the project), a Gemma 2 such as `gemma-2-2b` (from the Hugging
            Face hub, with Gemma Scope), or a Hugging Face folder of your own.
        dictionaries: A folder that mirrors the hub (one folder a kind, its name ending in `-res`,
            `-att` or `-mlp`, below it `layer_L/width_W/average_l0_X/params.npz`), or with
            dictionaries of SAELens, dictionary_learning, circuit-tracer (cross-layer transcoders)
            or safetensors that say their sites; or each by its site
            (`{Site(12, "resid"): "my-sae/"}`; `sites`, `width` and `l0` then do not matter).
            Needed for a model folder of your own, optional for the others. Or the name of the model
            whose Gemma Scope to take: `load("gemma-2-2b-it", dictionaries="gemma-2-2b")`.
        sites: Kinds of site: any of `attn`, `mlp`, `resid`, `embed`, and `transcoder` in the place
            of `mlp`.
        width: Which width of dictionary: `16k`, `65k`, ...; by default the only one that a layer of
            a folder has.
        l0: Which sparsity: `canonical` (average L0 nearest 100), a number, or `nearest:50`.
        device: CUDA when there is one, by default.
        dtype: Of the model and the matrices of dictionaries; by default bfloat16 for the models of
            the hub, and the one that a folder is stored in. Thresholds, biases, errors and what
            latents write together are float32; a pre-activation is rounded to `dtype` once.
        memory: What the model and the dictionaries together may take on the device, such as
            `"20GB"`. Dictionaries that do not fit are read from the disk whenever they are needed,
            with the same results. By default dictionaries take three quarters of what is free.
        revision: A commit, tag or branch of the model's repository on the hub; or, to pin the
            dictionaries too, a mapping from the names of repositories to theirs:
            `{"google/gemma-2-2b": commit, "google/gemma-scope-2b-pt-res": another}`.

    Raises:
        UserError: something named here does not exist or cannot be read, or `memory` is too little.
    """
    name = short_name(name)
    scope = _scope(name, dictionaries)
    total = None if memory is None else parse_bytes(memory)
    kinds = check_kinds(sites)
    if {"mlp", "transcoder"} <= set(kinds):
        raise UserError("mlp and transcoder write the same place; choose one of the two sites")
    choice: dict[str, Any] = {"sites": kinds, "width": width, "l0": l0}
    bundled = name in bundled_models()
    repositories = [HUB_MODELS[name]] if name in HUB_MODELS else []
    if scope is not None:
        repositories += [file.source for file in known_files(scope)]
    check_revision(revision, repositories, name)
    # a wrong choice is answered before the model is downloaded
    if scope is not None:
        pins = revision if isinstance(revision, Mapping) else None
        files = scope_files(scope, **choice, revision=pins)
        read = partial(fetch, files, revision=pins)
    elif isinstance(dictionaries, Mapping):
        read = partial(gather, _places(dictionaries))
    else:
        folder = _folder(name, dictionaries)
        read = partial(dictionaries_from_folder, folder, **choice)
    own = revision_of(HUB_MODELS.get(name, name), revision)
    bridge = load_gemma(name, device=device, dtype=dtype, revision=own)
    weights = next(bridge.original_model.parameters())
    where: dict[str, Any] = {"device": weights.device, "dtype": weights.dtype}
    if total is not None:
        where["memory"] = _left(total, bridge.original_model, name)
    texts = _texts(name) if bundled else ()
    model = splice(bridge, read(**where), name=name, example_texts=texts)
    if isinstance(dictionaries, str | Path):
        again = scope or Path(dictionaries).absolute()
        return replace(model, dictionaries_from=str(again))
    return model


def _scope(name: str, dictionaries: object) -> str | None:
    """The model whose Gemma Scope is meant, if it is.

    Raises:
        UserError: it is for a model of another size.
    """
    if dictionaries is None:
        return name if name in HUB_MODELS else None
    scope = short_name(dictionaries) if isinstance(dictionaries, str) else None
    if scope is None or scope not in catalogue():
        return None
    if name in HUB_MODELS and shapes()[name] != shapes()[scope]:
        raise UserError(f"the dictionaries of {scope} do not fit {name}, a model of another size")
    return scope


def _folder(name: str, dictionaries: object) -> Path:
    """Where the dictionaries lie; what is no folder is refused before a model is loaded."""
    if dictionaries is None:
        if name not in bundled_models() and Path(name).is_dir():
            raise UserError(
                f"say where the dictionaries of {name} are: dictionaries=folder (--dictionaries)"
            )
        return BUNDLED / name / "dictionaries"
    if not isinstance(dictionaries, str | Path):
        raise UserError(
            f"dictionaries is a folder, a model's name or a mapping {{Site: path}}; "
            f"got {type(dictionaries).__name__}"
        )
    if Path(dictionaries).is_file():
        raise UserError(
            f"{dictionaries} is one file; say its site, in Python: "
            f"dictionaries={{Site(layer, kind): {str(dictionaries)!r}}}, or name a folder"
        )
    if not Path(dictionaries).is_dir():
        raise UserError(
            f"no folder {dictionaries}; name one with dictionaries, or a model with Gemma Scope: "
            f"{', '.join(catalogue())}"
        )
    return Path(dictionaries)


def _places(
    dictionaries: Mapping[Site, str | Path | Dictionary],
) -> dict[Site, Path | Dictionary]:
    """What is at each site; sites may also be given as text: `mlp.3`."""
    places = {}
    for site, place in dictionaries.items():
        if not isinstance(site, Site | str) or not isinstance(place, str | Path | Dictionary):
            raise UserError(f"dictionaries maps sites to paths; got {site!r}: {place!r}")
        site = Site.parse(site) if isinstance(site, str) else site
        place = place if isinstance(place, Dictionary) else Path(place)
        if isinstance(place, Path) and not place.exists():
            raise UserError(f"there is no {place} for {site}; give a dictionary's file or folder")
        places[site] = place
    return places


def _left(total: int, huggingface: Any, name: str) -> int:
    """What the model leaves of `total` bytes."""
    storages = [weight.untyped_storage() for weight in huggingface.parameters()]
    by_place = {storage.data_ptr(): storage.nbytes() for storage in storages}  # tied ones once
    taken = sum(by_place.values())
    if taken >= total:
        raise UserError(
            f"memory={show_bytes(total)}; {name} alone takes {show_bytes(taken)}, give more"
        )
    return total - taken


def _texts(name: str) -> list[str]:
    """Held-out texts that ship with a bundled model."""
    path = BUNDLED / name / "texts.txt"
    return path.read_text().splitlines() if path.exists() else []
