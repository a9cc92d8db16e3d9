"""Areas under curves of faithfulness by circuit size, so that a whole curve is one number."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import trapezoid

from circuits import UserError
from experiments.statistics.clusters import Array

MIB_PROPORTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Circuit sizes of MIB, as shares of all edges or nodes; the number kept is rounded down."""


def log_area(sizes: ArrayLike, values: ArrayLike) -> float:
    """Mean of a curve over the logarithm of size: its area there, divided by its width.

        integral of values d(log size) / log(largest / smallest)

    by the trapezoidal rule, so that every doubling of the size weighs the same. A constant curve
    gives the constant. A circuit's excess over random ones is the area of the difference.

    Args:
        sizes: At least two, ascending, above 0.
        values: One a size; NaN gives NaN.

    Raises:
        UserError: sizes that are not as said, or another number of values.
    """
    x, y = _curve(sizes, values)
    return float(trapezoid(y, np.log(x)) / np.log(x[-1] / x[0]))


def circuit_performance_ratio(proportions: ArrayLike, faithfulness: ArrayLike) -> float:
    """MIB's CPR: the area under faithfulness f by circuit size; high is good.

        CPR = integral of f(k) dk

    (Mueller et al. 2025, "MIB: A Mechanistic Interpretability Benchmark", arXiv 2504.13151.) As in
    MIB's own code (`evaluate_area_under_curve` of MIB-circuit-track, `log_scale=False`, its
    default): the trapezoidal rule over the proportions themselves, not their logarithms, from the
    smallest to the largest. What lies below the smallest is left out and the width is not divided
    by, so that f = 1 gives 0.999 at `MIB_PROPORTIONS`. Half of the weight is on circuits of more
    than half the model: `log_area` weighs the small ones.

    Args:
        proportions: Of all nodes or edges, ascending; `MIB_PROPORTIONS` to compare with MIB.
        faithfulness: `(m(C) - m(empty)) / (m(M) - m(empty))` at each; NaN gives NaN.

    Raises:
        UserError: proportions that are not ascending in (0, 1], or another number of values.
    """
    x, y = _proportions(proportions, faithfulness)
    return float(trapezoid(y, x))


def circuit_model_distance(proportions: ArrayLike, faithfulness: ArrayLike) -> float:
    """MIB's CMD: the area between faithfulness f by circuit size and 1; 0 is perfect.

        CMD = integral of |1 - f(k)| dk

    Source, arguments and rule are those of `circuit_performance_ratio`. |1 - f| is taken at the
    proportions and joined by lines, as in MIB's code, also where f crosses 1 between two of them.
    """
    x, y = _proportions(proportions, faithfulness)
    return float(trapezoid(np.abs(1 - y), x))


def _curve(sizes: ArrayLike, values: ArrayLike) -> tuple[Array, Array]:
    x, y = np.asarray(sizes, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < 2 or not (x[0] > 0 and (np.diff(x) > 0).all()):
        raise UserError(
            f"sizes {x.tolist()}; an area needs at least two, ascending and above 0 "
            "(leave the empty circuit out)"
        )
    if x.shape != y.shape:
        raise UserError(f"values of shape {list(y.shape)} for {len(x)} sizes; give one a size")
    return x, y


def _proportions(proportions: ArrayLike, values: ArrayLike) -> tuple[Array, Array]:
    x, y = _curve(proportions, values)
    if x[-1] > 1:
        raise UserError(
            f"proportions up to {x[-1]:g}; give shares of all nodes, from 0 to 1, not numbers"
        )
    return x, y
