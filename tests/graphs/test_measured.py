from dataclasses import dataclass

import pytest

from circuits.errors import UserError
from circuits.nodes import Node, TokenNode
from graphs import with_measured
from graphs.text import caption
from tests.graphs.synthetic import random_graph


@dataclass(frozen=True)
class Row:
    node: Node
    measured: float


def test_rows_are_set_beside_the_attributed_effect():
    graph = random_graph(0, n_layers=1, n_latents=6, n_words=3)
    rows = [Row(node=node, measured=0.5 * i) for i, node in enumerate(graph.latents())]
    measured = with_measured(graph, rows[:4], settings={"reference": "zero"})
    nodes = measured.digraph.nodes
    assert [nodes[row.node]["measured"] for row in rows] == [0.0, 0.5, 1.0, 1.5, None, None]
    assert nodes[rows[1].node]["effect"] == graph.digraph.nodes[rows[1].node]["effect"]
    assert measured.provenance["measured"] == {"reference": "zero"}
    assert list(measured.digraph.edges(data=True)) == list(graph.digraph.edges(data=True))


def test_the_graph_given_is_left_as_it_was():
    graph = random_graph(0, n_layers=1, n_latents=6, n_words=3)
    with_measured(graph, [Row(node=graph.latents()[0], measured=1.0)])
    assert all(value is None for _, value in graph.digraph.nodes(data="measured"))
    assert "measured" not in graph.provenance


def test_a_node_that_is_not_in_the_graph_is_refused():
    with pytest.raises(UserError, match="token@77 was measured but is not in the graph"):
        with_measured(random_graph(0), [Row(node=TokenNode(77), measured=1.0)])


@pytest.mark.parametrize("other", [{"reference": "corrupted"}, None])
def test_one_caption_speaks_for_all_numbers_that_are_shown(other):
    """Rows of other settings take the place of all there were; rows of the same join them."""
    graph = random_graph(0, n_layers=1, n_latents=6, n_words=3)
    first, second, third = graph.latents()[:3]
    zero = {"reference": "zero"}
    measured = with_measured(graph, [Row(node=first, measured=1.0)], settings=zero)
    joined = with_measured(measured, [Row(node=second, measured=2.0)], settings=zero)
    replaced = with_measured(joined, [Row(node=third, measured=3.0)], settings=other)
    found = [
        {node: value for node, value in g.digraph.nodes(data="measured") if value is not None}
        for g in (joined, replaced)
    ]
    assert found == [{first: 1.0, second: 2.0}, {third: 3.0}]
    assert "Measured: reference zero." in caption(joined)
    said = [sentence for sentence in caption(replaced) if sentence.startswith("Measured")]
    assert said == (["Measured: reference corrupted."] if other else [])


@pytest.mark.parametrize("row", [1, "resid.0/latent.1@2", TokenNode(1)])
def test_what_is_no_measurement_is_refused(row):
    with pytest.raises(UserError, match="is no measurement of a node; give what ablate_each"):
        with_measured(random_graph(0), [row])
