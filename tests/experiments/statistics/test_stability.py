"""Inclusion and Jaccard equal a slow bootstrap's; firm rankings are firm, chance ones are not."""

import numpy as np
import pytest

from circuits import UserError
from experiments.statistics import cancellation, mean_absolute, top_k_inclusion


def jaccard(a: set, b: set) -> float:
    return len(a & b) / len(a | b)


def test_inclusion_and_jaccard_equal_a_slow_bootstrap():
    rng = np.random.default_rng(0)
    sizes = 1 + np.arange(15) % 3
    labels = np.repeat(np.arange(15), sizes)
    values = rng.normal(np.linspace(-0.8, 0.8, 12), 1.0, (len(labels), 12))

    def top(rows):
        return set(np.argsort(-np.abs(rows.mean(0)))[:4].tolist())

    full = top(values)
    sets = []
    for _ in range(3000):
        drawn = np.concatenate([values[labels == i] for i in rng.integers(0, 15, 15)])
        sets.append(top(drawn))
    found = top_k_inclusion(values, labels, k_top=4, n_bootstrap=2000)
    assert set(np.flatnonzero(found.full)) == full
    slow = [np.mean([column in each for each in sets]) for column in range(12)]
    assert found.inclusion == pytest.approx(slow, abs=0.06)
    with_full = [jaccard(each, full) for each in sets]
    assert found.jaccard == pytest.approx(np.mean(with_full), abs=0.03)
    assert found.jaccard_low == pytest.approx(np.quantile(with_full, 0.025))
    assert found.jaccard_high == pytest.approx(np.quantile(with_full, 0.975))
    pairs = [jaccard(a, b) for a, b in zip(sets[::2], sets[1::2], strict=True)]
    assert found.pairwise == pytest.approx(np.mean(pairs), abs=0.03)
    assert found.pairwise_low == pytest.approx(np.quantile(pairs, 0.025))
    assert found.pairwise_high == pytest.approx(np.quantile(pairs, 0.975))


def test_a_firm_ranking_is_always_the_same():
    values = np.random.default_rng(1).normal(0, 0.01, (20, 50))
    values[:, [3, 30]] += [5, -5]
    found = top_k_inclusion(values, k_top=2)
    assert np.flatnonzero(found.full).tolist() == [3, 30]
    assert found.inclusion.tolist() == found.full.tolist()
    assert (found.jaccard, found.jaccard_low, found.pairwise, found.pairwise_low) == (1, 1, 1, 1)


def test_inclusion_adds_up_to_the_size_of_the_top():
    values = np.random.default_rng(2).normal(size=(30, 40))
    found = top_k_inclusion(values, k_top=7, n_bootstrap=200)
    assert found.inclusion.sum() == pytest.approx(7)
    assert 0 < found.pairwise < found.jaccard < 1


def test_zeros_are_never_in_the_top_and_ties_are_in_together():
    values = np.zeros((6, 5))
    values[:, 1] = [1, 2, 3, 1, 2, 3]
    found = top_k_inclusion(values, k_top=3)
    assert found.inclusion.tolist() == [0, 1, 0, 0, 0]
    tied = top_k_inclusion(values[:, [1, 1, 0]], k_top=1)
    assert tied.full.tolist() == [True, True, False]
    nothing = top_k_inclusion(np.zeros((6, 5)), k_top=3)
    assert (nothing.jaccard, nothing.pairwise, nothing.inclusion.sum()) == (1, 1, 0)


def test_a_column_with_a_nan_is_left_out():
    values = np.random.default_rng(3).normal(size=(10, 4))
    values[0, 2] = np.nan
    found = top_k_inclusion(values, k_top=2)
    rest = top_k_inclusion(values[:, [0, 1, 3]], k_top=2)
    assert np.isnan(found.inclusion).tolist() == [False, False, True, False]
    assert found.inclusion[[0, 1, 3]].tolist() == rest.inclusion.tolist()
    assert found.pairwise == rest.pairwise


def test_cancellation():
    values = [[1.0, 1.0, 3.0, 0.0], [2.0, -1.0, -1.0, 0.0]]
    found = cancellation(values)
    assert found[:3] == pytest.approx([0, 1, 0.5])
    assert np.isnan(found[3])
    assert mean_absolute(values).tolist() == [1.5, 1, 2, 0]
    random = np.random.default_rng(4).normal(size=(9, 5))
    shares = 1 - np.abs(random.mean(0)) / mean_absolute(random)
    assert cancellation(random) == pytest.approx(shares)


def test_mistakes_are_one_sentence():
    for k_top in (0, 5):
        with pytest.raises(UserError, match=f"k_top={k_top} of 5"):
            top_k_inclusion(np.zeros((6, 5)), k_top=k_top)
    with pytest.raises(UserError, match="from 100 on"):
        top_k_inclusion(np.zeros((6, 5)), k_top=1, n_bootstrap=3)
    with pytest.raises(UserError, match="give \\[examples, columns\\]"):
        cancellation([1.0, 2.0])
