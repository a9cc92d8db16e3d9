"""Intervals cover the mean as often as they say, and equal what slow resampling gives."""

import numpy as np
import pytest

from attribution.bootstrap import MeanBootstrap
from circuits import UserError


def bootstrap_mean(values, *, level=0.95, **options):
    """Ends of the interval of the mean of `values [n, k]`, from rows one after the other."""
    bootstrap = MeanBootstrap(*np.shape(values), **options)
    for row in values:
        bootstrap.add(row)
    return bootstrap.interval(level)


@pytest.mark.parametrize("n", [12, 30])
def test_intervals_cover_the_mean_as_often_as_they_say(n):
    """3000 samples of `n` normal numbers, a column each; 0.4 % is chance."""
    samples = np.random.default_rng(0).normal(3.0, 2.0, (n, 3000))
    low, high = bootstrap_mean(samples)
    below, above = (low > 3).mean(), (high < 3).mean()
    assert 0.935 < 1 - below - above < 0.965
    assert abs(below - above) < 0.015  # as often too low as too high


def test_an_interval_equals_slow_resampling():
    values = np.random.default_rng(1).exponential(1.0, 40)
    rng = np.random.default_rng(2)
    slow = [rng.choice(values, len(values)).mean() for _ in range(20_000)]
    tail = 0.02026  # of the normal beyond 2.0227 sqrt(40 / 39), Student's 2.5 % (39 degrees)
    low, high = bootstrap_mean(values[:, None], n_bootstrap=20_000)
    assert low.item() == pytest.approx(np.quantile(slow, tail), abs=0.01)
    assert high.item() == pytest.approx(np.quantile(slow, 1 - tail), abs=0.01)


def test_every_replicate_draws_as_many_rows_as_there_are():
    low, high = bootstrap_mean(np.full((150, 2), 1.5))
    assert low == pytest.approx([1.5, 1.5], abs=1e-12)
    assert high == pytest.approx([1.5, 1.5], abs=1e-12)


def test_columns_may_come_apart():
    values = np.random.default_rng(0).normal(size=(130, 70))
    whole = bootstrap_mean(values, seed=3)
    column = bootstrap_mean(values[:, 69:], seed=3)
    np.testing.assert_allclose([w[69:] for w in whole], column, rtol=1e-12)
    assert not np.array_equal(whole, bootstrap_mean(values, seed=4))


def test_one_row_has_no_interval():
    assert np.isnan(bootstrap_mean([[1.0, 2.0]])).all()


def test_mistakes_are_one_sentence():
    with pytest.raises(UserError, match="a whole number from 100 on"):
        bootstrap_mean([[1.0], [2.0]], n_bootstrap=10)
    with pytest.raises(UserError, match="level=95"):
        bootstrap_mean([[1.0], [2.0]], level=95)
    with pytest.raises(UserError, match=r"n_bootstrap=500\.0; give a whole number from 100 on"):
        bootstrap_mean([[1.0], [2.0]], n_bootstrap=500.0)
