"""A data set's circuit holds the nodes of largest mean effect, with what the mean hides."""

from dataclasses import replace

import numpy as np
import pytest

from attribution import logit_diff
from circuits import Prompt, UserError
from experiments.kinds import patch
from experiments.pooled import measured_effects, pooled_effects
from experiments.pooled_circuit import dataset_circuit
from experiments.spans import aligned, by_pattern
from tests.experiments.test_pooled import PROMPTS, pair

TEST = [pair("w3 w5 w9 w2 w8 w9 w30", 1), pair("w2 w6 w9 w2 w5 w9 w12", 2)]


@pytest.fixture(scope="module")
def circuit(model):
    return dataset_circuit(model, PROMPTS, k=15, test=TEST)


def test_its_nodes_and_numbers_are_those_of_the_prompts(model, circuit):
    pooled = pooled_effects(model, PROMPTS, aligned(model, PROMPTS), logit_diff, patch())
    dense = pooled.effect.toarray()
    means = {
        node: column
        for node, column in zip(pooled.nodes, dense.T, strict=True)
        if node.latent is not None
    }
    spans = aligned(model, PROMPTS)
    measured = measured_effects(model, PROMPTS, spans, logit_diff, circuit.nodes, patch())
    np.testing.assert_allclose(circuit.frame()["measured"], measured.effect.mean(0), atol=2e-5)
    ranked = sorted(means, key=lambda node: -abs(means[node].mean()))
    assert list(circuit.nodes) == ranked[:15]
    for node, row in zip(circuit.nodes, circuit.frame().itertuples(), strict=True):
        values = means[node]
        assert row.mean == pytest.approx(values.mean())
        assert row.mean_abs == pytest.approx(np.abs(values).mean())
        assert row.cancellation == pytest.approx(1 - abs(values.sum()) / np.abs(values).sum())
        assert row.low <= row.mean <= row.high
        assert 0 <= row.inclusion <= 1


def test_test_prompts_rank_for_themselves(model, circuit):
    own = dataset_circuit(model, TEST, k=15)
    shared = len(set(own.nodes) & set(circuit.nodes))
    assert circuit.test_jaccard == pytest.approx(shared / (30 - shared))
    assert circuit.n_test == 2


def test_prompts_that_are_all_alike_make_a_firm_list(model):
    alike = [PROMPTS[0]] * 4
    one = dataset_circuit(model, [replace(p, foil=f"w{20 + i}") for i, p in enumerate(alike)], k=5)
    assert one.stability.jaccard <= 1
    same = dataset_circuit(model, alike, k=5)
    assert same.stability.jaccard == same.stability.pairwise == 1
    assert (np.asarray(same.frame()["inclusion"]) == 1).all()
    assert same.frame()["cancellation"].to_numpy() == pytest.approx(0)


def test_spans_pool_prompts_of_different_lengths(model, tmp_path):
    prompts = [
        Prompt("w1 w5 w9 w2", target="w19", foil="w31", corrupted="w4 w5 w9 w2"),
        Prompt("w1 w5 w5 w9 w2", target="w19", foil="w31", corrupted="w4 w5 w5 w9 w2"),
    ]
    spans = by_pattern(model, prompts, r"^(?P<first>\w+) (?P<fill>(w5 )+)(?P<last>w9 w2)")
    circuit = dataset_circuit(model, prompts, k=10, spans=spans)
    assert {node.span for node in circuit.nodes} <= set(spans.names)
    assert "<svg" in circuit.plot(tmp_path / "c.svg").read_text()


def test_a_circuit_is_not_tested_on_its_own_prompts(model):
    with pytest.raises(UserError, match="1 of 1 test texts are also among the prompts"):
        dataset_circuit(model, PROMPTS, test=PROMPTS[:1])
