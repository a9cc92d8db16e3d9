"""What becomes of a number among many: p corrected for all tests, a rank among controls."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from circuits import UserError
from experiments.statistics.clusters import Array


def benjamini_hochberg(p: ArrayLike) -> Array:
    """q of each p, in the shape of `p`: smallest false discovery rate at which it is a discovery.

        q_(i) = min over j >= i of  m p_(j) / j,        p_(1) <= ... <= p_(m)

    (Benjamini and Hochberg 1995.) Holds for independent tests and for positively dependent ones.
    NaN is a test that was not made: it stays NaN and is not counted in m.

    Raises:
        UserError: a p outside [0, 1].
    """
    p = np.asarray(p, dtype=np.float64)
    tested = ~np.isnan(p)
    if ((p[tested] < 0) | (p[tested] > 1)).any():
        raise UserError("a p-value lies outside 0 to 1; give p-values, with NaN for untested rows")
    q = np.full(p.shape, np.nan)
    if tested.any():
        q[tested] = stats.false_discovery_control(p[tested], method="bh")
    return q


def percentile_among(value: ArrayLike, controls: ArrayLike) -> Array:
    """Share of matched random controls whose |effect| is below |value|, from 0 to 1.

        (number below + number equal / 2) / number of controls

    Args:
        value: Effects `[...]`; a single number will do.
        controls: Effects of the controls of each, `[..., n_controls]`; fill up with NaN where
            there are fewer.

    Returns:
        `[...]`; NaN where the value is NaN or has no controls.
    """
    value = np.abs(np.asarray(value, dtype=np.float64))[..., None]
    controls = np.abs(np.asarray(controls, dtype=np.float64))
    n = (~np.isnan(controls)).sum(-1)
    rank = (controls < value).sum(-1) + (controls == value).sum(-1) / 2
    known = ~np.isnan(value[..., 0]) & (n > 0)
    return np.where(known, rank / np.maximum(n, 1), np.nan)[()]
