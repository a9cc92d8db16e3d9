"""How much each node influences the output through every path of the graph.

The definition is that of attribution graphs (Ameisen et al. 2025, "Circuit Tracing", and the
library circuit-tracer): with `w_ts` the direct effect of source s on target t,

    A[t, s]   = |w_ts| / sum_s' |w_ts'|
    influence = logit_weights . (A + A^2 + A^3 + ...) = logit_weights . ((I - A)^-1 - I)

so it counts absolute shares and forgets signs. Errors, tokens and biases are sources like latents:
each takes its share of its targets' inputs. The graph has no cycles, so one walk from the output
down, in which every target hands on what has arrived at it, gives the series' exact sum.
"""

from typing import TYPE_CHECKING

from attribution import Attribution
from attribution.influence import solve_influence
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
    values = solve_influence(whole.matrix, whole.weights)
    return dict(zip(whole.nodes, values.tolist(), strict=True))
