"""Steering as vectors: what raising latents adds to what sites write, and random ones as large.

Raising the activation of a latent by `a` adds `a * W_dec[latent]` to what its site writes (of a
cross-layer transcoder also to what the later ones do). It is added all the same where the latent
is off, and where a negative `a` takes away more than the latent has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from circuits import Output, Site, SplicedModel, UserError
from circuits.interventions import Edit, check_latent
from experiments.spans import ALL, SpanNode, Spans

Amounts = Mapping[SpanNode, float] | Mapping[str, float]
"""What the activation of each latent is raised by: `{"mlp.3/latent.901": 8.0}`."""

Shifts = Mapping[Site, Tensor]
"""What is added to what each site writes, `[pos, d_out]`; zero where dictionaries do not read."""


def steered_nodes(model: SplicedModel, nodes: Sequence[SpanNode | str]) -> tuple[SpanNode, ...]:
    """The latents that `nodes` name; `mlp.3/latent.901` alone is meant everywhere.

    Raises:
        UserError: none, no list, an error, one named twice, or one that the model does not have.
    """
    if isinstance(nodes, str | SpanNode) or not len(nodes):
        raise UserError("give a list of latents to steer, for example ['mlp.3/latent.901']")
    found = tuple(_node(node) for node in nodes)
    for node in found:
        if node.latent is None:
            raise UserError(f"{node} is an error; steering raises latents: mlp.3/latent.901")
        check_latent(model, node.site, node.latent, node)
        if found.count(node) > 1:
            raise UserError(f"{node} is steered twice; give each latent once")
    return found


def shifts(
    model: SplicedModel, ids: Tensor, amounts: Mapping[SpanNode, float], places: Sequence[Tensor]
) -> dict[Site, Tensor]:
    """The sum of what raising each latent by its amount adds, at its positions.

    Args:
        model: The spliced model.
        ids: `[1, pos]`.
        amounts: In units of activation.
        places: For each latent, where it is raised, as a mask `[pos]`.
    """
    sums: dict[Site, Tensor] = {}
    for (node, amount), mask in zip(amounts.items(), places, strict=True):
        decoders = model.dictionaries[node.site].decoders
        for there, W_dec in zip(model.writes_to(node.site), decoders, strict=True):
            row = W_dec[node.latent].float()
            sums.setdefault(there, row.new_zeros(ids.shape[1], len(row)))
            sums[there] += mask[:, None] * (amount * row)
    return sums


def positions(
    model: SplicedModel, ids: Tensor, node: SpanNode, spans: Spans | None = None, i: int = 0
) -> Tensor:
    """Where `node` is steered on the prompt `ids [1, pos]`, the `i`th of `spans`: a mask `[pos]`.

    Without spans, or for the span `all`, wherever dictionaries read: BOS is left alone.
    """
    (reads,) = model.reads(ids)
    if spans is None or node.span == ALL:
        return reads
    mask = torch.zeros_like(reads)
    mask[[place.pos for place in spans.nodes(node, i)]] = True  # pyright: ignore[reportAttributeAccessIssue]
    return mask & reads


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


def as_large(steering: Shifts, directions: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
    """Shifts along `directions` with the norm of `steering` at each site and position."""
    return {site: x.norm(dim=-1, keepdim=True) * directions[site] for site, x in steering.items()}


def steering_edits(rows: Sequence[Shifts]) -> dict[Site, Edit]:
    """Edits that add `rows[i]` in row `i` of a batch; all rows are of the same sites."""

    def edit(site: Site) -> Edit:
        shift = torch.stack([row[site] for row in rows])
        return lambda acts, error: (acts, error + shift.to(error))

    return {site: edit(site) for site in rows[0]}


def steered_passes(
    model: SplicedModel,
    ids: Tensor,
    rows: Sequence[Shifts],
    *,
    output: Output,
    downstream: str,
    batch_size: int,
) -> Iterator[Any]:
    """What passes over `ids [1, pos]` give with each of `rows` added, `batch_size` at a time."""
    clean_errors = model.errors(ids) if downstream == "freeze" and rows else None
    for start in range(0, len(rows), batch_size):
        chunk = rows[start : start + batch_size]
        yield model.run(
            ids.expand(len(chunk), -1),
            steering_edits(chunk),
            downstream=downstream,
            clean_errors=clean_errors,
            output=output,
        )


def checked_numbers(numbers: Sequence[float], what: str) -> tuple[float, ...]:
    """`numbers` if they are finite.

    Raises:
        UserError: one is not.
    """
    for number in numbers:
        if not isinstance(number, int | float) or not math.isfinite(number):
            raise UserError(f"{what} {number!r}; give finite numbers")
    return tuple(float(number) for number in numbers)


def _node(node: SpanNode | str) -> SpanNode:
    if isinstance(node, SpanNode):
        return node
    if not isinstance(node, str):
        raise UserError(f"{node!r} names no latent; names look like mlp.3/latent.901")
    return SpanNode.parse(node if "@" in node else f"{node}@{ALL}")
