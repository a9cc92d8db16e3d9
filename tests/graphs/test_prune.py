from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from circuits.errors import UserError
from circuits.nodes import BiasNode, ErrorNode, LatentNode, LogitNode, Node, TokenNode
from circuits.sites import Site
from graphs import AttributionGraph, influence, prune
from graphs.prune import connected, prune_adjacency
from tests.graphs.synthetic import THREE, attribution, random_attribution, random_graph
from tests.graphs.test_influence import PEER, peer_arrays


@pytest.mark.parametrize("case", PEER["cases"], ids=["one logit", "three logits"])
@pytest.mark.parametrize("which", range(3))
def test_the_same_nodes_and_edges_stay_as_in_circuit_tracer(case, which):
    peer, theirs = peer_arrays(case), case["pruned"][which]
    part = prune_adjacency(peer, theirs["keep_influence"], theirs["keep_edges"])
    names = [str(peer.nodes[i]) for i in part.kept]
    assert set(names) == set(theirs["nodes"])
    targets, sources = part.edges.nonzero()
    pairs = {(names[s], names[t]) for s, t in zip(sources, targets, strict=True)}
    assert pairs == {tuple(pair) for pair in theirs["edges"]}


@pytest.mark.parametrize("shares", [(0.8, 0.98), (0.4, 0.7), (1, 1), (0, 0)])
@pytest.mark.parametrize("outputs", [(("Mary", 1.0),), THREE], ids=["one logit", "three logits"])
def test_pruning_before_networkx_is_pruning_after(shares, outputs):
    made = random_attribution(5, n_layers=3, n_latents=60, n_words=8, outputs=outputs)
    shares = dict(zip(("keep_influence", "keep_edges"), shares, strict=True))
    slow = prune(AttributionGraph.from_attribution(made), **shares)
    fast = prune(made, **shares)
    # in the same order too, in both directions, and to the last digit
    assert list(fast.digraph.nodes(data=True)) == list(slow.digraph.nodes(data=True))
    assert list(fast.digraph.edges(data=True)) == list(slow.digraph.edges(data=True))
    assert list(fast.digraph.in_edges) == list(slow.digraph.in_edges)
    assert fast.provenance == slow.provenance
    assert (fast.words, fast.metric_value) == (slow.words, slow.metric_value)


def test_an_attribution_is_left_as_it_was():
    made = random_attribution(5, n_layers=2, n_latents=30, n_words=5)
    before = made.edges.copy()
    prune(made)
    assert (made.edges != before).nnz == 0
    assert "pruned" not in made.provenance


@settings(max_examples=50)
@given(density=st.floats(0.05, 0.4), seed=st.integers(0, 2**32 - 1))
def test_what_lies_on_paths_is_what_taking_loose_ends_one_by_one_leaves(density, seed):
    rng = np.random.default_rng(seed)
    nodes: list[Node] = [TokenNode(0), TokenNode(1), ErrorNode(Site(0, "attn"), 1)]
    nodes += [LatentNode(Site(i, "mlp"), 0, 1) for i in range(9)] + [LogitNode("a"), LogitNode("b")]
    n = len(nodes)
    dense = np.tril(rng.standard_normal((n, n)) * (rng.random((n, n)) < density), -1)
    dense[:3] = dense[-1, -2] = 0  # nothing reaches tokens and errors, no logit another
    always = np.array([isinstance(node, TokenNode | LogitNode) for node in nodes])
    needs_input = np.array([isinstance(node, LatentNode) for node in nodes])
    found = connected(sparse.csr_array(dense), ~needs_input, always) | always

    graph = nx.DiGraph([(nodes[s], nodes[t]) for t, s in zip(*dense.nonzero(), strict=True)])
    graph.add_nodes_from(nodes)
    while ends := [node for node in graph if is_loose(node, graph)]:
        graph.remove_node(ends[0])
    assert {node for node, keep in zip(nodes, found, strict=True) if keep} == set(graph)


def is_loose(node: Node, graph: nx.DiGraph) -> bool:
    ends = not isinstance(node, TokenNode | LogitNode) and graph.out_degree(node) == 0
    return ends or (isinstance(node, LatentNode) and graph.in_degree(node) == 0)


def test_more_influence_never_loses_a_node():
    graph = random_graph(0)
    kept = [
        set(prune(graph, keep_influence=share / 20, keep_edges=1).digraph) for share in range(21)
    ]
    assert all(smaller <= larger for smaller, larger in pairwise(kept))
    assert len(kept[4]) < len(kept[16]) < len(kept[20])


def test_keeping_everything_drops_only_what_reaches_no_output():
    graph = random_graph(0)
    everything = prune(graph, keep_influence=1, keep_edges=1).digraph
    reaches = {node for node, value in influence(graph).items() if value > 0}
    always = {node for node in graph.digraph if isinstance(node, TokenNode | LogitNode)}
    rootless = {
        node
        for node in graph.digraph
        if isinstance(node, LatentNode) and graph.digraph.in_degree(node) == 0
    }
    assert set(everything) == (reaches - rootless) | always


def test_every_node_left_lies_on_a_path_to_the_output():
    graph = prune(random_graph(2), keep_influence=0.7, keep_edges=0.8).digraph
    for node in graph:
        if isinstance(node, LatentNode | ErrorNode | BiasNode):
            assert graph.out_degree(node) > 0
        if isinstance(node, LatentNode):
            assert graph.in_degree(node) > 0


def test_loose_ends_are_removed_again_and_again():
    """Without its two weak inputs the first latent goes, and so the second, which had no other."""
    first, second, strong = (LatentNode(Site(i, "mlp"), i, 1) for i in range(3))
    nodes = [TokenNode(0), TokenNode(1)]
    nodes += [ErrorNode(Site(0, "attn"), 0), ErrorNode(Site(0, "attn"), 1)]
    nodes += [first, second, strong, LogitNode("a")]
    edges = {(2, 4): 1.0, (3, 4): 1.0, (4, 5): 1.0, (5, 7): 0.4, (0, 6): 1.0, (6, 7): 0.6}
    graph = AttributionGraph.from_attribution(attribution(nodes, edges))
    # edges' scores: 0.6 twice on the strong path, 0.4 twice and at its start 0.2 twice on the other
    kept = prune(graph, keep_influence=1.0, keep_edges=0.8).digraph
    assert set(kept) == {TokenNode(0), TokenNode(1), strong, LogitNode("a")}


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1))
def test_equal_scores_are_kept_together_however_they_round(seed):
    """All three edges of a chain score the same: what is kept is whole chains, of enough score."""
    weights = np.abs(np.random.default_rng(seed).normal(size=(3, 3))).astype(np.float32) + 0.1
    lower, upper = ([LatentNode(Site(i, "mlp"), j, 1) for j in range(3)] for i in range(2))
    edges = {}
    for j, chain in enumerate(weights):
        edges |= {(0, 1 + j): chain[0], (1 + j, 4 + j): chain[1], (4 + j, 7): chain[2]}
    made = attribution([TokenNode(1), *lower, *upper, LogitNode("a")], edges)
    kept = prune(made, keep_influence=1, keep_edges=0.5).digraph
    shares = weights[:, 2] / weights[:, 2].sum(dtype=float)
    chains = [j for j in range(3) if lower[j] in kept]
    assert len(kept.edges) == 3 * len(chains)
    assert shares[chains].sum() >= 0.5 * (1 - 1e-6)


def test_a_latent_that_only_the_reference_switches_on_is_a_source():
    """It needs no input to stay, and has its influence as an error has."""
    off, on = (LatentNode(Site(0, "mlp"), i, 1) for i in range(2))
    nodes = [TokenNode(0), off, on, LogitNode("a")]
    edges = {(0, 2): 1.0, (1, 3): 2.0, (2, 3): 1.0}
    for acts, stays in (([1.0, 0.0, 3.0, 1.0], True), ([1.0, 2.0, 3.0, 1.0], False)):
        made = attribution(nodes, edges, acts=torch.tensor(acts))
        for given_graph in (made, AttributionGraph.from_attribution(made)):
            kept = prune(given_graph, keep_influence=1.0, keep_edges=1.0).digraph
            assert (off in kept) == stays
            assert influence(given_graph)[off] == pytest.approx(2 / 3)


def test_the_graph_given_is_left_as_it_was_and_attributes_are_carried_over():
    graph = random_graph(3)
    before = {node: dict(values) for node, values in graph.digraph.nodes(data=True)}
    edges = list(graph.digraph.edges(data=True))
    pruned = prune(graph)
    assert {node: dict(values) for node, values in graph.digraph.nodes(data=True)} == before
    assert list(graph.digraph.edges(data=True)) == edges
    assert "pruned" not in graph.provenance
    order = [node for node in graph.digraph if node in pruned.digraph]
    assert list(pruned.digraph) == order
    assert all(pruned.digraph.nodes[node] == before[node] for node in order)
    assert pruned.provenance["pruned"] == [
        {
            "keep_influence": 0.8,
            "keep_edges": 0.98,
            "nodes_before": len(graph.digraph),
            "edges_before": len(edges),
        }
    ]


@pytest.mark.parametrize("share", [-0.1, 1.5, 80])
@pytest.mark.parametrize("name", ["keep_influence", "keep_edges"])
def test_a_share_outside_0_to_1_is_refused(name, share):
    with pytest.raises(UserError, match=f"{name} is {share}"):
        prune(random_graph(0, n_layers=1, n_latents=4, n_words=2), **{name: share})


def test_a_graph_without_edges_prunes_to_tokens_and_output():
    nodes = [TokenNode(0), TokenNode(1), LatentNode(Site(0, "mlp"), 1, 1), LogitNode("a")]
    graph = AttributionGraph.from_attribution(attribution(nodes, {}))
    assert list(prune(graph).digraph) == [TokenNode(0), TokenNode(1), LogitNode("a")]
