"""A dictionary: a sparse autoencoder, or a transcoder, whose latents switch on at a threshold."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from circuits.errors import UserError

ARRAYS = ("W_enc", "b_enc", "threshold", "W_dec", "b_dec")
"""The arrays of a JumpReLU dictionary, as Gemma Scope names them."""

OPTIONAL = ("W_skip", "W_later")
"""Those that only some have."""

MATRICES = ("W_enc", "W_dec", *OPTIONAL)
"""The large ones: they take the dtype that is asked for; the vectors never less than float32."""


@dataclass(frozen=True, eq=False, repr=False)
class Dictionary:
    """A JumpReLU sparse autoencoder (Gemma Scope, arXiv 2408.05147, equations 1 to 3).

        pre = x @ W_enc + b_enc
        acts = relu(pre) * (pre > threshold)
        x_hat = acts @ W_dec + b_dec

    The same formula holds a ReLU dictionary (`threshold` 0), a gated one (its gate is a threshold),
    with `k` a TopK one (the `k` largest activations of a position stay), and with `W_skip` a
    transcoder with a skip connection (`x_hat` gains `x @ W_skip`). With `W_later` it is one layer
    of a cross-layer transcoder: its latents also write to the layers that follow, each with a
    decoder of its own (Ameisen et al. 2025, "Circuit Tracing"); `x_hat` is what they write here.

    Matrices may be of a narrow dtype such as bfloat16. Vectors are then best float32: they are
    small, and a rounded threshold switches latents. Activations and reconstructions come out in
    the wider of the two.

    Attributes:
        W_enc: `[d_in, d_sae]`.
        b_enc: `[d_sae]`.
        threshold: `[d_sae]`.
        W_dec: `[d_sae, d_out]`.
        b_dec: `[d_out]`.
        k: At most so many latents of a position are active; `None` for no such bound.
        W_skip: `[d_in, d_out]`, or `None`.
        W_later: What latents write to each of the next layers, `[d_sae, n_later, d_out]`, or
            `None`.
        reads_residual: Whether a transcoder reads the residual stream as it enters the norm before
            the MLP, instead of what that norm makes of it before its gain.
        name: Where it came from, for example `layer_3/width_1k/average_l0_14`.
        average_l0: Active latents a token, as measured by whoever trained it.

    Raises:
        UserError: shapes, dtypes or devices that do not agree.
    """

    W_enc: Tensor
    b_enc: Tensor
    threshold: Tensor
    W_dec: Tensor
    b_dec: Tensor
    k: int | None = None
    W_skip: Tensor | None = None
    W_later: Tensor | None = None
    reads_residual: bool = False
    name: str = "unnamed"
    average_l0: float | None = None

    def __post_init__(self) -> None:
        arrays = self.arrays
        check_shapes({key: tuple(array.shape) for key, array in arrays.items()}, self.name)
        for keys in (MATRICES, ("b_enc", "threshold", "b_dec")):
            dtypes = {
                str(arrays[key].dtype).removeprefix("torch.") for key in keys if key in arrays
            }
            if len(dtypes) > 1 or not arrays[keys[0]].is_floating_point():
                raise UserError(
                    f"{self.name}: arrays of dtype {', '.join(sorted(dtypes))}; "
                    f"give {', '.join(keys)} the same floating dtype, for example float32"
                )
        devices = {str(array.device) for array in arrays.values()}
        if len(devices) > 1:
            raise UserError(
                f"{self.name}: arrays on {' and '.join(sorted(devices))}; use one device"
            )
        if self.k is not None and not 0 < self.k <= self.d_sae:
            raise UserError(f"{self.name}: k={self.k}; choose from 1 to {self.d_sae} latents")

    def __repr__(self) -> str:
        sizes = f"d_in={self.d_in}, d_sae={self.d_sae}, d_out={self.d_out}"
        return f"Dictionary({self.name!r}, {sizes}, {self.W_enc.dtype}, {self.W_enc.device})"

    @property
    def arrays(self) -> dict[str, Tensor]:
        """The tensors by name, in the order of the fields."""
        there = [key for key in OPTIONAL if getattr(self, key) is not None]
        return {key: getattr(self, key) for key in (*ARRAYS, *there)}

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    @property
    def n_later(self) -> int:
        """How many layers after its own a cross-layer transcoder writes to; 0 for all others."""
        return 0 if self.W_later is None else self.W_later.shape[1]

    @property
    def decoders(self) -> tuple[Tensor, ...]:
        """`W_dec`, and the decoders for the next layers in their order; `[d_sae, d_out]` each."""
        return (self.W_dec, *(() if self.W_later is None else self.W_later.unbind(1)))

    @property
    def n_bytes(self) -> int:
        """What the tensors take."""
        return sum(array.numel() * array.element_size() for array in self.arrays.values())

    def pre_acts(self, x: Tensor) -> Tensor:
        """Pre-activations `[..., d_sae]` of `x [..., d_in]`, whatever the dtype of `x`."""
        return x.to(self.W_enc.dtype) @ self.W_enc + self.b_enc

    def encode(self, x: Tensor) -> Tensor:
        """Activations `[..., d_sae]` of `x [..., d_in]`.

        A gradient reaches `x` through the active latents alone (`d acts / d pre` is 1 or 0); the
        thresholds get none.
        """
        return self.switch(self.pre_acts(x))

    def switch(self, pre: Tensor) -> Tensor:
        """Activations `[..., d_sae]` from pre-activations."""
        acts = torch.relu(pre) * (pre > self.threshold)  # strictly: one at its threshold is off
        if self.k is None:
            return acts
        largest = acts.topk(self.k, dim=-1)
        return torch.zeros_like(acts).scatter(-1, largest.indices, largest.values)

    def decode(self, acts: Tensor, x: Tensor | None = None) -> Tensor:
        """Reconstruction `[..., d_out]` from `acts [..., d_sae]`.

        Args:
            x: What was encoded, `[..., d_in]`; only a skip connection needs it.
        """
        x_hat = acts.to(self.W_dec.dtype) @ self.W_dec + self.b_dec
        if self.W_skip is None:
            return x_hat
        assert x is not None, "a skip connection passes on what was encoded"
        return x_hat + self.skip(x)

    def skip(self, x: Tensor) -> Tensor:
        """What the skip connection makes of `x [..., d_in]`, `[..., d_out]`; it must have one."""
        assert self.W_skip is not None, f"{self.name} has no skip connection"
        return x.to(self.W_skip.dtype) @ self.W_skip

    def to(
        self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Dictionary":
        """The same dictionary on `device` with its matrices in `dtype`; `None` keeps what it has.

        Vectors are kept in `dtype` or float32, whichever is wider.

        Raises:
            UserError: values too large for `dtype`.
        """
        moved = {
            key: array.to(device=device, dtype=dtype_of(key, dtype))
            for key, array in self.arrays.items()
        }
        if dtype is not None:
            for key, array in moved.items():
                check_finite(key, array, self.name)
        return replace(self, **moved)


def dtype_of(key: str, dtype: torch.dtype | None) -> torch.dtype | None:
    """The dtype that the array `key` has in a dictionary of `dtype`."""
    if dtype is None or key in MATRICES:
        return dtype
    return torch.promote_types(dtype, torch.float32)


def check_shapes(shapes: Mapping[str, tuple[int, ...]], name: object) -> None:
    """Refuse the arrays of the dictionary `name` by their shapes."""
    d_in, d_sae = shapes["W_enc"] if len(shapes["W_enc"]) == 2 else ("d_in", "d_sae")
    d_out = shapes["W_dec"][-1] if len(shapes["W_dec"]) == 2 else "d_out"
    expected = {
        "W_enc": (d_in, d_sae),
        "b_enc": (d_sae,),
        "threshold": (d_sae,),
        "W_dec": (d_sae, d_out),
        "b_dec": (d_out,),
    }
    if "W_skip" in shapes:
        expected["W_skip"] = (d_in, d_out)
    if "W_later" in shapes:
        n_later = shapes["W_later"][1] if len(shapes["W_later"]) == 3 else "n_later"
        expected["W_later"] = (d_sae, n_later, d_out)
    if shapes != expected or any(0 in shape for shape in shapes.values()):
        lines = [
            f"{key} {_brackets(shapes[key])} (expected {_brackets(shape)})"
            for key, shape in expected.items()
        ]
        raise UserError(
            f"{name}: shapes that do not agree: {', '.join(lines)}, with no size 0, "
            "where W_enc is [d_in, d_sae] and W_dec [d_sae, d_out]"
        )


def _brackets(shape: tuple[int | str, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def check_finite(key: str, array: Tensor, name: object) -> None:
    """Refuse the dictionary `name` for NaN or infinity in its array `key`."""
    low, high = array.detach().aminmax()  # NaN wins both; unlike isfinite() needs no second array
    if not (low.isfinite() and high.isfinite()):
        n_bad = int((~array.isfinite()).sum())
        raise UserError(
            f"{name}: {n_bad} of the {array.numel()} values of {key} are NaN or infinite; "
            "train or fetch the dictionary again"
        )
