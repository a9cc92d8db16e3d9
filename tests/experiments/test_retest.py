"""What is confirmed on held-out prompts is corrected for all re-tests, or cannot be told at all."""

import itertools
import json

import numpy as np
import pytest

import experiments.latents.retest as retested
from circuits import Site
from experiments.circuit import drop_one
from experiments.latents import kinds_compared
from experiments.latents.retest import out_of_reach, retest
from experiments.latents.table import ablation_table
from experiments.level import LEVEL
from experiments.spans import SpanNode
from tests.experiments.test_pooled import PROMPTS, pair

DRAWS: dict[str, int] = {"n_permutations": 1024, "n_bootstrap": 100, "seed": 0}
WORDS = "w3 w5 w9 w2 w8 w9 w30", "w2 w6 w9 w2 w5 w9 w12", "w1 w3 w5 w7 w9 w9 w12"
HELDOUT = [pair(text, n) for text in WORDS for n in (1, 2)]


def test_of_nothing_hardly_anything_is_confirmed():
    """Of 40 latents without an effect: at least one in at most 5 % of tries."""
    wrong = alone = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        effects, found = rng.normal(size=(10, 40)), rng.normal(size=40)
        columns, notes = retest(effects, found, np.arange(10), **DRAWS)
        assert notes == []
        wrong += columns["confirmed"].any()
        alone += (columns["heldout_p"] <= 0.05).any()
    assert wrong <= 0.05 * 200
    assert alone > 100  # as it was when nothing was corrected


def test_confirmed_is_one_sign_and_a_small_q():
    """Against stepping up through the p by hand."""
    rng = np.random.default_rng(1)
    strength = np.array([3.0, -3, 3, 1, 0.6, 0, 0, 0])
    effects = strength + rng.normal(size=(10, 8))
    found = np.array([1.0, -1, -1, 1, 1, 1, 1, 1])
    columns, _ = retest(effects, found, np.arange(10), **DRAWS)
    signs = np.array(list(itertools.product((1, -1), repeat=10)))
    sums = np.abs(signs @ effects)
    p = (sums >= np.abs(effects.sum(0)) - 1e-9).mean(0)
    order = np.argsort(p)
    passed = [k for k in range(8) if p[order[k]] <= 0.05 * (k + 1) / 8]
    small = set(order[: max(passed) + 1]) if passed else set()
    np.testing.assert_allclose(columns["heldout_p"], p)
    mean = effects.mean(0)
    expected = [i in small and mean[i] * found[i] > 0 for i in range(8)]
    assert columns["confirmed"].tolist() == expected
    assert expected[:4] == [True, True, False, True]


@pytest.mark.parametrize("n", range(2, 10))
def test_few_pairs_confirm_nothing_and_refute_nothing(n):
    """The smallest p there is, by trying all signs, is at most the level from six pairs on."""
    signs = np.array(list(itertools.product((1, -1), repeat=n)))
    least = (np.abs(signs.sum(1)) == n).mean()
    columns, notes = retest(np.ones((n, 3)), np.ones(3), np.arange(n), **DRAWS)
    np.testing.assert_allclose(columns["heldout_p"], least)
    if least > 0.05:
        assert columns["confirmed"].tolist() == [None] * 3
        assert notes == [
            f"confirmed is missing: of {n} held-out pairs (one and its reverse count once) the "
            f"smallest sign-flip p is {least:.2g}, above 0.05; give 6 or more"
        ]
    else:
        assert n >= 6
        assert notes == []
        assert columns["confirmed"].tolist() == [True] * 3


def test_a_pair_and_its_reverse_are_no_two_witnesses():
    assert out_of_reach(np.arange(10) // 2, n_permutations=1024, seed=0)
    assert not out_of_reach(np.arange(12) // 2, n_permutations=1024, seed=0)


def test_few_permutations_confirm_nothing():
    (note,) = out_of_reach(np.arange(9), n_permutations=10, seed=0)
    assert note.startswith("confirmed is missing: of 10 permutations the smallest sign-flip p is 0")
    assert note.endswith("above 0.05; give more, such as 10000")


def test_what_cannot_be_told_is_missing_in_every_file(model, tmp_path):
    few, enough = (
        ablation_table(
            model, PROMPTS[:2], heldout=HELDOUT[:n], max_latents=4, n_controls=0, n_bootstrap=100
        )
        for n in (5, 6)
    )
    assert any(note.startswith("confirmed is missing: of 5 held-out pairs") for note in few.notes)
    rows = json.loads(few.save(tmp_path / "few.json").read_text())["rows"]
    assert [row["confirmed"] for row in rows] == [None] * 4
    assert "confirmed" not in few.text().splitlines()[0]
    assert enough.frame()["confirmed"].dtype == bool
    assert not any("confirmed" in note for note in enough.notes)


def test_all_studies_judge_at_one_level(monkeypatch):
    """What is confirmed, survives and is necessary; by a level that no p reaches nothing is."""
    sure = np.ones((12, 1))
    pairs = np.arange(12)
    judgements = {
        retested: lambda: retest(sure, sure[0], pairs, **DRAWS)[0]["confirmed"],
        drop_one: lambda: drop_one.verdicts(np.ones(1), np.zeros(99))["verdict"] == "necessary",
        kinds_compared: lambda: kinds_compared._table(
            [SpanNode(Site(0, "mlp"), 1, "2")], {"patch": sure, "zero": sure}, pairs, **DRAWS
        )["survives"],
    }
    for study, judge in judgements.items():
        assert study.LEVEL == LEVEL
        assert list(judge()) == [True]
        monkeypatch.setattr(study, "LEVEL", 1e-9)
        assert not any(judge())
