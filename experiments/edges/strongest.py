"""Paths of a graph from a node to what it explains, by what was attributed to them.

    attributed(path) = weight(s -> t1) . weight(t1 -> t2) / change(t1) ... . grad(logit)

`change` is a latent's activation less that in the reference of the graph's edges: against zero, the
activation. The paths of a graph whose nodes are all latents that are on sum to the source's total
effect with `downstream="freeze"`, against that reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nlargest
from itertools import pairwise

import networkx as nx

from circuits import LogitNode, Node, UserError
from circuits.whole_numbers import whole_number
from graphs import AttributionGraph
from graphs.adjacency import check_graph


def strongest_paths(graph: AttributionGraph, source: Node, n: int = 5) -> list[tuple[Node, ...]]:
    """The `n` paths from `source` to a logit node with the largest |attributed| effect.

    Node by node, from the logits down, the `n` strongest ways up are kept: of any path among the
    strongest, each end is among the strongest of its node.

    Raises:
        UserError: a node that the graph does not have, or from which no path leads to the logits.
    """
    check_graph(graph)
    n = whole_number("n", n)
    digraph = graph.digraph
    if source not in digraph or isinstance(source, LogitNode):
        raise UserError(f"the graph has no node {source} for a path to start from; choose another")
    reached = nx.descendants(digraph, source) | {source}
    best: dict[Node, list[tuple[float, tuple[Node, ...]]]] = {}
    for node in reversed([node for node in digraph if node in reached]):  # topological order
        if isinstance(node, LogitNode):
            best[node] = [(digraph.nodes[node]["grad"], (node,))]
            continue
        change = 1.0 if node == source else digraph.nodes[node]["change"]
        ways = (
            (edge["weight"] / change * value, (node, *rest))
            for target, edge in (digraph[node].items() if change else ())
            for value, rest in best[target]
        )
        best[node] = nlargest(n, ways, key=lambda way: abs(way[0]))
    if not best[source]:
        raise UserError(
            f"no path of the graph leads from {source} to the output; prune less, or choose another"
        )
    return [path for _, path in best[source]]


def attributed(graph: AttributionGraph, path: Sequence[Node]) -> float:
    """What is attributed to one path that ends in a logit node, in the metric's units.

    Raises:
        UserError: an edge that the graph does not have.
    """
    check_graph(graph)
    value = graph.digraph.nodes[path[-1]]["grad"] if path[-1] in graph.digraph else 1.0
    for i, (source, target) in enumerate(pairwise(path)):
        if not graph.digraph.has_edge(source, target):
            raise UserError(f"the graph has no edge {source} -> {target}; choose among its paths")
        change = graph.digraph.nodes[source]["change"] if i else 1.0
        value *= graph.digraph[source][target]["weight"] / change
    return value
