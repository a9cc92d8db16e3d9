import json
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from circuits.nodes import LatentNode, LogitNode, TokenNode, parse_node
from circuits.sites import Site
from graphs import AttributionGraph, influence
from graphs.influence import edge_matrix, logit_weights, normalize, solve_influence
from tests.graphs.synthetic import attribution, random_graph

PEER = json.loads((Path(__file__).parent / "fixtures" / "circuit_tracer.json").read_text())


def peer_matrix(case: dict) -> tuple[list, sparse.csr_array, np.ndarray]:
    """Nodes in topological order, the matrix [target, source] and the logit nodes' weights."""
    names = sorted(case["nodes"], key=_depth)
    index = {name: i for i, name in enumerate(names)}
    sources, targets, values = zip(*case["edges"], strict=True)
    rows, columns = [index[t] for t in targets], [index[s] for s in sources]
    shape = (len(names), len(names))
    weights = np.zeros(len(names))
    weights[-len(case["probabilities"]) :] = case["probabilities"]
    nodes = [parse_node(name) for name in names]
    return nodes, sparse.csr_array((values, (rows, columns)), shape=shape), weights


def _depth(name: str) -> tuple[int, str]:
    match parse_node(name):
        case TokenNode():
            return -1, ""
        case LogitNode():
            return 99, name
        case node:
            return getattr(node, "site").layer, name  # noqa: B009 (has one: not a token, no logit)


@pytest.mark.parametrize("seed", range(3))
def test_influence_is_the_sum_of_the_neumann_series(seed):
    graph = random_graph(seed, n_layers=2, n_latents=25, n_words=6)
    matrix, weights = edge_matrix(graph), logit_weights(list(graph.digraph))
    absolute = np.abs(matrix.toarray())
    totals = absolute.sum(1, keepdims=True)
    shares = np.divide(absolute, totals, out=np.zeros_like(absolute), where=totals > 0)
    series, term = np.zeros(len(weights)), weights
    for _ in weights:
        term = term @ shares
        series += term
    assert series.max() > 0.1
    np.testing.assert_allclose(solve_influence(matrix, weights), series, rtol=1e-12, atol=1e-15)
    assert list(influence(graph).values()) == pytest.approx(series.tolist(), rel=1e-12)


@pytest.mark.parametrize("case", PEER["cases"], ids=["one logit", "three logits"])
def test_influence_is_circuit_tracers(case):
    nodes, matrix, weights = peer_matrix(case)
    ours = dict(zip(map(str, nodes), solve_influence(matrix, weights), strict=True))
    theirs = dict(zip(case["nodes"], case["influence"], strict=True))
    assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-15)


def test_a_chain_passes_all_its_influence_on_and_signs_do_not_matter():
    site = Site(0, "mlp")
    nodes = [TokenNode(0), TokenNode(1), LatentNode(site, 5, 1), LogitNode("a")]
    graph = AttributionGraph.from_attribution(
        attribution(nodes, {(0, 2): 3.0, (1, 2): -1.0, (2, 3): -2.0})
    )
    assert influence(graph) == pytest.approx(dict(zip(nodes, [0.75, 0.25, 1.0, 0.0], strict=True)))
    assert {node: values["influence"] for node, values in graph.digraph.nodes(data=True)} == (
        influence(graph)
    )


def test_what_enters_equals_what_arrives():
    """Influences of the nodes without inputs sum to the logit node's weight, 1."""
    graph = random_graph(4)
    values = influence(graph)
    sources = [node for node in graph.digraph if graph.digraph.in_degree(node) == 0]
    assert sum(values[node] for node in sources) == pytest.approx(1.0, rel=1e-9)


def test_rows_of_shares_sum_to_one_or_zero():
    sums = normalize(edge_matrix(random_graph(1))).sum(axis=1)
    assert np.all(np.isclose(sums, 1) | (sums == 0))
