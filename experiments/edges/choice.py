"""Which edges of a graph are knocked out: the strongest, and random ones beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from torch import Tensor

from attribution import Attribution, Metric, Targets
from attribution.fingerprint import check_weights
from attribution.metrics import Score, metric_name
from circuits import (
    ErrorNode,
    LatentNode,
    LogitNode,
    Node,
    Reference,
    Site,
    SplicedModel,
    TokenNode,
    UserError,
)
from circuits.active import Active, write_active
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
        change: Of the source, what the weight is of: `Attribution.changes`.
        group: `strongest`, `random` or `given`.
    """

    source: Source
    target: LatentNode | LogitNode
    weight: float
    grad: float
    change: float
    group: str


@dataclass(frozen=True, eq=False)
class Chosen:
    """Edges.

    Attributes:
        edges: In their groups.
        left_out: How many could not be asked about, by why.
        drawn_from: How many the random ones are drawn from.
    """

    edges: tuple[Edge, ...]
    left_out: Mapping[str, int]
    drawn_from: int = 0


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
    grads, changes = _of_nodes(graph)
    left_out = _left_out(graph, whole.nodes, sources)

    def found(places: Iterable[int], group: str) -> list[Edge]:
        return [
            Edge(
                whole.nodes[sources[i]],
                whole.nodes[targets[i]],
                float(matrix.data[i]),
                float(grads[targets[i]]),
                float(changes[sources[i]]),
                group,
            )
            for i in places
        ]

    if edges is not None:
        places = _places(whole.nodes, whole.matrix, edges)
        return Chosen(tuple(found(places, "given")), left_out)
    usable = _usable(graph, whole.nodes)[sources]
    size = np.where(usable, np.abs(matrix.data * grads[targets]), -1)
    strongest = np.argsort(-size, kind="stable")[: min(top, int(usable.sum()))]
    others = usable & np.array([isinstance(node, LatentNode) for node in whole.nodes])[targets]
    others[strongest] = False
    pool = np.flatnonzero(others)
    drawn = np.random.default_rng(seed).choice(pool, min(n_random, len(pool)), replace=False)
    every = found(strongest, "strongest") + found(np.sort(drawn), "random")
    return Chosen(tuple(every), left_out, len(pool))


def target_names(metric: Metric | Targets | Score) -> list[str]:
    """Names of the logit nodes of a graph that explains `metric`."""
    return (
        [m.name for m in metric.metrics] if isinstance(metric, Targets) else [metric_name(metric)]
    )


def check_graph_of(
    model: SplicedModel,
    ids: Tensor,
    metric: Metric | Targets | Score,
    graph: Attribution | AttributionGraph,
) -> None:
    """Refuse what is no graph, or one of another prompt, metric or model."""
    if not isinstance(graph, Attribution | AttributionGraph):
        raise UserError(
            f"got {type(graph).__name__}; give what attribute(...) returns, or a graph made from it"
        )
    words = model.words(ids[0])
    if list(graph.words) != words:
        raise UserError(
            f"the graph is of {' '.join(graph.words)!r} and the prompt is {' '.join(words)!r}; "
            "give the prompt that the graph is of"
        )
    nodes = graph.nodes if isinstance(graph, Attribution) else graph.digraph
    explained = [node.name for node in nodes if isinstance(node, LogitNode)]
    strange = set(explained) - set(target_names(metric))
    if strange:
        raise UserError(
            f"the graph explains {sorted(strange)[0]!r} and the metric is "
            f"{metric_name(metric)!r}; give the metric that the graph was made with"
        )
    check_weights(model, graph.provenance, "the graph")


def _of_nodes(graph: Attribution | AttributionGraph) -> tuple[np.ndarray, np.ndarray]:
    """Of each node `d metric / d target` and the change that edges from it are of, `[n]` each."""
    if isinstance(graph, Attribution):
        return graph.target_grads.double().numpy(), graph.changes.double().numpy()
    grads, changes = (
        np.array([value for _, value in graph.digraph.nodes(data=name)], float)
        for name in ("grad", "change")
    )
    return grads, changes


def _usable(graph: Attribution | AttributionGraph, nodes: Sequence[Node]) -> np.ndarray:
    """Which nodes can be knocked out, `[n]`: not biases, nor errors that carry who knows what."""
    unknown = _unknown_errors(graph)
    return np.array(
        [isinstance(n, Source) and not (unknown and isinstance(n, ErrorNode)) for n in nodes], bool
    )


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
