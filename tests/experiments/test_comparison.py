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


def test_a_node_that_is_ranked_twice_counts_once():
    found = circuit_overlap({"a": nodes(1, 1, 2, 3), "b": nodes(1, 2, 3)}, sizes=[3, 4]).frame()
    assert found["size"].tolist() == [3]
    assert found["jaccard"].tolist() == [1]


def test_what_was_not_compared_is_left_blank():
    result = circuit_overlap(
        {"a": nodes(1, 2, 3), "b": nodes(2, 3, 4), "c": nodes(9)}, sizes=[1, 3]
    )
    drawn = {text.get_position(): text.get_text() for text in result.figure().axes[0].texts}
    diagonal = {(i, i): "1.00" for i in range(3)}
    assert drawn == {**diagonal, (0, 1): "0.50", (1, 0): "0.50"}


def test_an_overlap_is_drawn_and_written(tmp_path):
    result = circuit_overlap({"a": nodes(1, 2), "b": nodes(2, 3)}, sizes=[1, 2])
    assert result.plot(tmp_path / "overlap.svg").exists()
    assert "expected jaccard" in result.text()
    assert result.save(tmp_path / "overlap.json").exists()


@pytest.mark.parametrize(
    ("rankings", "sizes", "says"),
    [
        ({"a": nodes(1)}, [1], "two or more"),
        ({"a": nodes(1), "b": nodes(1)}, [3], "smaller"),
        ({"a": nodes(1), "b": nodes(1)}, [1, 0], "sizes=0; give a whole number from 1 on"),
        ({"a": nodes(1), "b": nodes(1)}, [-1], "sizes=-1; give a whole number from 1 on"),
    ],
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


def test_every_line_says_what_it_depends_on(crossed):
    result, _, prompts, _ = crossed
    for row in result.frame().to_dict("records"):
        assert row["metric"] == f"{row['task']} metric"
        assert row["n_prompts"] == len(prompts[row["task"]])
        assert np.isnan(row["random_mean"]) == (row["circuit"] != row["task"])
    for task in result.tasks:
        told = {"size": 60, "n_random": 3, "reference_settings": {}, **result.conventions}
        assert told.items() <= result.provenance[task]["settings"].items()


def test_positions_of_another_task_mean_nothing(model):
    at = {"ioi": [SpanNode(Site(0, "mlp"), 1, "subject")]}
    with pytest.raises(UserError, match="whole"):
        cross_task(model, at, {"ioi": TASKS["ioi"].prompts(n=2)})
    with pytest.raises(UserError, match="give both"):
        cross_task(model, {"ioi": nodes(1)}, {"pronouns": []})


def test_a_metric_is_of_a_task(model):
    prompts = {"ioi": TASKS["ioi"].prompts(n=2)}
    with pytest.raises(UserError, match=r"metrics of \['typo'\]; give them for ioi alone"):
        cross_task(model, {"ioi": nodes(1)}, prompts, {"typo": TASKS["ioi"].metric})
