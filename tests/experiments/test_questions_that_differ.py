"""A measurement belongs to its question: other prompts, metrics and repetitions do not slip in."""

import math
from typing import Any

import pytest

from attribution import attribute, kl, logit, logit_diff, total_effects
from circuits import Prompt, UserError
from experiments import ablate_each, faithfulness_curve
from graphs import AttributionGraph, with_measured
from tests.random_gemma import TEXT

METRIC = logit_diff("w19", "w31")


@pytest.fixture(scope="module")
def graph(model) -> AttributionGraph:
    return AttributionGraph.from_attribution(attribute(model, TEXT, METRIC, max_latents=30))


def test_measurements_of_another_question_are_refused(model, graph):
    nodes = graph.latents(top=2)
    assert with_measured(graph, ablate_each(model, TEXT, METRIC, nodes))
    with pytest.raises(UserError, match="the graph's metric is 'w19 - w31'"):
        with_measured(graph, ablate_each(model, TEXT, logit("w3"), nodes))
    other = Prompt(TEXT.replace("w1 ", "w2 "))
    with pytest.raises(UserError, match="the graph's prompt is"):
        with_measured(graph, ablate_each(model, other, METRIC, nodes))


def test_nothing_is_attributed_to_a_metric_that_is_flat_on_the_clean_run(model):
    nodes = total_effects(model, TEXT, METRIC).strongest(3)
    rows = ablate_each(model, TEXT, kl(TEXT), nodes)
    assert all(math.isnan(row.attributed) and row.measured < 0 for row in rows)
    assert math.isnan(rows.correlation)


def test_a_latent_counts_once(model):
    text = "w1 w5 w9 w2 w5 w9 w30"
    node, *_ = total_effects(model, text, METRIC).strongest(1)
    curve = faithfulness_curve(model, text, METRIC, [node] * 5, sizes=[5], n_random=0)
    assert [score.size for score in curve.scores] == [1]


def test_a_graph_is_no_list_of_nodes(model, graph: Any):
    with pytest.raises(UserError, match=r"such as graph\.latents"):
        ablate_each(model, TEXT, METRIC, graph)
