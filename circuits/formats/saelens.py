"""Dictionaries as SAELens keeps them: a folder with `cfg.json` and `sae_weights.safetensors`.

Read are the configs of SAELens 6 and the flat ones before it (defaults as in `sae_lens`'
`handle_pre_6_0_config`). What SAELens does at inference is folded into the arrays:

1. `gated`: the gate becomes a threshold.
2. `rescale_acts_by_decoder_norm` (TopK): latents are measured in units of their decoder row.
3. `normalize_activations: expected_average_only_in` (a training checkpoint): the factor in
   `activation_scaler.json`.
4. `apply_b_dec_to_input` (on unless the config says otherwise): `b_enc - b_dec @ W_enc`.
5. A transcoder's `W_skip`, stored `[d_out, d_in]`, is transposed.

A BatchTopK dictionary is saved by SAELens as the JumpReLU one that it is at inference.
"""

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuits.dictionaries import Dictionary, check_shapes
from circuits.errors import UserError
from circuits.formats.array_files import read_json, read_safetensors, take
from circuits.formats.folding import (
    b_dec_subtracted,
    check_gate_shapes,
    gate_as_threshold,
    input_scaled,
    to_dictionary,
    unit_decoder,
)
from circuits.sites import Site

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"

HOOK_SETTINGS = ("hook_name", "hook_name_out", "hook_head_index")
"""What SAELens 6 moved into the config's `metadata`."""

OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
"""Settings that were renamed."""

_PLAIN = ("W_enc", "b_enc", "W_dec", "b_dec")
ARRAYS_OF = {
    "standard": _PLAIN,
    "topk": _PLAIN,
    "jumprelu": (*_PLAIN, "threshold"),
    "gated": ("W_enc", "b_gate", "b_mag", "r_mag", "W_dec", "b_dec"),
    "transcoder": _PLAIN,
    "skip_transcoder": (*_PLAIN, "W_skip"),
    "jumprelu_transcoder": (*_PLAIN, "threshold"),
    "jumprelu_skip_transcoder": (*_PLAIN, "threshold", "W_skip"),
}
"""The arrays of each architecture that is a `Dictionary`."""

KIND_OF_HOOK = {"attn.hook_z": "attn", "hook_mlp_out": "mlp", "hook_resid_post": "resid"}
"""Our kind of site for TransformerLens' name of a tensor within a layer."""


def load_saelens(
    folder: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Dictionary:
    """Read what SAELens saved in `folder`, by `save_model` or `save_inference_model`.

    `device` is the CPU and `dtype` float32 unless given, whatever the file's own dtype.

    Raises:
        UserError: a file is missing or damaged; an architecture or a normalisation that is not a
            `Dictionary`; arrays missing, unknown, of the wrong shape or dtype, or not finite.
    """
    folder = Path(folder)
    config = read_config(folder)
    architecture = config["architecture"]
    if architecture not in ARRAYS_OF:
        raise UserError(
            f"{folder / CONFIG}: architecture {architecture!r} cannot be read as a dictionary; "
            f"those that can are {', '.join(ARRAYS_OF)} (SAELens' save_inference_model turns a "
            "batchtopk training checkpoint into jumprelu)"
        )
    k = _k(config, folder)
    factor = _input_factor(config, folder)
    subtracts = _subtracts_b_dec(config, folder)
    arrays = _arrays(config, folder, dtype)
    if architecture == "topk" and _flag(config, "rescale_acts_by_decoder_norm", False, folder):
        arrays = unit_decoder(arrays)
    if factor is not None:
        arrays = input_scaled(arrays, factor)
    if subtracts:
        arrays = b_dec_subtracted(arrays)
    return to_dictionary(arrays, folder, k=k, device=device, dtype=dtype)


def read_config(folder: Path) -> dict[str, Any]:
    """The settings in `folder`, old and new, with the names of SAELens 6 and without nesting.

    Raises:
        UserError: `cfg.json` is missing, damaged, or for one attention head alone.
    """
    config = read_json(folder / CONFIG)
    metadata = config.get("metadata")
    if isinstance(metadata, dict):
        config |= {key: metadata[key] for key in HOOK_SETTINGS if key in metadata}
    for old, new in OLD_NAMES.items():
        if old in config:
            config.setdefault(new, config[old])
    config["architecture"] = str(config.get("architecture") or "standard")
    activation = config.get("activation_fn") or "relu"
    if activation == "topk":
        if config["architecture"] not in ("standard", "topk"):
            raise UserError(
                f"{folder / CONFIG}: activation function 'topk' and architecture "
                f"{config['architecture']!r}; only standard and topk are read with it"
            )
        config["architecture"] = "topk"
        kwargs = config.get("activation_fn_kwargs")
        if isinstance(kwargs, dict) and kwargs.get("k") is not None:
            config["k"] = kwargs["k"]
    elif activation != "relu":
        raise UserError(
            f"{folder / CONFIG}: activation function {activation!r} cannot be read as a "
            "dictionary; those that can are relu and topk"
        )
    reshape = config.get("reshape_activations") or "none"
    head = config.get("hook_head_index")
    if head is not None or reshape not in ("none", "hook_z"):
        came = f"attention head {head}" if head is not None else f"inputs reshaped by {reshape!r}"
        raise UserError(
            f"{folder / CONFIG}: for {came} alone; a dictionary reads the whole of a "
            "residual stream, an MLP, or hook_z with its heads concatenated"
        )
    return config


def site_of_saelens(folder: str | Path) -> Site | None:
    """Where the config says that the dictionary belongs, or `None` where that is no site.

    A transcoder belongs to `transcoder.L` if it reads the normalised input of layer L's MLP before
    the norm's gain, `ln2.hook_normalized`, and writes that MLP's output. One that reads
    `mlp.hook_in`, after the gain, belongs to no site.

    Raises:
        UserError: see `read_config`.
    """
    config = read_config(Path(folder))
    hook = config.get("hook_name")
    if not _is_transcoder(config):
        return site_of_hook(hook)
    target = site_of_hook(config.get("hook_name_out"))
    if target is None or target.kind != "mlp":
        return None
    reads = f"blocks.{target.layer}.ln2.hook_normalized"
    return Site(target.layer, "transcoder") if hook == reads else None


def site_of_hook(hook: object) -> Site | None:
    """The site with TransformerLens' name `hook`; the residual before a layer is that after the
    layer below, and before the first it is the embedding.

    >>> str(site_of_hook("blocks.3.attn.hook_z")), str(site_of_hook("blocks.3.hook_resid_pre"))
    ('attn.3', 'resid.2')
    """
    if hook == "hook_embed":
        return Site(0, "embed")
    match = re.fullmatch(r"blocks\.(\d+)\.([\w.]+)", hook) if isinstance(hook, str) else None
    if match is None:
        return None
    layer = int(match[1])
    if match[2] == "hook_resid_pre":
        return Site(layer - 1, "resid") if layer > 0 else Site(0, "embed")
    return Site(layer, KIND_OF_HOOK[match[2]]) if match[2] in KIND_OF_HOOK else None


def _arrays(config: dict[str, Any], folder: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The arrays in `folder`, checked against the config, with a threshold; nothing else folded."""
    path = folder / WEIGHTS
    architecture = config["architecture"]
    tensors = read_safetensors(path)
    scaling = tensors.pop("scaling_factor", None)
    if scaling is not None and not torch.equal(scaling, torch.ones_like(scaling)):
        raise UserError(
            f"{path}: a scaling_factor that is not 1, which SAELens 6 does not apply either; "
            "multiply the rows of W_dec by it and save the dictionary without"
        )
    arrays = take(
        tensors, ARRAYS_OF[architecture], path, what=f"architecture {architecture}", dtype=dtype
    )
    if architecture == "gated":
        check_gate_shapes(arrays, path)
        arrays = gate_as_threshold(arrays)
    arrays.setdefault("threshold", torch.zeros_like(arrays["b_enc"]))
    if "W_skip" in arrays:
        arrays["W_skip"] = arrays["W_skip"].mT if arrays["W_skip"].dim() == 2 else arrays["W_skip"]
    shapes = {key: tuple(array.shape) for key, array in arrays.items()}
    check_shapes(shapes, path)
    _check_sizes(config, folder, shapes)
    return arrays


def _check_sizes(config: dict[str, Any], folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    d_in, d_sae = shapes["W_enc"]
    sizes = {"d_in": d_in, "d_sae": d_sae}
    if _is_transcoder(config):
        sizes["d_out"] = shapes["W_dec"][1]
    for key, size in sizes.items():
        if config.get(key, size) != size:
            raise UserError(
                f"{folder}: {CONFIG} says {key}={config[key]} and {WEIGHTS} has {size}; "
                "fetch both files again, from one place"
            )


def _k(config: dict[str, Any], folder: Path) -> int | None:
    if config["architecture"] != "topk":
        return None
    k = config.get("k")
    if not isinstance(k, int) or isinstance(k, bool):
        raise UserError(
            f"{folder / CONFIG}: k is {k!r} for a topk dictionary; write how many latents of a "
            'position may be active, for example "k": 50'
        )
    return k


def _input_factor(config: dict[str, Any], folder: Path) -> float | None:
    """By what the input is multiplied before it is encoded, or `None`."""
    kind = config.get("normalize_activations")
    if kind is None or kind is False or kind == "none":
        return None
    kind = "expected_average_only_in" if kind is True else kind
    transcoder = _is_transcoder(config)
    if kind != "expected_average_only_in" or transcoder:
        of = "a transcoder with " if transcoder else ""
        raise UserError(
            f"{folder / CONFIG}: {of}normalize_activations {kind!r} is not a fixed scale of "
            "the input; use a dictionary that was trained with 'none', or into which SAELens has "
            "folded it"
        )
    if not (folder / SCALER).is_file():
        raise UserError(
            f"{folder / CONFIG}: normalize_activations 'expected_average_only_in', and no "
            f'{SCALER} beside it to say the factor; put {{"scaling_factor": ...}} there, '
            "sqrt(d_in) over the mean norm of the activations (1 if it is folded in already)"
        )
    factor = read_json(folder / SCALER).get("scaling_factor")
    if not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
        raise UserError(f"{folder / SCALER}: scaling_factor is {factor!r}; write a positive number")
    return float(factor)


def _subtracts_b_dec(config: dict[str, Any], folder: Path) -> bool:
    transcoder = _is_transcoder(config)
    subtracts = _flag(config, "apply_b_dec_to_input", not transcoder, folder)
    if transcoder and subtracts:
        raise UserError(
            f"{folder / CONFIG}: apply_b_dec_to_input for a transcoder, whose b_dec lives in what "
            "it writes; set it to false"
        )
    return subtracts


def _is_transcoder(config: dict[str, Any]) -> bool:
    return str(config["architecture"]).endswith("transcoder")


def _flag(config: dict[str, Any], key: str, default: bool, folder: Path) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise UserError(f"{folder / CONFIG}: {key} is {value!r}; write true or false")
    return value
