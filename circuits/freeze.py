"""Which parts of the model's nonlinearity are held at their clean values in the backward pass.

The forward pass is bit for bit the same; only what gradients see changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circuits.errors import UserError

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
        for name, norm in _norms(bridge):
            hooks += _freeze_norm(name, norm)
    return hooks


def _norms(bridge: Any) -> list[tuple[str, Any]]:
    """Every RMS norm by its TransformerLens name, with its Hugging Face module."""
    model = bridge.original_model.model
    norms = [("ln_final", model.norm)]
    for layer, block in enumerate(model.layers):
        norms += [
            (f"blocks.{layer}.ln1", block.input_layernorm),
            (f"blocks.{layer}.ln1_post", block.post_attention_layernorm),
            (f"blocks.{layer}.ln2", block.pre_feedforward_layernorm),
            (f"blocks.{layer}.ln2_post", block.post_feedforward_layernorm),
        ]
    return norms


def _freeze_norm(name: str, norm: Any) -> list[ForwardHook]:
    """Replace a norm's output by the same values with a detached scale.

    TransformerLens' own `hook_scale` is not used: across versions it is ignored or rounded.
    """
    inner = getattr(norm, "_original_component", norm)
    held: dict[str, Tensor] = {}

    def keep(x: Tensor, hook: Any) -> None:
        held["x"] = x

    def replace(_: Tensor, hook: Any) -> Tensor:
        x = held.pop("x")
        wide = x.float()  # Hugging Face's order of operations, so that the bits agree
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + inner.eps).detach()
        return (wide * scale * (1.0 + inner.weight.float())).type_as(x)

    return [(f"{name}.hook_in", keep), (f"{name}.hook_out", replace)]
