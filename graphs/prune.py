"""Keep the part of a graph that carries most of the influence on the output.

1. Nodes: the smallest set, most influential first, whose influences sum to `keep_influence` of all
   influence. Tokens and logit nodes always stay.
2. Edges: shares and influences anew on the nodes that are left; an edge scores its share of the
   target's inputs times the target's influence (a logit node's own weight included); the smallest
   set, highest score first, that sums to `keep_edges` of all scores.
3. Loose ends: again and again, latents, errors and biases without an outgoing edge, and latents
   without an incoming one, until none is left.

These are the steps of circuit-tracer's `prune_graph`. It knows no bias nodes; here they are treated
as errors are, since both are sources that have no inputs.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from circuits.errors import UserError
from circuits.nodes import LatentNode, LogitNode, Node, TokenNode
from graphs.graph import AttributionGraph, restrict
from graphs.influence import edge_matrix, logit_weights, normalize, solve_influence


def prune(
    graph: AttributionGraph, *, keep_influence: float = 0.8, keep_edges: float = 0.98
) -> AttributionGraph:
    """The part of `graph` that carries `keep_influence` of the nodes' influence on the output.

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
        UserError: a share outside 0 to 1.
    """
    for name, share in (("keep_influence", keep_influence), ("keep_edges", keep_edges)):
        if not 0 <= share <= 1:
            raise UserError(f"{name} is {share}; it is a share; give a number from 0 to 1")
    nodes = list(graph.digraph)
    matrix, weights = edge_matrix(graph), logit_weights(nodes)
    kept_nodes, kept_edges = prune_matrix(matrix, weights, nodes, keep_influence, keep_edges)

    targets, sources = kept_edges.nonzero()
    digraph = restrict(
        graph,
        {node for node, keep in zip(nodes, kept_nodes, strict=True) if keep},
        {(nodes[s], nodes[t]) for s, t in zip(sources.tolist(), targets.tolist(), strict=True)},
    )
    step = {
        "keep_influence": keep_influence,
        "keep_edges": keep_edges,
        "nodes_before": len(nodes),
        "edges_before": graph.digraph.number_of_edges(),
    }
    pruned = [*graph.provenance.get("pruned", []), step]
    return dataclasses.replace(
        graph, digraph=digraph, provenance={**graph.provenance, "pruned": pruned}
    )


def prune_matrix(
    matrix: sparse.csr_array,
    weights: np.ndarray,
    nodes: Sequence[Node],
    keep_influence: float,
    keep_edges: float,
) -> tuple[np.ndarray, sparse.csr_array]:
    """The three steps on `matrix` `[target, source]`: which nodes `[n]` and which edges stay."""
    always = np.array([isinstance(node, TokenNode | LogitNode) for node in nodes])
    needs_input = np.array([isinstance(node, LatentNode) for node in nodes])

    node_scores = solve_influence(matrix, weights)
    kept = (node_scores >= _cut(node_scores, keep_influence)) | always

    selector = sparse.diags_array(kept.astype(float))
    left = sparse.csr_array(selector @ matrix @ selector)
    left.eliminate_zeros()
    shares = normalize(left)
    edge_scores = shares.multiply((solve_influence(left, weights) + weights)[:, None]).tocsr()
    edges = edge_scores.copy()
    edges.data = (edges.data >= _cut(edges.data, keep_edges)).astype(float)
    edges.eliminate_zeros()

    before = None
    while before is None or kept.sum() < before:
        before = kept.sum()
        kept &= always | (edges.sum(axis=0) > 0)
        kept &= ~needs_input | (edges.sum(axis=1) > 0)
        selector = sparse.diags_array(kept.astype(float))
        edges = sparse.csr_array(selector @ edges @ selector)
        edges.eliminate_zeros()
    return kept, edges


def _cut(scores: np.ndarray, keep: float) -> float:
    """The score of the last one kept; everything that scores the same is kept with it."""
    if not scores.size:
        return 0.0
    falling = -np.sort(-scores)
    running = np.cumsum(falling)
    last = np.searchsorted(running, keep * running[-1])
    return float(falling[min(last, scores.size - 1)])
