"""How much each node influences the output through every path of the graph.

The definition is that of attribution graphs (Ameisen et al. 2025, "Circuit Tracing", and the
library circuit-tracer): with `w_ts` the direct effect of source s on target t,

    A[t, s]   = |w_ts| / sum_s' |w_ts'|
    influence = logit_weights . (A + A^2 + A^3 + ...) = logit_weights . ((I - A)^-1 - I)

so it counts absolute shares and forgets signs. Errors, tokens and biases are sources like latents:
each takes its share of its targets' inputs. The graph has no cycles, A is strictly triangular in
topological order, and one triangular solve gives the series' exact sum.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import spsolve_triangular

from circuits.nodes import LogitNode, Node

if TYPE_CHECKING:
    from graphs.graph import AttributionGraph


def influence(graph: "AttributionGraph") -> dict[Node, float]:
    """Each node's influence on the output, computed from the graph's `weight`s as they stand.

    Logit nodes weigh 1 in all, in equal parts, and have no influence of their own (0.0). Of the
    nodes that a path crosses one after the other each counts in full, so the values of all nodes
    sum to more than 1.
    """
    nodes = list(graph.digraph)
    values = solve_influence(edge_matrix(graph), logit_weights(nodes))
    return dict(zip(nodes, values.tolist(), strict=True))


def edge_matrix(graph: "AttributionGraph") -> sparse.csr_array:
    """The direct effects `[target, source]`, float64, in the order of the graph's nodes."""
    index = {node: i for i, node in enumerate(graph.digraph)}
    edges = [(index[t], index[s], w) for s, t, w in graph.digraph.edges(data="weight")]
    targets, sources, weights = zip(*edges, strict=True) if edges else ((), (), ())
    return sparse.csr_array(
        (np.array(weights, float), (np.array(targets, int), np.array(sources, int))),
        shape=(len(index), len(index)),
    )


def logit_weights(nodes: Sequence[Node]) -> np.ndarray:
    """`[n]`: equal parts of 1 on the logit nodes, 0 elsewhere."""
    is_logit = np.array([isinstance(node, LogitNode) for node in nodes], float)
    return is_logit / max(is_logit.sum(), 1.0)


def normalize(matrix: sparse.csr_array) -> sparse.csr_array:
    """Absolute shares of each target's inputs: rows sum to 1, or to 0 where a node has no input."""
    absolute = abs(matrix)
    totals = absolute.sum(axis=1)
    scale = np.divide(1.0, totals, out=np.zeros_like(totals), where=totals > 0)
    return sparse.csr_array(absolute.multiply(scale[:, None]))


def solve_influence(matrix: sparse.csr_array, weights: np.ndarray) -> np.ndarray:
    """`weights . (A + A^2 + ...)` for `matrix` `[target, source]` in topological order.

    With x the answer, x (I - A) = weights A, that is (I - A)^T x = A^T weights.
    """
    shares = normalize(matrix)
    assert sparse.triu(shares).nnz == 0, "nodes must be in topological order"
    system = sparse.csr_array(sparse.eye_array(len(weights)) - shares.T)
    return spsolve_triangular(system, shares.T @ weights, lower=False, unit_diagonal=True)
