"""Agreement is perfect for equal effects, and every number is what its definition gives."""

from dataclasses import asdict
from math import isnan, nan

import numpy as np
import pytest
from scipy import stats

from circuits import UserError
from experiments.statistics import agreement, pearson, rank_correlation

RNG = np.random.default_rng(0)
MEASURED = RNG.standard_t(3, 60)
ATTRIBUTED = 0.7 * MEASURED + 0.4 * RNG.normal(size=60)


def test_equal_effects_agree_in_everything():
    for measured in (MEASURED, np.round(MEASURED)):  # also with ties
        same = agreement(measured, measured)
        assert same.pearson == pytest.approx(1)
        assert same.spearman == pytest.approx(1)
        assert same.slope == pytest.approx(1)
        assert (same.top_k_overlap, same.sign_agreement, same.relative_l1) == (1, 1, 0)


def test_numbers_are_their_definitions():
    found = agreement(ATTRIBUTED, MEASURED, top=10)
    pairs = list(zip(ATTRIBUTED.tolist(), MEASURED.tolist(), strict=True))
    assert found.n == 60
    assert found.n_left_out == 0
    assert found.pearson == pytest.approx(stats.pearsonr(ATTRIBUTED, MEASURED)[0])
    assert found.spearman == pytest.approx(stats.spearmanr(ATTRIBUTED, MEASURED)[0])
    slope = np.linalg.lstsq(ATTRIBUTED[:, None], MEASURED, rcond=None)[0].item()
    assert found.slope == pytest.approx(slope)
    l1 = sum(abs(a - m) for a, m in pairs) / sum(abs(m) for _, m in pairs)
    assert found.relative_l1 == pytest.approx(l1)
    largest = max(abs(m) for _, m in pairs)
    loud = [(a, m) for a, m in pairs if abs(m) >= 0.01 * largest]
    assert len(loud) < 60
    assert found.sign_agreement == pytest.approx(sum(a * m > 0 for a, m in loud) / len(loud))
    tops = [set(sorted(range(60), key=lambda i: -abs(x[i]))[:10]) for x in (ATTRIBUTED, MEASURED)]
    assert found.top_k_overlap == len(tops[0] & tops[1]) / 10
    assert 0 < found.top_k_overlap < 1


def test_scale_and_sign_change_what_they_should():
    half = asdict(agreement(MEASURED / 2, MEASURED))
    assert half["slope"] == pytest.approx(2)
    assert half["relative_l1"] == pytest.approx(0.5)
    assert (half["top_k_overlap"], half["sign_agreement"]) == (1, 1)
    opposite = agreement(-MEASURED, MEASURED)
    assert opposite.slope == pytest.approx(-1)
    assert opposite.sign_agreement == 0
    assert opposite.relative_l1 == pytest.approx(2)
    assert opposite.top_k_overlap == 1


def test_zeros_are_not_among_the_largest_and_ties_share_their_places():
    measured = np.zeros(100)
    measured[:5] = [5, 4, 3, 2, 1]
    assert agreement(measured[::-1], measured).top_k_overlap == 0
    assert agreement(measured, measured).top_k_overlap == 1
    all_alike = agreement(np.ones(100), measured)
    assert all_alike.top_k_overlap == pytest.approx(0.05)  # 5 places among 100
    tied = np.array([3.0, 1, 1, 1, 0])
    drawn = []
    for _ in range(4000):  # which of the tied comes first, by chance
        order = np.lexsort((RNG.random(5), -tied))
        drawn.append(len({0, 1} & set(order[:2])) / 2)
    found = agreement(tied, [9.0, 8, 2, 1, 0], top=2).top_k_overlap
    assert found == pytest.approx(np.mean(drawn), abs=0.02)


def test_what_is_not_defined_is_nan():
    found = agreement([1.0, nan, 2.0, 3.0], [1.0, 5.0, np.inf, 2.0], top=1)
    assert (found.n, found.n_left_out) == (2, 2)
    assert asdict(found) == asdict(agreement([1.0, 3.0], [1.0, 2.0], top=1)) | {"n_left_out": 2}
    for nothing in (agreement([], []), agreement([nan] * 3, [1.0, 2.0, 3.0])):
        numbers = asdict(nothing)
        shares = [numbers[key] for key in numbers if key not in ("n", "n_left_out", "top")]
        assert nothing.n == 0
        assert all(map(isnan, shares))
    unmeasured = agreement([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], top=1)
    assert unmeasured.slope == 0
    assert isnan(unmeasured.relative_l1)
    assert isnan(unmeasured.sign_agreement)
    assert isnan(unmeasured.top_k_overlap)
    unattributed = agreement([0.0, 0.0, 0.0], [1.0, 2.0, 3.0], top=1)
    assert isnan(unattributed.slope)
    assert unattributed.relative_l1 == 1
    assert unattributed.sign_agreement == 0
    assert isnan(unattributed.pearson)
    assert isnan(agreement(MEASURED, MEASURED, top=60).top_k_overlap)  # all are in the top


def test_rank_correlations_are_scipys():
    found = rank_correlation(ATTRIBUTED, MEASURED)
    assert found.spearman == pytest.approx(stats.spearmanr(ATTRIBUTED, MEASURED)[0])
    assert found.kendall == pytest.approx(stats.kendalltau(ATTRIBUTED, MEASURED)[0])
    assert rank_correlation([10.0, -3, 2, nan], [8.0, 3, -0.01, 1]).n == 3
    flat = rank_correlation([1.0, 1.0], [1.0, 2.0])
    assert isnan(flat.kendall)
    assert isnan(flat.spearman)


def test_pearson_is_nan_without_spread_or_with_a_nan():
    assert pearson([1, 2, 4], [2, 1, 5]) == pytest.approx(stats.pearsonr([1, 2, 4], [2, 1, 5])[0])
    for x in ([1, 1, 1], [1, nan, 2], [1, np.inf, 2], [], [3]):
        assert isnan(pearson(x, [2, 1, 5][: len(x)]))
        assert isnan(pearson([2, 1, 5][: len(x)], x))


def test_mistakes_are_one_sentence():
    with pytest.raises(UserError, match=r"\[2\] and \[3\]"):
        agreement([1, 2], [1, 2, 3])
    with pytest.raises(UserError, match=r"\[1, 2\]"):
        rank_correlation([[1, 2]], [[1, 2]])
    with pytest.raises(UserError, match="top=0"):
        agreement([1], [1], top=0)
