"""Dictionaries as the library `dictionary_learning` keeps them: `ae.pt` and `config.json`.

The class is the one that `trainer.dict_class` of the config names, and computes what the library's
`load_dictionary(folder)` and then `encode(x)` and `decode(f)` do (version 0.1.0 on PyPI):

- `AutoEncoder` encodes `x - bias`; `load_dictionary` brings its decoder to unit norm.
- `AutoEncoderNew` encodes `x`, with a decoder as it is.
- `GatedAutoEncoder` encodes `x - decoder_bias`; its gate becomes a threshold.
- `JumpReluAutoEncoder` encodes `x`.
- `AutoEncoderTopK` encodes `x - b_dec` and keeps the `k` largest.
- `BatchTopKSAE`, `MatryoshkaBatchTopKSAE` encode `x - b_dec` and keep what is above the one
  `threshold` learned in training (-1, which keeps all, if training ended before it was learned).

`nn.Linear` weights are stored `[out, in]` and transposed here.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuits.dictionaries import Dictionary, check_shapes
from circuits.errors import UserError
from circuits.formats.array_files import read_json, read_state_dict, take
from circuits.formats.folding import (
    b_dec_subtracted,
    check_gate_shapes,
    gate_as_threshold,
    to_dictionary,
    unit_decoder,
)
from circuits.sites import Site

WEIGHTS, CONFIG = "ae.pt", "config.json"

_LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
_OWN = {key: key for key in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
NAMES_OF = {
    "AutoEncoder": {**_LINEAR, "b_dec": "bias"},
    "AutoEncoderNew": {**_LINEAR, "b_dec": "decoder.bias"},
    "GatedAutoEncoder": {
        "W_enc": "encoder.weight",
        "b_mag": "mag_bias",
        "b_gate": "gate_bias",
        "r_mag": "r_mag",
        "W_dec": "decoder.weight",
        "b_dec": "decoder_bias",
    },
    "JumpReluAutoEncoder": _OWN,
    "AutoEncoderTopK": {**_LINEAR, "b_dec": "b_dec"},
    "BatchTopKSAE": {**_LINEAR, "b_dec": "b_dec", "threshold": "threshold"},
    "MatryoshkaBatchTopKSAE": _OWN,
}
"""For each class, our names of the arrays and the state dict's."""

BUFFERS = {
    "AutoEncoderTopK": ("k", "threshold"),
    "BatchTopKSAE": ("k",),
    "MatryoshkaBatchTopKSAE": ("k", "group_sizes"),
}
"""What else may be in a state dict; `AutoEncoderTopK` does not use its threshold."""

SUBTRACTS_B_DEC = {
    "AutoEncoder",
    "GatedAutoEncoder",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
}

SUBMODULES = {
    "resid_post": "resid",
    "mlp_out": "mlp",
    "attn_z": "attn",
    "hook_z": "attn",
    "attn.hook_z": "attn",
}
"""Kinds of site for the start of a `submodule_name` such as `resid_post_layer_3`."""


def load_dictionary_learning(
    path: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Dictionary:
    """Read what the library's `trainSAE` saved.

    Args:
        path: The folder with `ae.pt` and `config.json`, or another `.pt` file beside a
            `config.json`.
        device: The CPU unless given.
        dtype: float32 unless given.

    Raises:
        UserError: a file is missing or damaged; a class that is not a `Dictionary`; arrays missing,
            unknown, of the wrong shape or dtype, or not finite; `k` missing or contradicted.
    """
    path = Path(path)
    path = path if path.suffix == ".pt" else path / WEIGHTS
    trainer = _trainer(path.parent)
    cls = trainer.get("dict_class")
    if not isinstance(cls, str) or cls not in NAMES_OF:
        raise UserError(
            f"{path.parent / CONFIG}: dict_class {cls!r} cannot be read as a dictionary; those "
            f"that can are {', '.join(NAMES_OF)}"
        )
    state = read_state_dict(path)
    arrays = _arrays(cls, state, path, dtype)
    _check_sizes(trainer, arrays, path)
    if cls == "GatedAutoEncoder":
        arrays = gate_as_threshold(arrays)
    if cls == "AutoEncoder":
        arrays = unit_decoder(arrays)
    if cls in SUBTRACTS_B_DEC:
        arrays = b_dec_subtracted(arrays)
    k = _k(trainer, state, path) if cls == "AutoEncoderTopK" else None
    return to_dictionary(arrays, path, k=k, device=device, dtype=dtype)


def site_of_dictionary_learning(path: str | Path) -> Site | None:
    """Where `trainer.layer` and `trainer.submodule_name` say that the dictionary belongs.

    `resid_post_layer_3` is the residual after layer 3, `mlp_out_layer_3` what its MLP adds;
    `attn_z_layer_3` and names with `hook_z` are the heads' outputs. The output of the whole
    attention (`attn_out`) is no site, nor is a name that is not known: `None`.

    Raises:
        UserError: `config.json` is missing, damaged, or names two layers.
    """
    path = Path(path)
    folder = path.parent if path.suffix == ".pt" else path
    trainer = _trainer(folder)
    layer, name = trainer.get("layer"), trainer.get("submodule_name")
    if not isinstance(layer, int) or isinstance(layer, bool) or not isinstance(name, str):
        return None
    match = re.fullmatch(r"(?:blocks\.(\d+)\.)?(?:hook_)?([a-z_.]+?)(?:_layer_?(\d+))?", name)
    if match is None or layer < 0:
        return None
    named = {int(number) for number in (match[1], match[3]) if number is not None}
    if named - {layer}:
        raise UserError(
            f"{folder / CONFIG}: layer is {layer} and submodule_name {name!r}; correct one of them"
        )
    kind = SUBMODULES.get(match[2])
    return None if kind is None else Site(layer, kind)


def _trainer(folder: Path) -> dict[str, Any]:
    trainer = read_json(folder / CONFIG).get("trainer")
    if not isinstance(trainer, dict):
        raise UserError(
            f'{folder / CONFIG} has no "trainer": {{...}}, where dictionary_learning writes the '
            "class of the dictionary; take the config.json that trainSAE wrote"
        )
    return trainer


def _arrays(
    cls: str, state: dict[str, Tensor], path: Path, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """The arrays under our names and the right way round, with a threshold; nothing else folded."""
    names = NAMES_OF[cls]
    taken = take(
        state,
        tuple(names.values()),
        path,
        what=f"an {cls}" if cls[0] in "AEIO" else f"a {cls}",
        ignore=BUFFERS.get(cls, ()),
        dtype=dtype,
    )
    arrays = {key: taken[name] for key, name in names.items()}
    for key in ("W_enc", "W_dec"):
        if names[key].endswith(".weight") and arrays[key].dim() == 2:
            arrays[key] = arrays[key].T
    if cls == "GatedAutoEncoder":
        check_gate_shapes(arrays, path)
        return arrays
    arrays.setdefault("threshold", torch.zeros_like(arrays["b_enc"]))
    if cls.endswith("BatchTopKSAE") and arrays["threshold"].dim() == 0:
        arrays["threshold"] = arrays["threshold"].expand(arrays["b_enc"].shape)
    check_shapes({key: tuple(array.shape) for key, array in arrays.items()}, path)
    return arrays


def _check_sizes(trainer: dict[str, Any], arrays: dict[str, Tensor], path: Path) -> None:
    d_in, d_sae = arrays["W_enc"].shape
    for key, size in (("activation_dim", d_in), ("dict_size", d_sae)):
        if trainer.get(key, size) != size:
            raise UserError(
                f"{path.parent}: {CONFIG} says {key}={trainer[key]} and {path.name} has {size}; "
                "fetch both files again, from one place"
            )


def _k(trainer: dict[str, Any], state: dict[str, Tensor], path: Path) -> int:
    """What the config and the state dict say; the library too refuses two that differ."""
    said = {}
    if "k" in trainer:
        said[CONFIG] = trainer["k"]
    if "k" in state and state["k"].numel() == 1:
        said[path.name] = state["k"].item()
    values = list(said.values())
    if not values or values.count(values[0]) < len(values) or type(values[0]) is not int:
        came = " and ".join(f"{value!r} in {place}" for place, value in said.items()) or "nowhere"
        raise UserError(
            f"{path.parent}: k of this AutoEncoderTopK is {came}; write into {CONFIG} how many "
            'latents of a position may be active, "trainer": {"k": ...}'
        )
    return values[0]
