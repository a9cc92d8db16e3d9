"""Areas of curves with a closed form."""

import math

import numpy as np
import pytest

from circuits import UserError
from experiments.statistics import (
    MIB_PROPORTIONS,
    circuit_model_distance,
    circuit_performance_ratio,
    log_area,
)

P = np.array(MIB_PROPORTIONS)


def test_the_log_area_of_a_constant_is_the_constant():
    assert log_area([10, 30, 100, 300], [0.7] * 4) == pytest.approx(0.7)


def test_the_log_area_of_a_line_in_log_size_is_the_mean_of_its_ends():
    sizes = np.array([1, 3, 20, 500, 1000])
    assert log_area(sizes, 0.2 + 0.1 * np.log(sizes)) == pytest.approx(0.2 + 0.05 * math.log(1000))


def test_the_log_area_does_not_depend_on_the_unit_of_size_and_is_linear():
    rng = np.random.default_rng(0)
    sizes, x, y = np.array([2, 5, 9, 40]), rng.normal(size=4), rng.normal(size=4)
    assert log_area(sizes / 40, x) == pytest.approx(log_area(sizes, x))
    excess = log_area(sizes, x) - log_area(sizes, y)
    assert log_area(sizes, x - y) == pytest.approx(excess)
    assert log_area([1, 10, 100], [0, 1, 1]) == pytest.approx(0.75)


def test_a_perfect_circuit_has_mibs_best_numbers():
    assert circuit_performance_ratio(P, np.ones(10)) == pytest.approx(0.999)
    assert circuit_model_distance(P, np.ones(10)) == 0
    assert circuit_performance_ratio(P, np.zeros(10)) == 0
    assert circuit_model_distance(P, np.zeros(10)) == pytest.approx(0.999)


def test_a_line_has_the_areas_of_its_integral():
    """f(k) = k: the integral of k from 0.001 to 1, and of 1 - k; the rule is exact for lines."""
    assert circuit_performance_ratio(P, P) == pytest.approx((1 - 1e-6) / 2)
    assert circuit_model_distance(P, P) == pytest.approx(0.999**2 / 2)


def test_areas_equal_the_sum_of_trapezia_written_out():
    f = np.random.default_rng(1).normal(0.8, 0.5, 10)
    under = sum((P[i + 1] - P[i]) * (f[i] + f[i + 1]) / 2 for i in range(9))
    away = sum((P[i + 1] - P[i]) * (abs(1 - f[i]) + abs(1 - f[i + 1])) / 2 for i in range(9))
    assert circuit_performance_ratio(P, f) == pytest.approx(under)
    assert circuit_model_distance(P, f) == pytest.approx(away)


def test_faithfulness_above_one_is_good_for_cpr_and_bad_for_cmd():
    f = np.full(10, 1.5)
    assert circuit_performance_ratio(P, f) == pytest.approx(1.5 * 0.999)
    assert circuit_model_distance(P, f) == pytest.approx(0.5 * 0.999)
    below = np.where(P < 0.5, 0.4, 1.0)  # where f never exceeds 1 the two add up to the width
    total = circuit_performance_ratio(P, below) + circuit_model_distance(P, below)
    assert total == pytest.approx(0.999)


def test_nan_gives_nan():
    assert math.isnan(log_area([1, 2], [math.nan, 1]))
    assert math.isnan(circuit_model_distance([0.1, 1], [math.nan, 1]))


@pytest.mark.parametrize("sizes", [[], [5], [0, 1], [2, 1], [1, 1], [math.nan, 1]])
def test_sizes_must_ascend_from_above_zero(sizes):
    with pytest.raises(UserError, match="ascending and above 0"):
        log_area(sizes, [1.0] * len(sizes))


def test_other_mistakes_are_one_sentence():
    with pytest.raises(UserError, match="give one a size"):
        log_area([1, 2], [1.0])
    with pytest.raises(UserError, match="up to 300"):
        circuit_performance_ratio([10, 300], [0.5, 1.0])
