"""p-values are uniform under the null, and equal a loop over all signs and scipy's."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from circuits import UserError
from experiments.statistics import sign_flip_p


def by_hand(values):
    """The share of all sign vectors whose |sum| is no smaller, one after the other."""
    flips = [abs(np.dot(signs, values)) for signs in product((-1, 1), repeat=len(values))]
    return np.mean(np.array(flips) >= abs(values.sum()) - 1e-9)


@pytest.mark.parametrize("n", [1, 2, 5, 10])
def test_exact_p_equals_a_loop_over_all_signs(n):
    rng = np.random.default_rng(n)
    values = rng.normal(0.5, 1.0, (n, 6))
    whole = rng.integers(-3, 4, (n, 6)).astype(float)  # many ties
    for table in (values, whole, whole / 10):
        np.testing.assert_array_equal(sign_flip_p(table), [by_hand(column) for column in table.T])


def test_exact_p_equals_scipys():
    values = np.random.default_rng(0).normal(0.5, 1.0, (9, 5))
    theirs = stats.permutation_test(
        (values,),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        n_resamples=1000,
        vectorized=True,
    )
    np.testing.assert_allclose(sign_flip_p(values), theirs.pvalue, rtol=1e-12)


def test_exact_p_is_uniform_under_the_null():
    """With n = 9 clusters p is one of 256 multiples of 1/256, each as likely as another."""
    p = sign_flip_p(np.random.default_rng(1).normal(size=(9, 20_000)))
    level = np.rint(p * 256)
    np.testing.assert_allclose(level / 256, p)
    counts = np.bincount(level.astype(int) - 1, minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_monte_carlo_p_is_uniform_under_the_null():
    """Spread over its step of 1/200 it is uniform on 0 to 1; flips are shared, so many seeds."""
    rng = np.random.default_rng(2)
    p = [
        sign_flip_p(rng.standard_t(2, size=(25, 20)), n_permutations=199, seed=seed)
        for seed in range(200)
    ]
    p = np.concatenate(p)
    assert stats.kstest(p - rng.random(len(p)) / 200, "uniform").pvalue > 1e-3
    assert p.min() == pytest.approx(1 / 200)


def test_monte_carlo_p_is_near_the_exact_one():
    values = np.random.default_rng(3).normal(0.4, 1.0, (12, 50))
    exact = sign_flip_p(values, n_permutations=4096)
    sampled = sign_flip_p(values, n_permutations=4095)
    error = np.sqrt(exact * (1 - exact) / 4095) + 1 / 4096
    np.testing.assert_array_equal(exact * 2048 % 1, 0)
    assert (sampled * 2048 % 1).any()
    assert (np.abs(exact - sampled) < 4 * error).all()


def test_clusters_are_flipped_as_wholes():
    rng = np.random.default_rng(4)
    labels = np.repeat(np.arange(10), 1 + np.arange(10) % 3)
    values = rng.normal(size=(10, 3000))[labels] + 0.5 * rng.normal(size=(len(labels), 3000))
    sums = np.stack([values[labels == i].sum(0) for i in range(10)])
    p = sign_flip_p(values, labels)
    np.testing.assert_array_equal(p, sign_flip_p(sums))
    counts = np.bincount(np.rint(p * 512).astype(int) - 1, minlength=512)
    assert stats.chisquare(counts.reshape(64, 8).sum(1)).pvalue > 1e-3
    assert (sign_flip_p(values, n_permutations=999) < 0.05).mean() > 0.1  # examples: too sure


@pytest.mark.parametrize("n", [8, 40])
def test_float_noise_breaks_no_tie(n):
    """Tenths are not floats, still less in single precision; scale does not matter either."""
    tenths = np.random.default_rng(5).integers(-4, 6, (n, 40)).astype(float)
    p = sign_flip_p(tenths, n_permutations=2000)
    for noisy in (tenths / 10, (tenths / 10).astype(np.float32), tenths * 1e-20):
        np.testing.assert_array_equal(sign_flip_p(noisy, n_permutations=2000), p)


def test_columns_of_zeros_and_of_cancelling_values_have_p_one():
    values = np.array([[0.0, 1.0, 1.0], [0.0, -1.0, 2.0]] * 20)
    p = sign_flip_p(values)
    assert p[:2].tolist() == [1, 1]
    assert p[2] == pytest.approx(1 / 10_001)
    assert sign_flip_p(values[:6])[:2].tolist() == [1, 1]


def test_columns_apart_have_the_same_flips_and_nan_stays_nan():
    values = np.random.default_rng(6).normal(0.2, 1, (30, 5000))  # several blocks of columns
    p = sign_flip_p(values, n_permutations=1100)
    np.testing.assert_array_equal(p[4990:], sign_flip_p(values[:, 4990:], n_permutations=1100))
    assert not np.array_equal(p, sign_flip_p(values, n_permutations=1100, seed=1))
    values[3, 0] = np.nan
    values[4, 1] = np.inf
    with_nan = sign_flip_p(values[:, :10], n_permutations=1100)
    assert np.isnan(with_nan[:2]).all()
    np.testing.assert_array_equal(with_nan[2:], p[2:10])


def test_mistakes_are_one_sentence():
    with pytest.raises(UserError, match="n_permutations=0"):
        sign_flip_p([[1.0]], n_permutations=0)
    with pytest.raises(UserError, match="give one an example"):
        sign_flip_p([[1.0], [2.0]], [1])
