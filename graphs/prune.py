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
from attribution.influence import (
    absolute,
    check_share,
    least_kept,
    reciprocal,
    runs,
    solve_influence,
)
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
    networkx graph of what is kept alone. Tens of millions of edges take it about a second; of an
    attribution made with `keep_influence` the other edges were never stored.

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
        UserError: a share outside 0 to 1, or an attribution that holds a NaN or an infinity, or
            that was made to keep less influence.
    """
    check_share("keep_influence", keep_influence)
    check_share("keep_edges", keep_edges)
    _check_edges_are_there(graph, keep_influence)
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


def _check_edges_are_there(graph: AttributionGraph | Attribution, keep_influence: float) -> None:
    if isinstance(graph, Attribution) and graph.influences is not None:
        there = graph.provenance["settings"]["keep_influence"]
        if keep_influence > there:
            raise UserError(
                f"keep_influence is {keep_influence}, and the attribution holds the edges of nodes "
                f"that carry {there} of the influence; give no more, or attribute with more"
            )


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

    influences = whole.influences
    kept = np.flatnonzero((influences >= least_kept(influences, keep_influence)) | always)

    edges = _between(whole.matrix, kept)
    scores = _edge_scores(edges, whole.weights[kept])
    edges.data[scores < least_kept(scores, keep_edges)] = 0
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
