"""What circuits share, and how one serves another's task."""

import numpy as np
import pytest

from circuits import Site, UserError, load
from experiments.circuit.comparison import circuit_overlap, cross_task
from experiments.circuit.faithfulness import faithfulness_curve
from experiments.kinds import patch
from experiments.pooled import pooled_effects
from experiments.spans import SpanNode, whole
from experiments.tasks import TASKS


def nodes(*latents):
    return [SpanNode(Site(0, "mlp"), latent, "all") for latent in latents]


def test_shared_nodes_are_counted_in_the_first_of_both():
    rankings = {"a": nodes(1, 2, 3, 4), "b": nodes(2, 1, 5, 3), "c": nodes(9, 8, 7, 6)}
    found = circuit_overlap(rankings, sizes=[2, 4, 5]).frame()
    rows = {(r["circuit"], r["other"], r["size"]): r for r in found.to_dict("records")}
    assert len(rows) == 6  # no ranking has five nodes
    assert rows["a", "b", 2]["jaccard"] == 1
    assert rows["a", "b", 4]["shared"] == 3
    assert rows["a", "b", 4]["jaccard"] == 3 / 5
    assert rows["a", "c", 4]["jaccard"] == 0


def test_the_expected_overlap_is_that_of_random_sets():
    rng = np.random.default_rng(0)
    rankings = {name: nodes(*rng.permutation(40).tolist()) for name in ("a", "b")}
    expected = circuit_overlap(rankings, sizes=[12]).frame()["expected_jaccard"].item()
    draws = []
    for _ in range(4000):
        first, second = (set(rng.permutation(40)[:12].tolist()) for _ in range(2))
        draws.append(len(first & second) / len(first | second))
    assert expected == pytest.approx(np.mean(draws), abs=4 * np.std(draws) / 4000**0.5)


def test_an_overlap_is_drawn_and_written(tmp_path):
    result = circuit_overlap({"a": nodes(1, 2), "b": nodes(2, 3)}, sizes=[1, 2])
    assert result.plot(tmp_path / "overlap.svg").exists()
    assert "expected jaccard" in result.text()
    assert result.save(tmp_path / "overlap.json").exists()


@pytest.mark.parametrize(
    ("rankings", "sizes", "says"),
    [({"a": nodes(1)}, [1], "two or more"), ({"a": nodes(1), "b": nodes(1)}, [3], "smaller")],
)
def test_what_cannot_be_compared_is_refused(rankings, sizes, says):
    with pytest.raises(UserError, match=says):
        circuit_overlap(rankings, sizes=sizes)


@pytest.fixture(scope="module")
def model():
    return load("tiny")


@pytest.fixture(scope="module")
def crossed(model):
    names = ("agreement_simple", "city_country")
    rankings = {}
    for name in names:
        prompts = TASKS[name].prompts("train", n=4)
        pooled = pooled_effects(model, prompts, whole(model, prompts), TASKS[name].metric, patch())
        order = np.argsort(-np.abs(np.asarray(pooled.effect.mean(0))))
        rankings[name] = [
            pooled.nodes[i] for i in order.tolist() if pooled.nodes[i].latent is not None
        ]
    prompts = {name: TASKS[name].prompts("heldout", n=4) for name in names}
    metrics = {name: TASKS[name].metric for name in names}
    result = cross_task(model, rankings, prompts, metrics, size=60, n_random=3)
    return result, rankings, prompts, metrics


def test_a_circuit_is_tested_on_each_task_as_a_curve_tests_it(model, crossed):
    result, rankings, prompts, metrics = crossed
    for i, circuit in enumerate(result.tasks):
        for j, task in enumerate(result.tasks):
            curve = faithfulness_curve(
                model, prompts[task], metrics[task], rankings[circuit], sizes=[60],
                spans=whole(model, prompts[task]), reference=patch(), n_random=0,
            )  # fmt: skip
            assert result.faithfulness[i, j] == pytest.approx(
                curve.scores[0].faithfulness, abs=1e-5
            )


def test_a_task_is_served_best_by_its_own_circuit(crossed):
    result = crossed[0]
    own = np.diag(result.faithfulness)
    assert (own > result.faithfulness.T[~np.eye(2, dtype=bool)]).all()
    assert (own > np.asarray(result.frame()["random_mean"].dropna())).all()


def test_positions_of_another_task_mean_nothing(model):
    at = {"ioi": [SpanNode(Site(0, "mlp"), 1, "subject")]}
    with pytest.raises(UserError, match="whole"):
        cross_task(model, at, {"ioi": TASKS["ioi"].prompts(n=2)})
    with pytest.raises(UserError, match="give both"):
        cross_task(model, {"ioi": nodes(1)}, {"pronouns": []})
