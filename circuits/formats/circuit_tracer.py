"""Cross-layer transcoders as circuit-tracer keeps them: two files a layer, and a `config.yaml`.

- `W_enc_L.safetensors`: `W_enc_L [d_sae, d_in]`, `b_enc_L`, `b_dec_L`, and `threshold_L [d_sae]`
  (without it, ReLU).
- `W_dec_L.safetensors`: `W_dec_L [d_sae, n_layers - L, d_out]`, what is written to layers L,
  L + 1, ...

The config says what they read, `feature_input_hook`: the residual stream before the MLP's norm
(`hook_resid_mid`) or what that norm makes of it before its gain (`ln2.hook_normalized`).
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from circuits.dictionaries import Dictionary
from circuits.errors import UserError
from circuits.formats.array_files import read_safetensors, take
from circuits.formats.folding import to_dictionary
from circuits.sites import Site

CONFIG = "config.yaml"

FILE = re.compile(r"W_(?:enc|dec)_(\d+)\.safetensors")

READS_RESIDUAL = {"hook_resid_mid": True, "ln2.hook_normalized": False}
"""By `feature_input_hook`."""


def load_circuit_tracer(
    path: Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Dictionary:
    """Read one layer of a cross-layer transcoder; `path` is either of its two files.

    Raises:
        UserError: a file is missing or damaged; arrays missing, unknown, of the wrong shape or
            dtype, or not finite; it reads or writes where a transcoder here does not.
    """
    layer = layer_of(path)
    assert layer is not None, f"{path} is no file of a cross-layer transcoder"
    residual = READS_RESIDUAL[_input_hook(path.with_name(CONFIG))]
    encoder, decoder = (path.with_name(f"W_{part}_{layer}.safetensors") for part in ("enc", "dec"))
    what = "a cross-layer transcoder's layer"
    tensors = read_safetensors(encoder)
    keys = [f"{key}_{layer}" for key in ("W_enc", "b_enc", "b_dec", "threshold")]
    relu = keys[-1] not in tensors
    arrays = take(tensors, keys[:-1] if relu else keys, encoder, what=what, dtype=dtype)
    arrays |= take(read_safetensors(decoder), [f"W_dec_{layer}"], decoder, what=what, dtype=dtype)
    arrays = {key.removesuffix(f"_{layer}"): array for key, array in arrays.items()}
    W_dec = arrays["W_dec"]
    if arrays["W_enc"].dim() != 2 or W_dec.dim() != 3 or 0 in W_dec.shape:
        raise UserError(
            f"{decoder}: W_dec_{layer} has the shape {list(W_dec.shape)} and W_enc_{layer} "
            f"{list(arrays['W_enc'].shape)}; expected [d_sae, n_layers - {layer}, d_out] and "
            "[d_sae, d_in]"
        )
    arrays |= {"W_enc": arrays["W_enc"].T, "W_dec": W_dec[:, 0]}
    if relu:
        arrays["threshold"] = torch.zeros_like(arrays["b_enc"])
    if W_dec.shape[1] > 1:
        arrays["W_later"] = W_dec[:, 1:].contiguous()
    read = to_dictionary(arrays, decoder, device=device, dtype=dtype)
    return replace(read, reads_residual=residual)


def layer_of(path: Path) -> int | None:
    """The layer in the name of a cross-layer transcoder's file; `None` for other files."""
    match = FILE.fullmatch(path.name)
    return int(match[1]) if match else None


def site_of_circuit_tracer(path: Path) -> Site:
    """Where the latents in the file `path` read."""
    layer = layer_of(path)
    assert layer is not None, f"{path} is no file of a cross-layer transcoder"
    return Site(layer, "transcoder")


def _input_hook(path: Path) -> str:
    """`feature_input_hook` of the config at `path`, one that can be spliced in here."""
    config = _read_yaml(path)
    kind, reads, writes = (
        config.get(key) for key in ("model_kind", "feature_input_hook", "feature_output_hook")
    )
    if kind != "cross_layer_transcoder":
        raise UserError(f"{path}: model_kind {kind!r}; only cross_layer_transcoder is read here")
    if reads not in READS_RESIDUAL or writes != "hook_mlp_out":
        raise UserError(
            f"{path}: a cross-layer transcoder from {reads} to {writes}; only those from "
            f"{' or '.join(READS_RESIDUAL)} to hook_mlp_out can be spliced in"
        )
    return str(reads)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read {path}, which says what a cross-layer transcoder reads: {error.strerror}"
        ) from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged or is not YAML; fetch it again") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} holds a {type(config).__name__}; it should hold settings")
    return config
