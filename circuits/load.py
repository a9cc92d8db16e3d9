"""A model with its dictionaries, in one call."""

from collections.abc import Iterable
from pathlib import Path

import torch

from circuits.errors import UserError
from circuits.gemma_scope import dictionaries_from_folder, gemma_scope, scope_files
from circuits.models import BUNDLED, HUB_MODELS, bundled_models, load_gemma
from circuits.sites import KINDS, check_kinds
from circuits.splice import SplicedModel, splice


def load(
    name: str | Path,
    *,
    dictionaries: str | Path | None = None,
    sites: Iterable[str] = KINDS,
    width: str = "16k",
    l0: str | int = "canonical",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> SplicedModel:
    """Gemma 2 with a dictionary spliced in at every layer that has one, at each kind of site.

    Args:
        name: `tiny` (ships with the project), a Gemma 2 such as `gemma-2-2b` (from the Hugging
            Face hub, with Gemma Scope), or a Hugging Face folder of your own.
        dictionaries: A folder that mirrors the hub: one folder a kind, its name ending in `-res`,
            `-att` or `-mlp`, below it `layer_L/width_W/average_l0_X/params.npz`. Needed for a
            folder of your own, optional for the others.
        sites: Kinds of site: any of `attn`, `mlp`, `resid`.
        width: Which width of dictionary, where a layer has several: `16k`, `65k`, ...
        l0: Which sparsity: `canonical` (average L0 nearest 100), a number, or `nearest:50`.
        device: CUDA when there is one, by default.
        dtype: Of the model and the dictionaries; by default the one the model is stored in.

    Raises:
        UserError: something named here does not exist or cannot be read.
    """
    name = str(name)
    choice = {"sites": check_kinds(sites), "width": width, "l0": l0}
    bundled = name in bundled_models()
    if dictionaries is None and name in HUB_MODELS:
        scope_files(name, **choice)  # a wrong choice is answered before the model is downloaded
    elif dictionaries is None and not bundled and Path(name).is_dir():
        raise UserError(
            f"say where the dictionaries of {name} are: dictionaries=folder (--dictionaries)"
        )
    bridge = load_gemma(name, device=device, dtype=dtype)
    weights = next(bridge.original_model.parameters())
    choice |= {"device": weights.device, "dtype": weights.dtype}
    if dictionaries is None and not bundled:
        found = gemma_scope(name, **choice)
    else:
        found = dictionaries_from_folder(dictionaries or BUNDLED / name / "dictionaries", **choice)
    return splice(bridge, found, name=name, example_texts=_texts(name) if bundled else ())


def _texts(name: str) -> list[str]:
    """Held-out texts that ship with a bundled model."""
    path = BUNDLED / name / "texts.txt"
    return path.read_text().splitlines() if path.exists() else []
