import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import networkx as nx
import numpy as np
import pytest
import torch
from scipy import sparse

from circuits.errors import UserError
from circuits.nodes import LatentNode, LogitNode, TokenNode
from circuits.sites import Site
from graphs import AttributionGraph, influence, prune
from tests.graphs.synthetic import (
    THREE,
    attribution,
    random_attribution,
    random_graph,
    with_attributes,
)

SITE = Site(0, "mlp")
NODES = [TokenNode(0), TokenNode(1), LatentNode(SITE, 5, 1), LatentNode(SITE, 7, 1), LogitNode("a")]


def test_nodes_and_edges_carry_the_attributions_numbers():
    made = attribution(
        NODES,
        {(0, 2): 1.5, (2, 4): -2.0, (1, 3): 0.0},
        acts=torch.tensor([1.0, 1.0, 4.0, 2.0, 1.0]),
        effects=torch.tensor([0.0, 0.5, -3.0, 1.0, 3.25]),
        grads=torch.tensor([0.0, 0.0, 0.25, 1.0, 1.0]),
    )
    graph = AttributionGraph.from_attribution(made)
    assert list(graph.digraph) == NODES
    latent = graph.digraph.nodes[NODES[2]]
    assert latent == {
        "act": 4.0,
        "change": 4.0,
        "effect": -3.0,
        "grad": 0.25,
        "influence": 1.0,
        "label": None,
        "measured": None,
    }
    # the edge that is exactly zero is no edge
    assert list(graph.digraph.edges(data=True)) == [
        (NODES[0], NODES[2], {"weight": 1.5, "contribution": 1.5 * 0.25, "query_key": None}),
        (NODES[2], NODES[4], {"weight": -2.0, "contribution": -2.0, "query_key": None}),
    ]
    assert graph.provenance == made.provenance
    assert graph.words == made.words
    assert graph.metric_value == 3.25


def test_every_edge_of_a_large_attribution_arrives():
    made = random_attribution(0)
    graph = AttributionGraph.from_attribution(made)
    dense = torch.zeros(len(made.nodes), len(made.nodes))
    index = {node: i for i, node in enumerate(made.nodes)}
    for source, target, weight in graph.digraph.edges(data="weight"):
        dense[index[target], index[source]] = weight
    np.testing.assert_array_equal(dense.numpy(), made.edges.toarray())


def test_latents_come_strongest_first():
    made = attribution(NODES, {}, effects=torch.tensor([9.0, 9.0, -1.0, 3.0, 9.0]))
    graph = AttributionGraph.from_attribution(made)
    assert graph.latents() == [NODES[3], NODES[2]]
    assert graph.latents(top=1) == [NODES[3]]
    for none in ("5", -3, 0, 1.5):
        with pytest.raises(
            UserError, match=f"top={none!r}; give a whole number from 1 on, or None"
        ):
            graph.latents(top=cast(Any, none))


def test_the_digraph_is_frozen():
    graph = random_graph(0, n_layers=1, n_latents=5, n_words=3)
    with pytest.raises(nx.NetworkXError):
        graph.digraph.add_node("x")


def test_the_provenance_is_a_copy():
    made = random_attribution(0, n_layers=1, n_latents=5, n_words=3)
    graph = AttributionGraph.from_attribution(made)
    made.provenance["settings"]["downstream"] = "freeze"
    assert graph.provenance["settings"]["downstream"] == "recompute"


def test_repr_counts():
    graph = AttributionGraph.from_attribution(attribution(NODES, {(0, 2): 1.0}))
    assert repr(graph) == (
        "AttributionGraph(logit diff Mary - John = +3.25: 2 tokens, 2 latents, 1 logit, 1 edge)"
    )


def test_contributions_are_shares_of_the_metric_by_every_output():
    made = random_attribution(3, n_layers=2, n_latents=20, n_words=4, outputs=THREE)
    digraph = AttributionGraph.from_attribution(made).digraph
    assert [digraph.nodes[LogitNode(name)]["grad"] for name, _ in THREE] == pytest.approx(
        [weight for _, weight in THREE]
    )
    assert any(isinstance(target, LogitNode) for _, target in digraph.edges)
    for _, target, edge in digraph.edges(data=True):
        assert edge["contribution"] == edge["weight"] * digraph.nodes[target]["grad"]


@pytest.mark.parametrize("build", [AttributionGraph.from_attribution, prune])
@pytest.mark.parametrize("field", ["acts", "effects", "edges", "target_grads"])
def test_nan_is_refused(field, build):
    made = random_attribution(0, n_layers=1, n_latents=5, n_words=3)
    bad = getattr(made, field) * float("nan")
    with pytest.raises(UserError, match=f"the attribution's {field} hold a NaN or an infinity"):
        build(dataclasses.replace(made, **{field: bad}))


def test_the_part_through_queries_and_keys_is_on_its_edge(tmp_path):
    """Also of a pruned graph, and after saving and loading; 0 where an edge has none."""
    made = attribution(NODES, {(0, 2): 1.5, (2, 4): -2.0, (3, 4): 1.0})
    part = sparse.coo_array(([np.float32(0.5)], ([2], [0])), shape=(5, 5)).tocsr()
    made = dataclasses.replace(made, query_key=part)
    graph = AttributionGraph.from_attribution(made)
    assert graph.digraph.edges[NODES[0], NODES[2]]["query_key"] == 0.5
    assert graph.digraph.edges[NODES[2], NODES[4]]["query_key"] == 0.0
    pruned = prune(made, keep_influence=0.9)
    assert pruned.digraph.edges[NODES[0], NODES[2]]["query_key"] == 0.5
    again = AttributionGraph.load(graph.save(tmp_path / "g.json"))
    assert list(again.digraph.edges(data=True)) == list(graph.digraph.edges(data=True))


def through_json(graph: nx.DiGraph, path: Path) -> nx.DiGraph:
    path.write_text(json.dumps(nx.node_link_data(graph), allow_nan=False))
    return nx.node_link_graph(json.loads(path.read_text()))


def through_graphml(graph: nx.DiGraph, path: Path) -> nx.DiGraph:
    nx.write_graphml(graph, path)
    return nx.read_graphml(path)


def through_gexf(graph: nx.DiGraph, path: Path) -> nx.DiGraph:
    nx.write_gexf(graph, path)
    return nx.read_gexf(path)


@pytest.mark.parametrize("through", [through_json, through_graphml, through_gexf])
def test_networkx_writes_a_plain_graph_and_reads_it_again(through, tmp_path):
    """All that is known of nodes and edges, also where some of them have a label."""
    graph = random_graph(0, n_layers=2, n_latents=10, n_words=4)
    first, second, *_ = graph.latents()
    graph = with_attributes(graph, label={first: "a <b> | on c"}, measured={second: 1 / 3})
    plain, digraph = graph.plain(), graph.digraph
    assert list(plain) == [str(node) for node in digraph]
    again = through(plain, tmp_path / "circuit")
    assert again.is_directed()
    for node, told in digraph.nodes.items():
        there = again.nodes[str(node)]
        assert all(there[name] == told[name] for name in told if told[name] is not None)
        assert "measured" not in there or node == second
    assert again.number_of_edges() == digraph.number_of_edges() > 0
    for source, target, told in digraph.edges(data=True):
        there = again.edges[str(source), str(target)]
        assert all(there[name] == told[name] for name in ("weight", "contribution"))
        assert "query_key" not in there


def test_what_is_no_graph_is_said():
    for call in (prune, influence):
        with pytest.raises(UserError, match=r"give a graph: AttributionGraph.from_attribution"):
            call(cast(Any, "graph.json"))
