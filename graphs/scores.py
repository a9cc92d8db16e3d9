"""Two scores of how much of a graph is latents rather than errors, as circuit-tracer defines them.

Both are between 0 and 1, and 1 means that no error node matters. They grade the dictionaries on one
prompt; they say nothing about whether an experiment confirms the graph.

Biases take their share of their targets' inputs but count neither as errors nor as tokens.
"""

import math

import numpy as np

from circuits.nodes import ErrorNode, TokenNode
from graphs.graph import AttributionGraph
from graphs.influence import edge_matrix, logit_weights, normalize, solve_influence


def replacement_score(graph: AttributionGraph) -> float:
    """Of the influence that enters the graph at tokens and errors, the share that enters at tokens.

        sum of the tokens' influence / sum of the tokens' and the errors' influence

    Meant for the graph before pruning. NaN if neither reaches the output.
    """
    nodes = list(graph.digraph)
    values = solve_influence(edge_matrix(graph), logit_weights(nodes))
    tokens = sum(x for node, x in zip(nodes, values, strict=True) if isinstance(node, TokenNode))
    errors = sum(x for node, x in zip(nodes, values, strict=True) if isinstance(node, ErrorNode))
    return float(tokens / (tokens + errors)) if tokens + errors > 0 else math.nan


def completeness_score(graph: AttributionGraph) -> float:
    """The share of the nodes' inputs that is not errors, nodes weighted by their influence.

        sum_t (1 - sum_{s error} A[t, s]) * I[t] / sum_t I[t],  I = influence + logit_weights

    Nodes without inputs (tokens, biases and errors themselves) count as complete. Meant for the
    graph before pruning. NaN if the graph has no logit node.
    """
    nodes = list(graph.digraph)
    matrix, weights = edge_matrix(graph), logit_weights(nodes)
    is_error = np.array([isinstance(node, ErrorNode) for node in nodes], float)
    importance = solve_influence(matrix, weights) + weights
    if not importance.sum():
        return math.nan
    complete = 1 - normalize(matrix) @ is_error
    return float((complete * importance).sum() / importance.sum())
