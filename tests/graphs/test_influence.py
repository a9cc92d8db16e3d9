import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from attribution import influence as influence_module
from attribution.influence import absolute, runs, solve_influence
from circuits.nodes import LatentNode, LogitNode, TokenNode, parse_node
from circuits.sites import Site
from graphs import AttributionGraph, influence
from graphs.adjacency import Adjacency, adjacency
from tests.graphs.synthetic import THREE, attribution, random_attribution, random_graph

PEER = json.loads((Path(__file__).parent / "fixtures" / "circuit_tracer.json").read_text())


def peer_arrays(case: dict) -> Adjacency:
    """Nodes in topological order, the matrix [target, source] and the logit nodes' weights."""
    names = sorted(case["nodes"], key=_depth)
    index = {name: i for i, name in enumerate(names)}
    sources, targets, values = zip(*case["edges"], strict=True)
    rows, columns = [index[t] for t in targets], [index[s] for s in sources]
    matrix = sparse.csr_array((values, (rows, columns)), shape=(len(names), len(names)))
    weights = np.zeros(len(names))
    weights[-len(case["probabilities"]) :] = case["probabilities"]
    return Adjacency(tuple(parse_node(name) for name in names), matrix, weights)


def _depth(name: str) -> tuple[int, str]:
    match parse_node(name):
        case TokenNode():
            return -1, ""
        case LogitNode():
            return 99, name
        case node:
            return getattr(node, "site").layer, name  # noqa: B009 (has one: not a token, no logit)


def neumann_series(matrix: sparse.csr_array, weights: np.ndarray) -> np.ndarray:
    """`weights . (A + A^2 + ...)`, term by term, dense."""
    whole = np.abs(matrix.toarray().astype(float))
    totals = whole.sum(1, keepdims=True)
    shares = np.divide(whole, totals, out=np.zeros_like(whole), where=totals > 0)
    series, term = np.zeros(len(weights)), weights
    for _ in weights:
        term = term @ shares
        series += term
    return series


@pytest.mark.parametrize("outputs", [(("Mary", 1.0),), THREE], ids=["one logit", "three logits"])
@pytest.mark.parametrize("most_edges", [40, 1 << 18], ids=["short runs", "whole levels"])
def test_influence_is_the_sum_of_the_neumann_series(outputs, most_edges, monkeypatch):
    monkeypatch.setattr(influence_module, "MOST_EDGES", most_edges)
    made = random_attribution(1, n_layers=2, n_latents=25, n_words=6, outputs=outputs)
    graph = AttributionGraph.from_attribution(made)
    whole = adjacency(graph)
    series = neumann_series(whole.matrix, whole.weights)
    assert series.max() > 0.1
    for given_as in (graph, made):
        assert list(influence(given_as).values()) == pytest.approx(series.tolist(), rel=1e-12)


@given(n=st.integers(1, 12), density=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_influence_in_any_acyclic_graph(n, density, seed):
    rng = np.random.default_rng(seed)
    dense = np.tril(rng.standard_normal((n, n)) * (rng.random((n, n)) < density), -1)
    weights = rng.random(n)
    matrix = sparse.csr_array(dense.astype(np.float32))
    np.testing.assert_allclose(
        solve_influence(matrix, weights), neumann_series(matrix, weights), rtol=1e-12, atol=1e-15
    )


def test_logit_nodes_weigh_by_their_absolute_gradients():
    whole = adjacency(random_attribution(1, n_layers=1, n_latents=5, n_words=3, outputs=THREE))
    assert whole.weights.tolist()[-4:] == pytest.approx([0.0, 0.6 / 0.95, 0.25 / 0.95, 0.1 / 0.95])


def test_runs_are_all_rows_in_order_and_have_no_inner_edge():
    graph = random_graph(0)
    matrix = adjacency(graph).matrix
    order = runs(matrix)
    in_order = [row for rows in order for row in range(rows.start, rows.stop)]
    assert in_order == list(range(len(graph.digraph)))
    assert all(matrix[rows, rows].nnz == 0 for rows in order)
    # tokens, then of 12 sites the bias and the rest, the next one's bias with it, then the output
    assert len(order) == 14
    dense = np.abs(matrix.toarray())
    for rows in order:
        np.testing.assert_array_equal(absolute(matrix, rows).toarray(), dense[rows])


@pytest.mark.parametrize("case", PEER["cases"], ids=["one logit", "three logits"])
def test_influence_is_circuit_tracers(case):
    peer = peer_arrays(case)
    values = solve_influence(peer.matrix, peer.weights)
    ours = dict(zip(map(str, peer.nodes), values, strict=True))
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
