"""How much each node influences the output through every path of the graph.

The definition is in `attribution.influence`. It counts absolute shares and forgets signs. Errors,
tokens and biases are sources like latents: each takes its share of its targets' inputs.
"""

from typing import TYPE_CHECKING

from attribution import Attribution
from circuits.nodes import Node
from graphs.adjacency import adjacency

if TYPE_CHECKING:
    from graphs.graph import AttributionGraph


def influence(graph: "AttributionGraph | Attribution") -> dict[Node, float]:
    """Each node's influence on the output, computed from the edges' weights as they stand.

    Logit nodes weigh 1 in all, each by its absolute gradient to the metric (`grad`), and have no
    influence of their own (0.0). Of the nodes that a path crosses one after the other each counts
    in full, so the values of all nodes sum to more than 1.
    """
    whole = adjacency(graph)
    return dict(zip(whole.nodes, whole.influences.tolist(), strict=True))
