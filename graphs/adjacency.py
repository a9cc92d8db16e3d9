"""A graph's edges as one sparse matrix, read a few rows at a time."""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from attribution import Attribution
from circuits.errors import UserError
from circuits.nodes import LogitNode, Node

if TYPE_CHECKING:
    from graphs.graph import AttributionGraph

MOST_EDGES = 1 << 18
"""In a run of rows: its float64 copy, 2 MB, stays in the processor's cache."""


@dataclass(frozen=True, eq=False)
class Adjacency:
    """Nodes, direct effects and outputs of a graph, as arrays.

    Attributes:
        nodes: `n` of them, in topological order.
        matrix: Direct effects `[target, source]`, `[n, n]`, float32 or float64; none is zero.
        weights: Each logit node's part of the output, 1 in all, and 0 for other nodes, `[n]`.
    """

    nodes: tuple[Node, ...]
    matrix: sparse.csr_array
    weights: np.ndarray


def adjacency(graph: "AttributionGraph | Attribution") -> Adjacency:
    """The arrays of `graph`. Of an attribution no edge is copied, unless some are exactly zero.

    Raises:
        UserError: the attribution holds a NaN or an infinity.
    """
    if isinstance(graph, Attribution):
        return _of_attribution(graph)
    nodes = tuple(graph.digraph)
    index = {node: i for i, node in enumerate(nodes)}
    outgoing = [neighbours for _, neighbours in graph.digraph.adjacency()]
    targets = [index[target] for neighbours in outgoing for target in neighbours]
    weights = [edge["weight"] for neighbours in outgoing for edge in neighbours.values()]
    starts = np.cumsum([0, *map(len, outgoing)])
    matrix = sparse.csc_array(
        (np.array(weights, float), np.array(targets, int), starts), shape=(len(nodes), len(nodes))
    ).tocsr()
    grads = [graph.digraph.nodes[node]["grad"] for node in nodes]
    return Adjacency(nodes, _without_zeros(matrix), logit_weights(nodes, np.array(grads, float)))


def _of_attribution(attribution: Attribution) -> Adjacency:
    grads = attribution.target_grads.double().numpy()
    matrix = attribution.edges
    for name, values in (
        ("edges", matrix.data),
        ("acts", attribution.acts.numpy()),
        ("effects", attribution.effects.numpy()),
        ("target_grads", grads),
    ):
        if not np.isfinite(values).all():
            raise UserError(
                f"the attribution's {name} hold a NaN or an infinity; "
                "check the model's weights and the metric on this prompt"
            )
    nodes = tuple(attribution.nodes)
    return Adjacency(nodes, _without_zeros(matrix), logit_weights(nodes, grads))


def _without_zeros(matrix: sparse.csr_array) -> sparse.csr_array:
    if np.count_nonzero(matrix.data) == matrix.nnz:
        return matrix
    matrix = matrix.copy()
    matrix.eliminate_zeros()
    return matrix


def logit_weights(nodes: tuple[Node, ...], grads: np.ndarray) -> np.ndarray:
    """`[n]`: on each logit node its share of their absolute gradients `grads [n]`, 0 elsewhere."""
    is_logit = np.array([isinstance(node, LogitNode) for node in nodes], bool)
    weights = np.abs(grads) * is_logit
    return weights / weights.sum() if weights.any() else weights


def runs(matrix: sparse.csr_array) -> list[slice]:
    """All rows of `matrix` `[target, source]`, first to last, cut into runs without inner edges.

    Where nodes come site by site, a run is the latents and errors of a site (or a part of them,
    where they have very many edges), so that a graph has few runs and each is a few calls to numpy.
    """
    assert matrix.has_sorted_indices
    n = len(matrix.indptr) - 1
    filled = np.diff(matrix.indptr) > 0
    last = np.full(n, -1)  # the last source of each target
    last[filled] = matrix.indices[matrix.indptr[1:][filled] - 1]
    assert (last < np.arange(n)).all(), "nodes must be in topological order"

    start, starts = 0, [0]
    for row, source in enumerate(last.tolist()):
        if source >= start or matrix.indptr[row + 1] - matrix.indptr[start] > MOST_EDGES:
            start = row
            starts.append(start)
    return [slice(*pair) for pair in pairwise([*starts, n])]


def absolute(matrix: sparse.csr_array, rows: slice) -> sparse.csr_array:
    """`|matrix[rows]|` in float64; of a run's edges only the values are copied."""
    start, stop = matrix.indptr[rows.start], matrix.indptr[rows.stop]
    return sparse.csr_array(
        (
            np.abs(matrix.data[start:stop], dtype=np.float64),
            matrix.indices[start:stop],
            matrix.indptr[rows.start : rows.stop + 1] - start,
        ),
        shape=(rows.stop - rows.start, len(matrix.indptr) - 1),
    )


def reciprocal(totals: np.ndarray) -> np.ndarray:
    """`1 / totals`, and 0 for nodes without inputs."""
    return np.divide(1.0, totals, out=np.zeros_like(totals), where=totals > 0)
