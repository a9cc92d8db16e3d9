"""Which parts of the model's nonlinearity are held at their clean values in the backward pass.

The forward pass is bit for bit the same; only what gradients see changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from circuits.errors import UserError
from circuits.families import Family, family_of

ForwardHook = tuple[str, Callable[..., Any]]


@dataclass(frozen=True)
class Freeze:
    """What gradients treat as constant.

    Attributes:
        attention: Attention patterns: gradients flow through values only, not through queries and
            keys.
        norms: The scale `rsqrt(mean(x²) + eps)` of every norm: a norm is then a linear map.
    """

    attention: bool = False
    norms: bool = False

    @classmethod
    def of(cls, *, attention: str, norms: str) -> Freeze:
        """From the words `frozen` and `live`."""
        for name, word in (("attention", attention), ("norms", norms)):
            if word not in ("frozen", "live"):
                raise UserError(f"{name}={word!r}; choose frozen or live")
        return cls(attention=attention == "frozen", norms=norms == "frozen")


LIVE = Freeze()


def freeze_hooks(bridge: Any, freeze: Freeze) -> list[ForwardHook]:
    """The TransformerLens hooks that carry out `freeze`."""
    hooks: list[ForwardHook] = []
    if freeze.attention:
        for layer in range(bridge.cfg.n_layers):
            hooks.append(
                (f"blocks.{layer}.attn.hook_pattern", lambda pattern, hook: pattern.detach())
            )
    if freeze.norms:
        family = family_of(bridge.original_model)
        for name, norm in family.norms_of(bridge.original_model).items():
            hooks += _freeze_norm(family, name, norm)
    return hooks


def _freeze_norm(family: Family, name: str, norm: Any) -> list[ForwardHook]:
    """Replace a norm's output by the same values with a detached scale.

    TransformerLens' own `hook_scale` is not used: across versions it is ignored or rounded.
    """
    held: dict[str, Tensor] = {}

    def keep(x: Tensor, hook: Any) -> None:
        held["x"] = x

    def replace(_: Tensor, hook: Any) -> Tensor:
        return family.frozen_norm(norm, held.pop("x"))

    return [(f"{name}.hook_in", keep), (f"{name}.hook_out", replace)]
