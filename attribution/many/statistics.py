"""What is said of a node or an edge over many prompts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from attribution.bootstrap import MeanBootstrap
from attribution.many.pooling import Row


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of `k` nodes or edges over the same `n` prompts, `[k]` each, in the metric's units.

    Every prompt counts in every mean. Against zero, one on which a latent is off has an effect of
    zero; against another reference not so where the reference switches the latent on.

    Attributes:
        mean: Of the effect.
        low, high: Ends of the 95 % bootstrap interval of `mean`; NaN for a single prompt.
        mean_abs: Of the absolute effect.
        sign_consistency: Share of all prompts whose effect has the sign of `mean`. One with an
            effect of zero does not: against zero, the most it can be is `active`. NaN where `mean`
            is zero.
        active: Share of prompts where the latent is on, or the edge is there; 1 for other nodes.
        cancellation: `1 - |sum of effects| / sum of |effects|`, over prompts and, where those are
            summed over, positions: 0 if all point one way, 1 if nothing is left of them.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    mean_abs: np.ndarray
    sign_consistency: np.ndarray
    active: np.ndarray
    cancellation: np.ndarray


def statistics(
    rows: Iterable[Row], n_rows: int, n_columns: int, *, n_bootstrap: int, seed: int
) -> Statistics:
    """From `n_rows` rows of `n_columns` numbers, a row a prompt, each seen once."""
    bootstrap = MeanBootstrap(n_rows, n_columns, n_bootstrap=n_bootstrap, seed=seed)
    total, total_abs, size, positive, negative, present = np.zeros((6, n_columns))
    for row in rows:
        bootstrap.add(row.value)
        total += row.value
        total_abs += np.abs(row.value)
        size += row.size
        positive += row.value > 0
        negative += row.value < 0
        present += row.present
    low, high = bootstrap.interval()
    agree = np.where(total > 0, positive, negative) / n_rows
    with np.errstate(invalid="ignore"):  # 0 / 0: an effect that is zero everywhere
        kept = np.abs(total) / size
    return Statistics(
        mean=total / n_rows,
        low=low,
        high=high,
        mean_abs=total_abs / n_rows,
        sign_consistency=np.where(total == 0, np.nan, agree),
        active=present / n_rows,
        cancellation=np.maximum(1 - kept, 0),
    )
