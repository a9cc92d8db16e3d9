import math

import networkx as nx
import pytest

from circuits.nodes import BiasNode, ErrorNode, LatentNode, LogitNode, TokenNode
from circuits.sites import Site
from graphs import AttributionGraph, completeness_score, replacement_score
from tests.graphs.synthetic import attribution, random_attribution
from tests.graphs.test_influence import PEER, peer_arrays

SITE = Site(0, "mlp")


@pytest.mark.parametrize("case", PEER["cases"], ids=["one logit", "three logits"])
def test_both_scores_are_circuit_tracers(case):
    peer = peer_arrays(case)
    digraph = nx.DiGraph()
    for node, weight in zip(peer.nodes, peer.weights.tolist(), strict=True):
        digraph.add_node(node, grad=weight)
    for target, source in zip(*peer.matrix.nonzero(), strict=True):
        weight = float(peer.matrix[target, source])
        digraph.add_edge(peer.nodes[source], peer.nodes[target], weight=weight)
    graph = AttributionGraph(digraph, (), 0.0, {})
    assert replacement_score(graph) == pytest.approx(case["replacement_score"], rel=1e-12)
    assert completeness_score(graph) == pytest.approx(case["completeness_score"], rel=1e-12)


def test_by_hand():
    """Half of the latent's input is error; all of the output's input is the latent."""
    nodes = [TokenNode(0), TokenNode(1), ErrorNode(Site(0, "attn"), 1)]
    nodes += [LatentNode(SITE, 1, 1), LogitNode("a")]
    edges = {(0, 3): 2.0, (2, 3): -2.0, (3, 4): 1.0}
    graph = AttributionGraph.from_attribution(attribution(nodes, edges))
    assert replacement_score(graph) == pytest.approx(0.5)
    # importance: output 1, latent 1, token 1/2, error 1/2; all complete but the latent
    assert completeness_score(graph) == pytest.approx((1 + 0.5 + 0.5 + 0.5) / 3)


def test_without_errors_both_are_one_and_biases_do_not_count_against_them():
    nodes = [TokenNode(0), BiasNode(SITE), LatentNode(SITE, 1, 0), LogitNode("a")]
    edges = {(0, 2): 1.0, (1, 2): 5.0, (2, 3): 1.0}
    graph = AttributionGraph.from_attribution(attribution(nodes, edges, words=("<bos>",)))
    assert replacement_score(graph) == 1.0
    assert completeness_score(graph) == 1.0


def test_scores_are_shares_and_need_no_graph():
    made = random_attribution(0)
    graph = AttributionGraph.from_attribution(made)
    assert 0 < replacement_score(graph) < 1
    assert 0 < completeness_score(graph) < 1
    assert replacement_score(made) == replacement_score(graph)
    assert completeness_score(made) == completeness_score(graph)


def test_no_path_no_replacement_score():
    nodes = [TokenNode(0), LogitNode("a")]
    graph = AttributionGraph.from_attribution(attribution(nodes, {}, words=("<bos>",)))
    assert math.isnan(replacement_score(graph))
    assert completeness_score(graph) == 1.0
