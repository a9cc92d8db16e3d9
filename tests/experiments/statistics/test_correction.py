"""q-values control the false discovery rate, and a rank among controls is what counting gives."""

import numpy as np
import pytest
from scipy import stats

from circuits import UserError
from experiments.statistics import benjamini_hochberg, percentile_among, sign_flip_p


def test_q_equals_the_step_up_rule_written_out():
    p = np.random.default_rng(0).random(40) ** 3
    q = benjamini_hochberg(p)
    for level in (0.01, 0.05, 0.1, 0.3, 0.6):
        passed = [i for i in range(1, 41) if np.sort(p)[i - 1] <= level * i / 40]
        n_discoveries = max(passed, default=0)
        assert sorted(np.flatnonzero(q <= level)) == sorted(np.argsort(p)[:n_discoveries])


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_the_false_discovery_rate_is_the_level_times_the_share_of_nulls(level):
    """That is exact for independent tests; here 150 nulls of 200, in 1000 simulations."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=(1000, 200)) + np.where(np.arange(200) < 150, 0, 2.5)
    found = np.stack([benjamini_hochberg(p) for p in 2 * stats.norm.sf(np.abs(z))]) <= level
    false = found[:, :150].sum(1) / np.maximum(found.sum(1), 1)
    error = false.std() / np.sqrt(len(false))
    assert false.mean() == pytest.approx(0.75 * level, abs=4 * error)
    assert found[:, 150:].mean() > 0.2  # and it finds some


def test_the_false_discovery_rate_of_sign_flips_is_controlled():
    """One example table with flips shared by all columns, 200 times."""
    rng, rates = np.random.default_rng(2), []
    for seed in range(200):
        values = rng.normal(size=(20, 50)) + np.where(np.arange(50) < 40, 0, 1.5)
        q = benjamini_hochberg(sign_flip_p(values, n_permutations=500, seed=seed))
        found = q <= 0.2
        rates.append(found[:40].sum() / max(found.sum(), 1))
        assert found[40:].mean() > 0.5
    assert np.mean(rates) < 0.16 + 4 * np.std(rates) / np.sqrt(200)


def test_untested_rows_stay_nan_and_do_not_count():
    p = np.array([[0.01, np.nan, 0.04], [np.nan, 0.03, 0.9]])
    q = benjamini_hochberg(p)
    assert np.isnan(q).tolist() == np.isnan(p).tolist()
    known = ~np.isnan(p)
    np.testing.assert_array_equal(q[known], benjamini_hochberg(p[known]))
    assert q[known] == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.9])
    assert np.isnan(benjamini_hochberg([np.nan, np.nan])).all()
    assert benjamini_hochberg([]).shape == (0,)


def test_p_outside_its_range_is_one_sentence():
    with pytest.raises(UserError, match="outside 0 to 1"):
        benjamini_hochberg([0.5, 1.5])


def test_a_percentile_counts_the_controls_below():
    controls = [0.1, -0.2, 0.3, -0.4]
    assert percentile_among(0.25, controls) == 0.5
    assert percentile_among(-9, controls) == 1
    assert percentile_among(0.05, controls) == 0
    assert percentile_among(0.2, controls) == (1 + 0.5) / 4  # a tie counts half
    assert percentile_among(0, [0, 0, 0]) == 0.5


def test_percentiles_of_many_equal_those_of_each():
    rng = np.random.default_rng(3)
    values, controls = rng.normal(size=30), rng.normal(size=(30, 8))
    controls[rng.random(controls.shape) < 0.4] = np.nan
    controls[4] = np.nan
    values[5] = np.nan
    found = percentile_among(values, controls)
    for i in range(30):
        own = controls[i][~np.isnan(controls[i])]
        assert found[i] == pytest.approx(percentile_among(values[i], own), nan_ok=True)
    assert np.flatnonzero(np.isnan(found)).tolist() == [4, 5]
    assert np.isnan(percentile_among(1.0, []))


def test_a_value_like_its_controls_has_a_uniform_percentile():
    values = np.random.default_rng(4).normal(size=(4000, 20))
    counts = np.bincount((percentile_among(values[:, 0], values[:, 1:]) * 19).round().astype(int))
    assert stats.chisquare(counts).pvalue > 1e-3
