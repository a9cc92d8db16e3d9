"""How far two effects of the same nodes agree: attributed and measured, or two ablations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from circuits import UserError
from circuits.whole_numbers import whole_number
from experiments.statistics.clusters import Array

NEGLIGIBLE = 0.01
"""Of the largest size: smaller effects have no sign worth comparing."""


@dataclass(frozen=True)
class Agreement:
    """Attributed beside measured effects of the same nodes.

    Attributes:
        n: Pairs that were compared. A pair with a NaN or an infinity is left out.
        n_left_out: Pairs that were left out.
        pearson: Correlation; NaN for fewer than two pairs or where one side does not vary.
        spearman: Correlation of ranks, ties sharing their mean rank; NaN as above.
        top_k_overlap: Share of the `top` largest |measured| that are among the as many largest
            |attributed|. Measured zeros are not among the largest: where fewer than `top` are not
            zero, there are fewer. Nodes that tie for the last places share them. NaN where nothing
            was measured but zeros, or where all pairs are in the top.
        top: The k of `top_k_overlap`.
        sign_agreement: Of the pairs with |measured| at least 1 % of the largest, the share whose
            attributed effect has the same sign (zero has not); NaN where all measured are zero.
        slope: Of measured on attributed by least squares through the origin, since no effect
            should be attributed where there is none: `sum(a m) / sum(a a)`, 1 if sizes are right,
            below 1 if attribution exaggerates; NaN where nothing is attributed.
        relative_l1: `sum |a - m| / sum |m|`; 0 is perfect, 1 what attributing nothing would give;
            NaN where all measured are zero.
    """

    n: int
    n_left_out: int
    pearson: float
    spearman: float
    top_k_overlap: float
    top: int
    sign_agreement: float
    slope: float
    relative_l1: float


@dataclass(frozen=True)
class RankCorrelation:
    """How far two effects of the same nodes rank them alike.

    Attributes:
        n: Pairs that were compared. A pair with a NaN or an infinity is left out.
        spearman: Correlation of ranks; NaN for fewer than two pairs or a side that does not vary.
        kendall: Kendall's tau-b; NaN as above.
    """

    n: int
    spearman: float
    kendall: float


def agreement(attributed: ArrayLike, measured: ArrayLike, *, top: int = 20) -> Agreement:
    """Compare attributed with measured effects `[n]` of the same nodes.

    Raises:
        UserError: two lengths, or `top` below 1.
    """
    top = whole_number("top", top)
    a, m, n_left_out = _pairs(attributed, measured)
    loud = _loud(m)
    return Agreement(
        n=len(a),
        n_left_out=n_left_out,
        pearson=pearson(a, m),
        spearman=_spearman(a, m),
        top_k_overlap=_overlap(a, m, top),
        top=top,
        sign_agreement=_ratio(float((np.sign(a) == np.sign(m))[loud].sum()), float(loud.sum())),
        slope=_ratio((a * m).sum(), (a * a).sum()),
        relative_l1=_ratio(np.abs(a - m).sum(), np.abs(m).sum()),
    )


def rank_correlation(x: ArrayLike, y: ArrayLike) -> RankCorrelation:
    """Compare two effects `[n]` of the same nodes as rankings; give sizes to rank by |effect|.

    Raises:
        UserError: two lengths.
    """
    x, y, _ = _pairs(x, y)
    kendall = float(np.asarray(stats.kendalltau(x, y))[0]) if _varies(x, y) else np.nan
    return RankCorrelation(len(x), _spearman(x, y), kendall)


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation; NaN with a NaN or an infinity, for fewer than two, without spread."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all() and _varies(x, y)):
        return np.nan
    return float(np.corrcoef(x, y)[0, 1])


def _pairs(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array, int]:
    """Both sides without the pairs that are not finite, and how many those were."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise UserError(
            f"effects of shapes {list(x.shape)} and {list(y.shape)}; give two lists of one length"
        )
    known = np.isfinite(x) & np.isfinite(y)
    return x[known], y[known], int((~known).sum())


def _varies(x: Array, y: Array) -> bool:
    return len(x) > 1 and bool(np.ptp(x) > 0 and np.ptp(y) > 0)


def _spearman(x: Array, y: Array) -> float:
    return pearson(stats.rankdata(x), stats.rankdata(y))


def _loud(x: Array) -> NDArray[np.bool_]:
    """Effects that are not negligible beside the largest."""
    size = np.abs(x)
    return (size > 0) & (size >= NEGLIGIBLE * size.max(initial=0.0))


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below else np.nan


def _overlap(a: Array, m: Array, top: int) -> float:
    """See `Agreement.top_k_overlap`; for identical sides it is 1."""
    k = min(top, int((m != 0).sum()))
    if not 0 < k < len(m):
        return np.nan
    return float(np.minimum(_in_top(a, k), _in_top(m, k)).sum() / k)


def _in_top(x: Array, k: int) -> Array:
    """1 for the `k` largest sizes, 0 for others; those that tie for the last places share them."""
    size = np.abs(x)
    last = np.partition(size, -k)[-k]
    above, tied = size > last, size == last
    return above + tied * (k - above.sum()) / tied.sum()
