"""Other libraries' conventions, folded into the five arrays of a `Dictionary`.

Each function returns new arrays that compute the same as the old ones did under the convention. All
of them are exact but for rounding.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from circuits.dictionaries import ARRAYS, OPTIONAL, Dictionary, check_finite, check_shapes

Arrays = Mapping[str, Tensor]
"""`W_enc [d_in, d_sae]`, `b_enc`, `threshold`, `W_dec [d_sae, d_out]`, `b_dec`, maybe
`W_skip` and `W_later`."""


def gate_as_threshold(arrays: Arrays) -> dict[str, Tensor]:
    """A gated dictionary (arXiv 2404.16014, equations 6 and 7) is a JumpReLU one (its appendix E).

    With `z = x @ W_enc`, a gated latent has the activation `relu(exp(r_mag) z + b_mag)` where
    `z + b_gate > 0`. As `exp(r_mag) > 0`, that is where
    `exp(r_mag) z + b_mag > b_mag - exp(r_mag) b_gate`.

    Args:
        arrays: `b_mag`, `b_gate` and `r_mag` `[d_sae]` in place of `b_enc` and `threshold`.
    """
    scale = arrays["r_mag"].exp()
    kept = {key: arrays[key] for key in ("W_dec", "b_dec")}
    return {
        "W_enc": arrays["W_enc"] * scale,
        "b_enc": arrays["b_mag"],
        "threshold": arrays["b_mag"] - scale * arrays["b_gate"],
        **kept,
    }


def check_gate_shapes(arrays: Arrays, path: Path) -> None:
    """Refuse a gated dictionary's arrays by their shapes."""
    shapes = {key: tuple(array.shape) for key, array in arrays.items()}
    for name in ("b_gate", "r_mag"):
        of_five = {key: shapes[key] for key in ("W_enc", "W_dec", "b_dec")}
        of_five |= {"b_enc": shapes["b_mag"], "threshold": shapes[name]}
        check_shapes(of_five, f"{path} (b_mag as b_enc, {name} as threshold)")


def unit_decoder(arrays: Arrays) -> dict[str, Tensor]:
    """Latents measured in units of what they write: `W_dec`'s rows get norm 1, `acts` the norms.

    A latent that writes nothing stays as it is.
    """
    norms = arrays["W_dec"].norm(dim=-1)
    norms = torch.where(norms > 0, norms, 1)
    scaled = {key: arrays[key] * norms for key in ("W_enc", "b_enc", "threshold")}
    return {**arrays, **scaled, "W_dec": arrays["W_dec"] / norms[:, None]}


def input_scaled(arrays: Arrays, factor: float) -> dict[str, Tensor]:
    """What was trained on `factor * x` for `x` itself; activations stay the same."""
    return {
        **arrays,
        "W_enc": arrays["W_enc"] * factor,
        "W_dec": arrays["W_dec"] / factor,
        "b_dec": arrays["b_dec"] / factor,
    }


def b_dec_subtracted(arrays: Arrays) -> dict[str, Tensor]:
    """What encodes `x - b_dec` for `x` itself."""
    return {**arrays, "b_enc": arrays["b_enc"] - arrays["b_dec"] @ arrays["W_enc"]}


def to_dictionary(
    arrays: Arrays,
    path: Path,
    *,
    k: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Dictionary:
    """The dictionary of `arrays`, each latent's column of `W_enc` in one piece.

    Raises:
        UserError: wrong shapes; values that overflowed while they were folded, or do in `dtype`.
    """
    check_shapes({key: tuple(array.shape) for key, array in arrays.items()}, path)
    for key, array in arrays.items():
        check_finite(key, array, path)
    W_enc = arrays["W_enc"].T.contiguous().T
    b_enc, threshold, W_dec, b_dec = (arrays[key].contiguous() for key in ARRAYS[1:])
    W_skip, W_later = (arrays.get(key) for key in OPTIONAL)
    dictionary = Dictionary(
        W_enc, b_enc, threshold, W_dec, b_dec, k, W_skip, W_later, name=str(path)
    )
    return dictionary.to(device=device, dtype=dtype)
