"""Intervals of clustered means cover at the rate they say, and equal slow resampling."""

import numpy as np
import pytest
from scipy import stats

from circuits import UserError
from experiments.statistics import cluster_interval, ratio_interval
from tests.attribution.test_bootstrap import bootstrap_mean

SAMPLES = 2000
"""Columns, each a sample of its own."""


def covers(n_covered: int, rate: float) -> bool:
    """Whether so many of `SAMPLES` are what chance gives at `rate`; wrong once in 10 000."""
    return bool(stats.binomtest(n_covered, SAMPLES, rate).pvalue > 1e-4)


def clustered(shape, sizes, rng):
    """Examples whose clusters share a part of mean zero, and labels that are not in order."""
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return shape((len(sizes), SAMPLES))[labels] + rng.normal(size=(len(labels), SAMPLES)), labels


def held(values, clusters=None, **kwargs) -> int:
    low, high = cluster_interval(values, clusters, n_bootstrap=500, **kwargs)
    return int(((low <= 0) & (high >= 0)).sum())


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_intervals_cover_normal_means_at_their_level(level):
    values = np.random.default_rng(0).normal(size=(30, SAMPLES))
    assert covers(held(values, level=level), level)


def test_intervals_cover_skewed_means_from_many_examples():
    values = np.random.default_rng(1).exponential(size=(150, SAMPLES)) - 1
    assert covers(held(values), 0.95)


@pytest.mark.parametrize("sizes", [np.full(40, 3), 1 + np.arange(60) % 4], ids=["equal", "uneven"])
def test_intervals_cover_clustered_means_only_when_clusters_are_told(sizes):
    rng = np.random.default_rng(2)
    values, labels = clustered(rng.standard_normal, sizes, rng)
    assert covers(held(values, labels), 0.95)
    assert held(values) < 0.9 * SAMPLES


def test_few_clusters_cover_about_as_often_as_documented():
    rng = np.random.default_rng(3)
    values, labels = clustered(rng.standard_normal, 1 + np.arange(8) % 4, rng)
    assert covers(held(values, labels), 0.925)


def test_an_interval_equals_slow_resampling_of_whole_clusters():
    rng = np.random.default_rng(4)
    sizes = rng.integers(1, 6, 25)
    groups = [rng.exponential(1.0, size) + rng.normal() for size in sizes]
    values, labels = np.concatenate(groups), np.repeat(np.arange(25), sizes)
    means = []
    for _ in range(8000):
        drawn = np.concatenate([groups[i] for i in rng.integers(0, 25, 25)])
        means.append(drawn.mean())  # over examples: a large cluster weighs more
    tail = stats.norm.cdf(-np.sqrt(25 / 24) * stats.t.ppf(0.975, 24))
    low, high = cluster_interval(values[:, None], labels, n_bootstrap=8000)
    assert low.item() == pytest.approx(np.quantile(means, tail), abs=0.03)
    assert high.item() == pytest.approx(np.quantile(means, 1 - tail), abs=0.03)


def test_without_labels_it_is_the_plain_bootstrap():
    values = np.random.default_rng(5).normal(size=(20, 7))
    plain = bootstrap_mean(values, seed=3)
    np.testing.assert_allclose(cluster_interval(values, seed=3), plain, rtol=1e-12)
    pairs = values.repeat(2, axis=0)  # the same example twice is no more evidence
    found = cluster_interval(pairs, np.arange(40) // 2, seed=3)
    np.testing.assert_allclose(found, plain, rtol=1e-12)


def test_only_which_labels_are_equal_matters():
    values = np.random.default_rng(6).normal(size=(12, 3))
    numbers = np.array([7, 7, 2, 2, 2, 9, 9, 11, 11, 11, 11, 30])
    found = cluster_interval(values, numbers)
    np.testing.assert_array_equal(found, cluster_interval(values, [f"{n:02d}" for n in numbers]))


def test_what_has_no_interval_is_nan():
    assert np.isnan(cluster_interval([[1.0], [2.0]], ["a", "a"])).all()
    low, high = cluster_interval([[1.0, np.nan, 3.0], [1.5, 2.0, np.inf], [0.5, 1.0, 2.0]])
    assert np.isnan([low, high]).tolist() == [[False, True, True]] * 2


def test_nothing_over_nothing_has_no_interval():
    """One replicate in four draws the first example twice: 0 / 0."""
    assert np.isnan(ratio_interval([[0.0], [1.0]], [0.0, 1.0])).all()
    assert np.isfinite(ratio_interval([[0.0], [1.0]], [0.5, 1.0])).all()


def test_mistakes_are_one_sentence():
    with pytest.raises(UserError, match=r"shape \[3\]"):
        cluster_interval([1.0, 2.0, 3.0])
    with pytest.raises(UserError, match="at least one example"):
        cluster_interval(np.zeros((0, 2)))
    with pytest.raises(UserError, match="2 cluster labels for 3 examples"):
        cluster_interval(np.zeros((3, 1)), [0, 1])
    with pytest.raises(UserError, match="from 100 on"):
        cluster_interval(np.zeros((3, 1)), n_bootstrap=10)
    with pytest.raises(UserError, match="level=95"):
        cluster_interval(np.zeros((3, 1)), level=95)
