"""How gradients take the nonlinear parts of the model: what is held, and by what rule.

The forward pass is bit for bit the same; only what gradients see changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from circuits.errors import UserError
from circuits.families import Family, family_of
from circuits.gated import POINTS, RULES, coefficients
from circuits.whole_numbers import whole_number

ForwardHook = tuple[str, Callable[..., Any]]


@dataclass(frozen=True)
class Freeze:
    """What gradients treat as constant.

    Attributes:
        attention: Attention patterns: gradients flow through values only, not through queries and
            keys.
        norms: The scale `rsqrt(mean(x²) + eps)` of every norm: a norm is then a linear map.
        mlp: The rule by which a gated MLP becomes linear: `jacobian`, `relp` or `integrated`; see
            `circuits.gated`.
        points: Of the rule `integrated`: how many there are on the way.
        start: Of the rule `integrated`: by layer, the MLP's gate and up where the way starts,
            `[pos, d_mlp]` each; at zero where there is none.
    """

    attention: bool = False
    norms: bool = False
    mlp: str = "jacobian"
    points: int = POINTS
    start: Mapping[int, tuple[Tensor, Tensor]] = field(default_factory=dict, compare=False)

    @classmethod
    def of(
        cls, *, attention: str, norms: str, mlp: str = "jacobian", points: int = POINTS
    ) -> Freeze:
        """From the words `frozen` and `live`, and the name of a rule.

        Raises:
            UserError: another word, or no points.
        """
        for name, word in (("attention", attention), ("norms", norms)):
            if word not in ("frozen", "live"):
                raise UserError(f"{name}={word!r}; choose frozen or live")
        if mlp not in RULES:
            raise UserError(f"mlp={mlp!r}; choose {', '.join(RULES)}")
        points = whole_number("points", points)
        return cls(attention == "frozen", norms == "frozen", mlp, points)


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
    if freeze.mlp != "jacobian":
        family = family_of(bridge.original_model)
        for layer in range(bridge.cfg.n_layers):
            act = family.mlp_of(bridge.original_model, layer).act_fn
            hooks += _rule_hooks(f"blocks.{layer}.mlp", act, freeze, layer)
    return hooks


def _rule_hooks(
    name: str, act: Callable[[Tensor], Tensor], freeze: Freeze, layer: int
) -> list[ForwardHook]:
    """Give the product of gate and up the gradient of a rule in the place of its own."""
    held: dict[str, Tensor] = {}

    def keep(part: str) -> Callable[..., None]:
        def hook(x: Tensor, hook: Any) -> None:
            held[part] = x

        return hook

    def replace(product: Tensor, hook: Any) -> Tensor:
        gate, up = held.pop("gate"), held.pop("up")
        by_gate, by_up = coefficients(
            freeze.mlp,
            act,
            gate.detach().float(),
            up.detach().float(),
            points=freeze.points,
            start=freeze.start.get(layer),
        )
        change = by_gate * (gate - gate.detach()) + by_up * (up - up.detach())  # of value zero
        return product.detach() + change.to(product.dtype)

    return [
        (f"{name}.gate.hook_out", keep("gate")),
        (f"{name}.in.hook_out", keep("up")),
        (f"{name}.out.hook_in", replace),
    ]


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
