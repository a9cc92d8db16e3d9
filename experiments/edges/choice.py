"""Which edges of a graph are knocked out: the strongest, and random ones beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from torch import Tensor

from attribution import Attribution
from circuits import ErrorNode, LatentNode, LogitNode, Node, Site, TokenNode, UserError
from circuits.active import Active, write_active
from circuits.reference import Reference
from circuits.splice import SplicedModel
from experiments.edges.held import Source
from graphs import AttributionGraph
from graphs.adjacency import adjacency


@dataclass(frozen=True, eq=False)
class Edge:
    """One edge of a graph.

    Attributes:
        source: A latent, an error or a token.
        target: A latent or a logit node.
        weight: As in the graph.
        grad: The metric's gradient by the target, as in the graph.
        group: `strongest`, `random` or `given`.
    """

    source: Source
    target: LatentNode | LogitNode
    weight: float
    grad: float
    group: str


@dataclass(frozen=True, eq=False)
class Chosen:
    """Edges, and how many could not be asked about, by why."""

    edges: tuple[Edge, ...]
    left_out: Mapping[str, int]


def choose_edges(
    graph: Attribution | AttributionGraph,
    edges: Sequence[tuple[Node, Node]] | None,
    top: int,
    n_random: int,
    seed: int,
) -> Chosen:
    """The edges given, or the `top` strongest and `n_random` of the others.

    Random edges are drawn uniformly, without replacement, from those to latents that are not among
    the strongest; where there are fewer, all of them.

    Raises:
        UserError: an edge that the graph does not have, or that cannot be knocked out.
    """
    whole = adjacency(graph)
    matrix = whole.matrix.tocoo()
    targets, sources = matrix.coords
    grads = target_grads(graph)
    left_out = _left_out(graph, whole.nodes, sources)
    groups = {"given": _places(whole.nodes, whole.matrix, edges)} if edges is not None else {}
    if edges is None:
        lost = _unknown_errors(graph)
        usable = np.array(
            [isinstance(n, Source) and not (lost and isinstance(n, ErrorNode)) for n in whole.nodes]
        )[sources]
        to_latent = np.array([isinstance(node, LatentNode) for node in whole.nodes])[targets]
        size = np.where(usable, np.abs(matrix.data * grads[targets]), -1)
        strongest = np.argsort(-size, kind="stable")[: min(top, int(usable.sum()))]
        others = usable & to_latent
        others[strongest] = False
        pool = np.flatnonzero(others)
        drawn = np.random.default_rng(seed).choice(pool, min(n_random, len(pool)), replace=False)
        groups = {"strongest": strongest, "random": np.sort(drawn)}
    found = [
        Edge(
            whole.nodes[sources[i]],
            whole.nodes[targets[i]],
            float(matrix.data[i]),
            float(grads[targets[i]]),
            group,
        )
        for group, places in groups.items()
        for i in places
    ]
    return Chosen(tuple(found), left_out)


def target_grads(graph: Attribution | AttributionGraph) -> np.ndarray:
    """`d metric / d target` of each node, `[n]`."""
    if isinstance(graph, Attribution):
        return graph.target_grads.double().numpy()
    return np.array([values["grad"] for _, values in graph.digraph.nodes(data=True)], float)


def kept_latents(graph: Attribution | AttributionGraph) -> set[LatentNode] | None:
    """The latents that error nodes do not carry; None if errors carry none at all."""
    latents = {node for node in _nodes(graph) if isinstance(node, LatentNode)}
    settings: dict[str, Any] = graph.provenance.get("settings", {})
    chosen = settings.get("latents_chosen")
    if chosen is None or (len(latents) < chosen == settings.get("latents_active")):
        return None
    return latents


def _unknown_errors(graph: Attribution | AttributionGraph) -> bool:
    """Whether errors carry latents that the graph, since pruned, does not name."""
    kept = kept_latents(graph)
    return kept is not None and len(kept) < graph.provenance["settings"]["latents_chosen"]


def error_values(
    model: SplicedModel, reference: Reference, kept: set[LatentNode] | None, sites: Sequence[Site]
) -> dict[Site, Tensor]:
    """What the graph's error nodes at `sites` stand for, `[pos, d_out]` each.

    That is the error, and what latents write there that are not `kept` as nodes of their own.
    """
    values = {site: reference.error(site).float().clone() for site in sites}
    if kept is None:
        return values
    for site, here in reference.trace.sites.items():
        there = model.writes_to(site)
        if not set(there) & set(values):
            continue
        pairs = zip(here.latent.tolist(), here.pos.tolist(), strict=True)
        out = here.pos.new_tensor([LatentNode(site, *pair) not in kept for pair in pairs]).bool()
        active = Active(here.pos[out], here.latent[out], here.acts[out])
        for target, matrix in zip(there, model.dictionaries[site].decoders, strict=True):
            if target in values:
                values[target] += write_active(matrix, active, len(here.error))[0].float()
    return values


def mlp_between(sites: Sequence[Site], source: Source, target: Node, reads: Site | None) -> bool:
    """Whether an edge passes an MLP: one that no spliced site stands for, or the target's own.

    Args:
        sites: The spliced ones.
        source, target: The edge.
        reads: Of a logit node, the site that its metric reads; None for the logits.
    """
    start = first_site(source).order
    site = target.site if isinstance(target, LatentNode) else reads
    if site is not None and site.kind == "mlp":
        return start < site.order
    layers = range(start[0], (max(s.layer for s in sites) + 1) if site is None else site.layer + 1)
    cut = {s.layer for s in sites if s.kind in ("mlp", "transcoder")}
    return any(
        layer not in cut
        and start < Site(layer, "mlp").order
        and (site is None or Site(layer, "mlp").order < site.order)
        for layer in layers
    )


def first_site(node: Source) -> Site:
    """Where a node writes first; a token where the embedding is."""
    return Site(0, "embed") if isinstance(node, TokenNode) else node.site


def _nodes(graph: Attribution | AttributionGraph) -> Sequence[Node]:
    return graph.nodes if isinstance(graph, Attribution) else tuple(graph.digraph)


def _left_out(
    graph: Attribution | AttributionGraph, nodes: Sequence[Node], sources: np.ndarray
) -> dict[str, int]:
    """How many edges start at what cannot be knocked out, by why."""
    counts: Counter[type] = Counter(type(nodes[i]) for i in sources)
    known = counts[LatentNode] + counts[ErrorNode] + counts[TokenNode]
    left_out = {"from biases": len(sources) - known}
    if _unknown_errors(graph):
        left_out["from errors of a pruned graph"] = counts[ErrorNode]
    return {why: n for why, n in left_out.items() if n}


def _places(
    nodes: Sequence[Node], matrix: sparse.csr_array, edges: Sequence[tuple[Node, Node]]
) -> list[int]:
    """Where the given edges are among the entries of `matrix`, row by row."""
    index = {node: i for i, node in enumerate(nodes)}
    places = []
    for source, target in edges:
        if not isinstance(source, Source) or not isinstance(target, LatentNode | LogitNode):
            raise UserError(
                f"cannot knock out {source} -> {target}; an edge goes from a latent, an error or a "
                "token to a latent or a logit"
            )
        row, column = index.get(target), index.get(source)
        if row is not None and column is not None:
            start, end = matrix.indptr[row : row + 2]
            at = np.flatnonzero(matrix.indices[start:end] == column)
            if len(at):
                places.append(int(start + at[0]))
                continue
        raise UserError(f"the graph has no edge {source} -> {target}; choose among its edges")
    return places
