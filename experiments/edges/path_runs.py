"""The passes of `path_patch`: step by step along each path, and to the metric."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attribution import Metric, Targets
from attribution.metrics import Score, bind, bind_all
from circuits import (
    Dictionary,
    ErrorNode,
    LatentNode,
    Reference,
    Site,
    TokenNode,
    set_to,
)
from experiments.edges.held import Held, Seen, Source, shifts, value_in
from experiments.edges.routes import Route
from experiments.measure import measure


@dataclass(frozen=True, eq=False)
class Trip:
    """What travelled along one path.

    Attributes:
        steps: Of each node and of the metric the clean value, the patched one and clean minus
            patched; norms, of errors and embeddings. `[n, 3]`.
        effect: What the metric loses.
    """

    steps: np.ndarray
    effect: float

    @classmethod
    def mean(cls, trips: Sequence[Trip]) -> Trip:
        """Of trips along one path, with different donors."""
        steps = np.mean([trip.steps for trip in trips], axis=0)
        return cls(steps, float(np.mean([trip.effect for trip in trips])))


@torch.no_grad()
def travel(
    held: Held,
    metric: Metric | Targets | Score,
    routes: Sequence[Route],
    clean: Reference,
    reference: Reference,
) -> list[Trip]:
    """All of `routes` at once, a row each: a pass a step, and one to the metric."""
    told: list[list[tuple[float, float, float]]] = [[] for _ in routes]
    changes = [value_in(reference, r.source) - value_in(clean, r.source) for r in routes]
    for step in range(max(len(route.nodes) for route in routes)):
        if step:
            changes = _step(held, routes, step, changes)
        for i, route in enumerate(routes):
            if step < len(route.nodes):
                was = value_in(clean, route.nodes[step])
                told[i].append(_told(was, was + changes[i]))
    rows = [shifts(held.model, route.nodes[-1], changes[i]) for i, route in enumerate(routes)]
    scores, weights = bind_all(metric, held.model)
    _, out = held.run(rows, output=tuple(score.output for score in scores))
    values = torch.stack([s(x).double().cpu() for s, x in zip(scores, out, strict=True)], -1)
    values *= values.new_tensor(weights)  # [rows + 1, targets]
    trips = []
    for row, route in enumerate(routes):
        before, after = (values[i, list(route.targets)].sum().item() for i in (-1, row))
        steps = np.array([*told[row], (before, after, before - after)])
        trips.append(Trip(steps, before - after))
    return trips


def _step(held: Held, routes: Sequence[Route], step: int, changes: list[Tensor]) -> list[Tensor]:
    """The changes of the nodes number `step`, from those before them; of ended routes, the last."""
    going = [i for i, route in enumerate(routes) if step < len(route.nodes)]
    rows = [shifts(held.model, routes[i].nodes[step - 1], changes[i]) for i in going]
    nodes = [routes[i].steps[step - 1] for i in going]
    by_site: defaultdict[Site, list[int]] = defaultdict(list)
    for row, node in enumerate(nodes):
        by_site[node.site].append(row)
    places = {site: [(row, nodes[row].pos) for row in there] for site, there in by_site.items()}
    seen, _ = held.run(rows, places)
    reads, after = held.model.reads(held.ids)[0], list(changes)
    for site, there in by_site.items():
        dictionary = held.model.dictionaries[site]
        for n, row in enumerate(there):
            is_read = bool(reads[nodes[row].pos])
            after[going[row]] = _arrived(dictionary, seen[site], n, nodes[row], is_read)
    return after


def _arrived(
    dictionary: Dictionary, seen: Seen, n: int, node: LatentNode | ErrorNode, is_read: bool
) -> Tensor:
    """How a node's value changes with what its site now reads and writes, row `n` of `seen`."""
    read, clean_read = seen.read[n], seen.clean_read[n]
    if isinstance(node, LatentNode):
        return (dictionary.encode(read) - dictionary.encode(clean_read))[node.latent]
    change = seen.written[n].float() - seen.clean_written[n].float()
    if not is_read:  # all of it is error
        return change
    now, was = (dictionary.decode(dictionary.encode(x), x).float() for x in (read, clean_read))
    return change - (now - was)


@torch.no_grad()
def total_effect(
    held: Held,
    metric: Metric | Targets | Score,
    source: Source,
    reference: Reference,
    *,
    downstream: str,
    memory: str | int | None = None,
) -> float:
    """What the metric loses when the source takes its reference value and all else may follow.

    Of a token, whose change nothing holds, `downstream` is `recompute`.
    """
    score, value = bind(metric, held.model), value_in(reference, source)
    if not isinstance(source, TokenNode):
        rows = [[set_to(source, value)]]
        how = {"downstream": downstream, "memory": memory}
        clean, ablated = measure(held.model, held.ids, score, rows, **how)
        return clean - ablated.item()
    assert downstream == "recompute"
    both = held.embedding.repeat(2, 1, 1)
    both[1, source.pos] = value.to(both)
    ids = held.ids.expand(2, -1)
    out = held.model.forward(ids, {}, embedding=lambda read, written: both, output=score.output)
    clean, ablated = score(out).tolist()
    return clean - ablated


def _told(was: Tensor, becomes: Tensor) -> tuple[float, float, float]:
    """Clean, patched and their difference, of a latent; the norms, of a vector."""
    if was.ndim:
        return was.norm().item(), becomes.norm().item(), (was - becomes).norm().item()
    return was.item(), becomes.item(), (was - becomes).item()
