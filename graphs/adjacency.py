"""A graph's edges as one sparse matrix, read a few rows at a time."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from attribution import Attribution
from attribution.influence import solve_influence
from circuits.errors import UserError
from circuits.nodes import LogitNode, Node

if TYPE_CHECKING:
    from graphs.graph import AttributionGraph


@dataclass(frozen=True, eq=False)
class Adjacency:
    """Nodes, direct effects and outputs of a graph, as arrays.

    Attributes:
        nodes: `n` of them, in topological order.
        matrix: Direct effects `[target, source]`, `[n, n]`, float32 or float64; none is zero.
        weights: Each logit node's part of the output, 1 in all, and 0 for other nodes, `[n]`.
        off: Latents that only the reference switches on: sources without incoming edges.
        counted: The nodes' influences through all edges, `[n]`, where `matrix` has not all of them.
    """

    nodes: tuple[Node, ...]
    matrix: sparse.csr_array
    weights: np.ndarray
    off: frozenset[Node] = frozenset()
    counted: np.ndarray | None = None

    @cached_property
    def influences(self) -> np.ndarray:
        """Each node's influence on the output, `[n]`, float64 (`attribution.influence`)."""
        return solve_influence(self.matrix, self.weights) if self.counted is None else self.counted


def adjacency(graph: "AttributionGraph | Attribution") -> Adjacency:
    """The arrays of `graph`. Of an attribution no edge is copied, unless some are exactly zero.

    Raises:
        UserError: no graph, or the attribution holds a NaN or an infinity.
    """
    if isinstance(graph, Attribution):
        return _of_attribution(graph)
    check_graph(graph)
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
    weights = logit_weights(nodes, np.array(grads, float))
    off = frozenset(node for node, act in graph.digraph.nodes(data="act", default=1.0) if act == 0)
    return Adjacency(nodes, _without_zeros(matrix), weights, off)


def check_graph(graph: object) -> None:
    """Refuse what is no graph."""
    if not hasattr(graph, "digraph"):
        raise UserError(
            f"got {type(graph).__name__}; give a graph: AttributionGraph.from_attribution(...), "
            "prune(...) or AttributionGraph.load(path)"
        )


def _of_attribution(attribution: Attribution) -> Adjacency:
    grads = attribution.target_grads.double().numpy()
    matrix = attribution.edges
    for name, values in (
        ("edges", matrix.data),
        ("acts", attribution.acts.numpy()),
        ("changes", attribution.changes.numpy()),
        ("effects", attribution.effects.numpy()),
        ("target_grads", grads),
    ):
        if not np.isfinite(values).all():
            raise UserError(
                f"the attribution's {name} hold a NaN or an infinity; "
                "check the model's weights and the metric on this prompt"
            )
    nodes = tuple(attribution.nodes)
    off = frozenset(nodes[i] for i in np.flatnonzero(attribution.acts.numpy() == 0))
    counted = None if attribution.influences is None else attribution.influences.numpy()
    return Adjacency(nodes, _without_zeros(matrix), logit_weights(nodes, grads), off, counted)


def _without_zeros(matrix: sparse.csr_array) -> sparse.csr_array:
    if matrix.data.all():
        return matrix
    matrix = matrix.copy()
    matrix.eliminate_zeros()
    return matrix


def logit_weights(nodes: tuple[Node, ...], grads: np.ndarray) -> np.ndarray:
    """`[n]`: on each logit node its share of their absolute gradients `grads [n]`, 0 elsewhere."""
    is_logit = np.array([isinstance(node, LogitNode) for node in nodes], bool)
    weights = np.abs(grads) * is_logit
    return weights / weights.sum() if weights.any() else weights
