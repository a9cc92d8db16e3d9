"""A model with its dictionaries, in one call."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from circuits.catalogue import catalogue
from circuits.dictionaries import Dictionary
from circuits.errors import UserError
from circuits.loading.gemma_scope import dictionaries_from_folder, fetch, scope_files
from circuits.loading.hub import Revision
from circuits.loading.models import BUNDLED, HUB_MODELS, bundled_models, load_gemma
from circuits.loading.shapes import shapes
from circuits.loading.sources import gather
from circuits.memory import parse_bytes, show_bytes
from circuits.sites import KINDS, Site, check_kinds
from circuits.splice import SplicedModel, splice


def load(
    name: str | Path,
    *,
    dictionaries: str | Path | Mapping[Site, str | Path | Dictionary] | None = None,
    sites: Iterable[str] = KINDS,
    width: str = "16k",
    l0: str | int = "canonical",
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
        width: Which width of dictionary, where a layer has several: `16k`, `65k`, ...
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
    name = str(name)
    scope = _scope(name, dictionaries)
    total = None if memory is None else parse_bytes(memory)
    kinds = check_kinds(sites)
    if {"mlp", "transcoder"} <= set(kinds):
        raise UserError("mlp and transcoder write the same place; choose one of the two sites")
    choice = {"sites": kinds, "width": width, "l0": l0}
    bundled = name in bundled_models()
    pins = revision if isinstance(revision, Mapping) else None
    files = None
    if scope is not None:
        # a wrong choice is answered before the model is downloaded
        files = scope_files(scope, **choice, revision=_without(pins, HUB_MODELS.get(name)))
    elif dictionaries is not None:
        _check_own(dictionaries)
    elif not bundled and Path(name).is_dir():
        raise UserError(
            f"say where the dictionaries of {name} are: dictionaries=folder (--dictionaries)"
        )
    own = revision if pins is None else pins.get(HUB_MODELS.get(name, name))
    bridge = load_gemma(name, device=device, dtype=dtype, revision=own)
    weights = next(bridge.original_model.parameters())
    where: dict[str, Any] = {"device": weights.device, "dtype": weights.dtype}
    if total is not None:
        where["memory"] = _left(total, bridge.original_model, name)
    if files is not None:
        found = fetch(files, revision=pins, **where)
    elif isinstance(dictionaries, Mapping):
        found = gather(_places(dictionaries), **where)
    else:
        folder = dictionaries or BUNDLED / name / "dictionaries"
        found = dictionaries_from_folder(folder, **choice, **where)
    model = splice(bridge, found, name=name, example_texts=_texts(name) if bundled else ())
    if isinstance(dictionaries, str | Path):
        again = dictionaries if scope is not None else Path(dictionaries).absolute()
        return replace(model, dictionaries_from=str(again))
    return model


def _scope(name: str, dictionaries: object) -> str | None:
    """The model whose Gemma Scope is meant, if it is.

    Raises:
        UserError: it is for a model of another size.
    """
    if not (isinstance(dictionaries, str) and dictionaries in catalogue()):
        return name if dictionaries is None and name in HUB_MODELS else None
    if name in HUB_MODELS and shapes()[name] != shapes()[dictionaries]:
        raise UserError(
            f"the dictionaries of {dictionaries} do not fit {name}, a model of another size"
        )
    return dictionaries


def _check_own(dictionaries: object) -> None:
    """Refuse, before a model is loaded, what is neither a folder nor a mapping."""
    if not isinstance(dictionaries, str | Path | Mapping):
        raise UserError(
            f"dictionaries is a folder, a model's name or a mapping {{Site: path}}; "
            f"got {type(dictionaries).__name__}"
        )
    if isinstance(dictionaries, str | Path) and not Path(dictionaries).is_dir():
        raise UserError(
            f"no folder {dictionaries}; name one with dictionaries, or a model with Gemma Scope: "
            f"{', '.join(catalogue())}"
        )


def _places(
    dictionaries: Mapping[Site, str | Path | Dictionary],
) -> dict[Site, Path | Dictionary]:
    """What is at each site; sites may also be given as text: `mlp.3`."""
    places = {}
    for site, place in dictionaries.items():
        if not isinstance(site, Site | str) or not isinstance(place, str | Path | Dictionary):
            raise UserError(f"dictionaries maps sites to paths; got {site!r}: {place!r}")
        site = Site.parse(site) if isinstance(site, str) else site
        places[site] = place if isinstance(place, Dictionary) else Path(place)
    return places


def _without(pins: Mapping[str, str] | None, repository: str | None) -> Mapping[str, str] | None:
    """Pins of dictionaries alone: the model's own one is for `load_gemma`."""
    return pins and {repo: pin for repo, pin in pins.items() if repo != repository}


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
