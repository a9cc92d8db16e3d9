"""Keep the part of a graph that carries most of the influence on the output.

1. Nodes: the smallest set, most influential first, whose influences sum to `keep_influence` of all
   influence. Tokens and logit nodes always stay.
2. Edges: shares and influences anew on the nodes that are left; an edge scores its share of the
   target's inputs times the target's influence (a logit node's own weight included); the smallest
   set, highest score first, that sums to `keep_edges` of all scores.
3. Loose ends: again and again, latents, errors and biases without an outgoing edge, and latents
   without an incoming one, until none is left: what remains is what lies on paths to the output.

These are the steps of circuit-tracer's `prune_graph`. It knows no bias nodes; here they are treated
as errors are, since both are sources that have no inputs; and so are latents that are off on the
prompt and that only the reference switches on.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from attribution import Attribution
from attribution.influence import absolute, reciprocal, runs, solve_influence
from circuits.errors import UserError
from circuits.nodes import LatentNode, LogitNode, TokenNode
from graphs.adjacency import Adjacency, adjacency
from graphs.graph import AttributionGraph, assemble, restrict


def prune(
    graph: AttributionGraph | Attribution, *, keep_influence: float = 0.8, keep_edges: float = 0.98
) -> AttributionGraph:
    """The part of `graph` that carries `keep_influence` of the nodes' influence on the output.

    Of an attribution it is the part of its graph: `prune(attribution)` equals
    `prune(AttributionGraph.from_attribution(attribution))`, but works on arrays and builds a
    networkx graph of what is kept alone. Tens of millions of edges take it about a second.

    With `keep_edges=1` a higher `keep_influence` never loses a node; below 1 it can, because the
    edges' scores are shares of what the nodes have left.

    Args:
        graph: Left as it is.
        keep_influence: Share of the nodes' summed influence to keep, 0 to 1.
        keep_edges: Share of the edges' summed scores to keep, 0 to 1.

    Returns:
        A new graph. Nodes and edges keep their attributes; influences are still those of the whole
        graph (`influence(pruned)` gives them anew). The provenance says what was pruned.

    Raises:
        UserError: a share outside 0 to 1, or an attribution that holds a NaN or an infinity.
    """
    for name, share in (("keep_influence", keep_influence), ("keep_edges", keep_edges)):
        if not isinstance(share, int | float) or not 0 <= share <= 1:
            raise UserError(f"{name} is {share!r}; it is a share; give a number from 0 to 1")
    whole = adjacency(graph)
    part = prune_adjacency(whole, keep_influence, keep_edges)
    if isinstance(graph, Attribution):
        smaller = assemble(graph, part.kept, part.influences[part.kept], part.edges)
    else:
        nodes = [whole.nodes[i] for i in part.kept.tolist()]
        targets, sources = (axis.tolist() for axis in part.edges.tocoo().coords)
        pairs = ((nodes[s], nodes[t]) for s, t in zip(sources, targets, strict=True))
        smaller = dataclasses.replace(graph, digraph=restrict(graph, set(nodes), pairs))
    step = {
        "keep_influence": keep_influence,
        "keep_edges": keep_edges,
        "nodes_before": len(whole.nodes),
        "edges_before": whole.matrix.nnz,
    }
    pruned = [*smaller.provenance.get("pruned", []), step]
    return dataclasses.replace(smaller, provenance={**smaller.provenance, "pruned": pruned})


@dataclass(frozen=True, eq=False)
class Part:
    """What is kept of `n` nodes and their edges.

    Attributes:
        influences: Of every node in the whole graph, `[n]`.
        kept: Which nodes stay: `k` indices, ascending.
        edges: The direct effects that stay between these, `[target, source]`, `[k, k]`.
    """

    influences: np.ndarray
    kept: np.ndarray
    edges: sparse.csr_array


def prune_adjacency(whole: Adjacency, keep_influence: float, keep_edges: float) -> Part:
    """The three steps."""
    always = np.array([isinstance(node, TokenNode | LogitNode) for node in whole.nodes])
    needs_input = np.array([isinstance(node, LatentNode) for node in whole.nodes])
    if whole.off:  # few are: most graphs need no look-up a node
        needs_input &= [node not in whole.off for node in whole.nodes]

    influences = solve_influence(whole.matrix, whole.weights)
    kept = np.flatnonzero((influences >= _cut(influences, keep_influence)) | always)

    edges = _between(whole.matrix, kept)
    scores = _edge_scores(edges, whole.weights[kept])
    edges.data[scores < _cut(scores, keep_edges)] = 0
    edges.eliminate_zeros()

    linked = connected(edges, roots=~needs_input[kept], ends=always[kept]) | always[kept]
    return Part(influences, kept[linked], _between(edges, np.flatnonzero(linked)))


def _between(matrix: sparse.csr_array, kept: np.ndarray) -> sparse.csr_array:
    """The edges between the nodes `kept`, always a copy."""
    return sparse.csr_array(matrix[kept][:, kept])


def _edge_scores(edges: sparse.csr_array, weights: np.ndarray) -> np.ndarray:
    """A score for each of `edges.data`: the share of the target's inputs times its influence."""
    importance = solve_influence(edges, weights) + weights
    scores = np.empty(edges.nnz)
    for rows in runs(edges):
        inputs = absolute(edges, rows)
        counts = np.diff(inputs.indptr)
        shares = inputs.data * np.repeat(reciprocal(inputs.sum(axis=1)), counts)
        start, stop = edges.indptr[rows.start], edges.indptr[rows.stop]
        scores[start:stop] = shares * np.repeat(importance[rows], counts)
    return scores


def connected(edges: sparse.csr_array, roots: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Which nodes lie on a path from one of `roots` to one of `ends`, `[n]` each.

    A path of length 0 is one. This is what steps that take loose ends away one by one come to: they
    never touch a path, and what lies on none has a loose end somewhere.
    """
    fed, needed = roots.astype(float), ends.astype(float)
    order = runs(edges)
    for rows in order:
        fed[rows] += absolute(edges, rows) @ fed > 0
    for rows in reversed(order):
        needed += absolute(edges, rows).T @ needed[rows] > 0
    return (fed > 0) & (needed > 0)


TIE = 1e-12
"""Scores that differ by less, relatively, are equal: sums in another order."""

MINOR_BITS = 45
"""A float64's last: numbers that differ in no others are within one in 100 of one another."""


def _cut(scores: np.ndarray, keep: float) -> float:
    """The least score that is kept of `scores [n]`, none negative; its equals are kept with it.

    Sums by leading bits, in whose order numbers are that are not negative, say which few to sort.
    """
    if not scores.size:
        return 0.0
    bits = scores.view(np.int64) >> MINOR_BITS
    sums = np.bincount(bits - bits.min(), scores)[::-1].cumsum()
    wanted = keep * sums[-1]
    last = int(np.searchsorted(sums, wanted))
    falling = np.sort(scores[bits == bits.max() - last])[::-1]
    before = sums[last - 1] if last else 0.0
    place = np.searchsorted(before + falling.cumsum(), wanted)
    return float(falling[min(place, len(falling) - 1)]) * (1 - TIE)
