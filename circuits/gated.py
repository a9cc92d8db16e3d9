"""How a gated MLP, `down(act(gate) * up)`, becomes a linear map on one prompt.

Every rule writes the product as a sum of its two inputs with held coefficients,

    act(gate) * up  ~  by_gate * gate + by_up * up

    jacobian    by_gate = act'(gate) up                          by_up = act(gate)
    relp        by_gate = (act(gate) / gate) up / 2              by_up = act(gate) / 2
    integrated  by_gate = mean over a of a act'(a gate) up       by_up = mean over a of act(a gate)

`jacobian` is the derivative at the prompt. `relp` holds the gate as a ratio and gives each factor
of the product one half (Jafari et al. 2025, arXiv 2508.21258, after layer-wise relevance
propagation): the sum is the product itself. `integrated` is the derivative averaged over the way
from a silent MLP to the prompt, a from 0 to 1, all inputs together (integrated gradients with the
baseline zero, by Gauss-Legendre quadrature): the sum is the product up to the quadrature's error.
It may also start at other inputs, `start` with a gate and an up of its own; then

    by_gate (gate - start gate) + by_up (up - start up)

is the product less that at the start.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

RULES = ("jacobian", "relp", "integrated")

POINTS = 10
"""Points of the quadrature, unless another number is asked for."""


@torch.no_grad()
def coefficients(
    rule: str,
    act: Callable[[Tensor], Tensor],
    gate: Tensor,
    up: Tensor,
    *,
    points: int = POINTS,
    start: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """`by_gate` and `by_up`, shaped like `gate` and `up` `[..., d_mlp]`.

    Args:
        rule: One of `RULES`.
        act: The activation function.
        gate, up: The product's inputs on the prompt.
        points: Of `integrated`: how many there are on the way.
        start: Of `integrated`: gate and up where the way starts; zero by default.
    """
    assert rule in RULES, rule
    if rule == "jacobian":
        return _slope(act, gate) * up, act(gate)
    if rule == "relp":
        safe = torch.where(gate == 0, 1, gate)
        ratio = torch.where(gate == 0, _slope(act, torch.zeros_like(gate)), act(safe) / safe)
        return ratio * up / 2, act(gate) / 2
    by_gate, by_up = torch.zeros_like(gate), torch.zeros_like(up)
    places, weights = np.polynomial.legendre.leggauss(points)  # on [-1, 1]
    for place, weight in zip((places + 1) / 2, weights / 2, strict=True):
        here = place * gate if start is None else place * gate + (1 - place) * start[0]
        slope = _slope(act, here)
        by_gate += weight * place * slope * up
        by_up += weight * act(here)
        if start is not None:
            by_gate += weight * (1 - place) * slope * start[1]
    return by_gate, by_up


def _slope(act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`act'(x)`."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(act(x).sum(), x)
    return slope
