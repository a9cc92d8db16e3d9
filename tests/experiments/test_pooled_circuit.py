"""A data set's circuit holds the nodes of largest mean effect, with what the mean hides."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse

from attribution import logit_diff
from circuits import Prompt, Site, UserError
from experiments.circuit.pooled_circuit import dataset_circuit
from experiments.kinds import patch
from experiments.pooled import PooledEffects, measured_effects, pairs_of, pooled_effects
from experiments.records import record_of
from experiments.spans import SpanNode, aligned, by_pattern
from experiments.statistics import cluster_interval, top_k_inclusion
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
        assert row.unadjusted_low <= row.mean <= row.unadjusted_high
        assert 0 <= row.inclusion <= 1


def test_test_prompts_rank_for_themselves(model, circuit):
    own = dataset_circuit(model, TEST, k=15)
    shared = len(set(own.nodes) & set(circuit.nodes))
    assert circuit.test_jaccard == pytest.approx(shared / (30 - shared))
    assert circuit.n_test == 2
    assert circuit.provenance["settings"]["test"] == record_of(TEST)


def test_intervals_on_test_prompts_are_of_their_own_effects(model, circuit):
    pooled = pooled_effects(model, TEST, aligned(model, TEST), logit_diff, patch())
    places = {node: i for i, node in enumerate(pooled.nodes)}
    values = np.zeros((2, 15))
    for i, node in enumerate(circuit.nodes):
        if node in places:
            values[:, i] = pooled.effect.toarray()[:, places[node]]
    low, high = cluster_interval(values, pairs_of(TEST))
    frame = circuit.frame()
    np.testing.assert_allclose(frame["test_mean"], values.mean(0), atol=1e-6)
    np.testing.assert_allclose(frame["test_low"], low, atol=1e-6)
    np.testing.assert_allclose(frame["test_high"], high, atol=1e-6)
    assert 0 < np.count_nonzero(values.any(0)) < 15  # a node that the test prompts lack counts 0


def noise(n_prompts: int, seed: int) -> PooledEffects:
    """Nodes without any effect: what is found on each prompt is chance, the same for every seed."""
    site, shape = Site(0, "mlp"), (n_prompts, 500)
    effect = sparse.csr_array(np.random.default_rng(seed).normal(size=shape))
    nodes = tuple(SpanNode(site, latent, "1") for latent in range(500))
    on = sparse.csr_array(np.ones(shape))
    return PooledEffects(nodes, effect, on, on, np.zeros(n_prompts), "noise", "recompute", "patch")


def test_selection_spoils_the_unadjusted_interval_and_not_the_one_on_test_prompts(
    model, monkeypatch
):
    """The winner's curse: of nodes that do nothing, those chosen seem to do something."""
    prompts, test = (
        [Prompt(f"w{i} w{j} w9", target="w19", foil="w31", corrupted=f"w{i} w{j} w8")
         for i in range(4) for j in some]
        for some in (range(1, 6), range(20, 25))
    )  # fmt: skip
    found = iter(noise(20, seed) for seed in range(40))
    monkeypatch.setattr(
        "experiments.circuit.pooled_circuit.pooled_effects", lambda *a, **k: next(found)
    )
    monkeypatch.setattr(
        "experiments.circuit.pooled_circuit.measured_effects",
        lambda *a, **k: SimpleNamespace(effect=np.zeros((20, 10))),
    )
    wrong, test_wrong = [], []
    for _ in range(20):
        frame = dataset_circuit(model, prompts, test=test, k=10, n_bootstrap=200).frame()
        for of, where in ((wrong, "unadjusted"), (test_wrong, "test")):
            low, high = frame[f"{where}_low"], frame[f"{where}_high"]
            of += ((low > 0) | (high < 0)).tolist()
    assert np.mean(wrong) > 0.8  # 0.90 in 300 simulations
    assert np.mean(test_wrong) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)  # three standard errors


def test_without_test_prompts_no_interval_goes_by_an_honest_name(model):
    frame = dataset_circuit(model, PROMPTS, k=3).frame()
    assert [name for name in frame if "low" in name] == ["unadjusted_low"]


def test_few_columns_become_dense(model, monkeypatch):
    widths = []

    def counted(values, *args, **options):
        widths.append(values.shape[1])
        return top_k_inclusion(values, *args, **options)

    monkeypatch.setattr("experiments.circuit.pooled_circuit.top_k_inclusion", counted)
    pooled = pooled_effects(model, PROMPTS, aligned(model, PROMPTS), logit_diff, patch())
    dataset_circuit(model, PROMPTS, k=3)
    assert widths[0] < len(pooled.nodes) / 2


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
    first, second = PROMPTS[:2]
    turned = Prompt(str(second.corrupted), second.foil, second.target, second.text)
    text = rf"1 as a text of the other split \('{first.text}'\)"
    exchanged = rf"1 as a pair of the other split, reversed \('{turned.text}'\)"
    for test, says in (
        ([first, *TEST], f"1 of 3 test texts are among the prompts, {text}; a"),
        ([turned, *TEST], f"1 of 3 test texts are among the prompts, {exchanged}; a"),
        ([first, turned], f"2 of 2 test texts are among the prompts, {text} and {exchanged}; a"),
    ):
        with pytest.raises(UserError, match=says):
            dataset_circuit(model, PROMPTS, test=test)
