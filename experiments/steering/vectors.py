"""Steering as vectors: what raising latents adds to what sites write, and random ones as large.

Raising the activation of a latent by `a` adds `a * W_dec[latent]` to what its site writes (of a
cross-layer transcoder also to what the later ones do). It is added all the same where the latent
is off, and where a negative `a` takes away more than the latent has.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from circuits import Site, SplicedModel, UserError
from circuits.interventions import Edit, check_latent
from experiments.spans import ALL, SpanNode, Spans

Amounts = Mapping[SpanNode, float] | Mapping[str, float]
"""What the activation of each latent is raised by, or set to: `{"mlp.3/latent.901": 8.0}`."""

Shifts = Mapping[Site, Tensor]
"""What each site writes more, `[rows, pos, d_out]`; zero where dictionaries do not read."""


def steered_nodes(model: SplicedModel, nodes: Sequence[SpanNode | str]) -> tuple[SpanNode, ...]:
    """The latents that `nodes` name; `mlp.3/latent.901` alone is meant everywhere.

    Raises:
        UserError: none, no list, an error, one named twice (also at two spans), or one that the
            model does not have.
    """
    if isinstance(nodes, str) or not isinstance(nodes, Collection) or not len(nodes):
        raise UserError("give a list of latents to steer, for example ['mlp.3/latent.901']")
    found = tuple(_node(node) for node in nodes)
    steered = set()
    for node in found:
        if node.latent is None:
            raise UserError(f"{node} is an error; steering raises latents: mlp.3/latent.901")
        check_latent(model, node.site, node.latent, node)
        if (node.site, node.latent) in steered:
            raise UserError(
                f"{node} is steered twice; give each latent once, at one span, since neutral "
                "texts are steered everywhere"
            )
        steered.add((node.site, node.latent))
    return found


def shifts(model: SplicedModel, nodes: Sequence[SpanNode], raised: Tensor) -> dict[Site, Tensor]:
    """What sites write more where the activations of `nodes` rise by `raised [rows, nodes, pos]`.

    Of each site that the latents write to, `[rows, pos, d_out]`.
    """
    sums: dict[Site, Tensor] = {}
    for node, more in zip(nodes, raised.unbind(1), strict=True):
        decoders = model.dictionaries[node.site].decoders
        for there, W_dec in zip(model.writes_to(node.site), decoders, strict=True):
            added = more[..., None] * W_dec[node.latent].float()
            sums[there] = sums[there] + added if there in sums else added
    return sums


def positions(
    model: SplicedModel,
    ids: Tensor,
    nodes: Sequence[SpanNode],
    spans: Spans | None = None,
    i: int = 0,
) -> Tensor:
    """Where `nodes` are steered on the prompt `ids [1, pos]`, the `i`th of `spans`.

    Without spans, or for the span `all`, wherever dictionaries read: BOS is left alone. A mask
    `[n_nodes, pos]`.
    """
    mask = torch.zeros(len(nodes), ids.shape[1], dtype=torch.bool, device=ids.device)
    for row, node in zip(mask, nodes, strict=True):
        if spans is None or node.span == ALL:
            row[:] = True
        else:
            row[[place.pos for place in spans.nodes(node, i)]] = True
    return mask & model.reads(ids)


def random_directions(
    model: SplicedModel, nodes: Sequence[SpanNode], n: int, seed: int
) -> list[dict[Site, Tensor]]:
    """`n` times a unit vector `[d_out]` for each site that the latents write to, uniform."""
    generator = torch.Generator().manual_seed(seed)
    sites = sorted({there for node in nodes for there in model.writes_to(node.site)})
    return [
        {
            site: torch.nn.functional.normalize(
                torch.randn(model.dictionaries.summary(site).d_out, generator=generator), dim=0
            ).to(model.device)
            for site in sites
        }
        for _ in range(n)
    ]


def as_large(changes: Shifts, directions: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
    """Shifts along `directions` with the norm of `changes` at each row, site and position."""
    return {site: x.norm(dim=-1, keepdim=True) * directions[site] for site, x in changes.items()}


def steering_edits(added: Shifts) -> dict[Site, Edit]:
    """Edits that add what `added` has for each row of a batch."""

    def edit(shift: Tensor) -> Edit:
        return lambda acts, error: (acts, error + shift.to(error))

    return {site: edit(shift) for site, shift in added.items()}


def checked_numbers(numbers: Sequence[float], what: str) -> tuple[float, ...]:
    """`numbers` if they are a list of finite ones.

    Raises:
        UserError: they are not.
    """
    if not isinstance(numbers, Sequence | np.ndarray):
        raise UserError(f"{what} {numbers!r}; give a list of finite numbers")
    for number in numbers:
        if not isinstance(number, Real) or not math.isfinite(number):
            raise UserError(f"{what} {number!r}; give finite numbers")
    return tuple(float(number) for number in numbers)


def _node(node: SpanNode | str) -> SpanNode:
    if isinstance(node, SpanNode):
        return node
    if not isinstance(node, str):
        raise UserError(f"{node!r} names no latent; names look like mlp.3/latent.901")
    return SpanNode.parse(node if "@" in node else f"{node}@{ALL}")
