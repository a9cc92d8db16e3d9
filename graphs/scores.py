"""Two scores of how much of a graph is latents rather than errors, as circuit-tracer defines them.

Both are between 0 and 1, and 1 means that no error node matters. They grade the dictionaries on one
prompt; they say nothing about whether an experiment confirms the graph. An `Attribution` has the
scores of its graph, which need not be built for them.

Biases take their share of their targets' inputs but count neither as errors nor as tokens, and so
do latents that only the reference switches on.
"""

import math

import numpy as np

from attribution import Attribution
from circuits.nodes import ErrorNode, TokenNode
from graphs.adjacency import adjacency
from graphs.graph import AttributionGraph
from graphs.influence import influence


def replacement_score(graph: AttributionGraph | Attribution) -> float:
    """Of the influence that enters the graph at tokens and errors, the share that enters at tokens.

        sum of the tokens' influence / sum of the tokens' and the errors' influence

    Meant for the graph before pruning. NaN if neither reaches the output.
    """
    values = influence(graph)
    tokens = sum(value for node, value in values.items() if isinstance(node, TokenNode))
    errors = sum(value for node, value in values.items() if isinstance(node, ErrorNode))
    return float(tokens / (tokens + errors)) if tokens + errors > 0 else math.nan


def completeness_score(graph: AttributionGraph | Attribution) -> float:
    """The share of the nodes' inputs that is not errors, nodes weighted by their influence.

        sum_t (1 - sum_{s error} A[t, s]) * I[t] / sum_t I[t],  I = influence + logit_weights

    Nodes without inputs (tokens, biases and errors themselves) count as complete. What errors take
    from all targets, `sum_t A[t, s] * I[t]`, is their influence. Meant for the graph before
    pruning. NaN if the graph has no logit node.
    """
    whole = adjacency(graph)
    is_error = np.array([isinstance(node, ErrorNode) for node in whole.nodes], bool)
    importance = (whole.influences + whole.weights).sum()
    return float(1 - whole.influences[is_error].sum() / importance) if importance else math.nan
