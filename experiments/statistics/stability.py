"""Whether the same nodes stay the strongest on other prompts, and whether effects cancel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from circuits import UserError
from experiments.statistics.clusters import BLOCK_NUMBERS, Array, Clusters, Labels, table

Booleans = NDArray[np.bool_]

BAND = (0.025, 0.975)
"""Quantiles over replicates."""


@dataclass(frozen=True, eq=False)
class TopK:
    """The k columns of largest |mean|, and how firm they are when clusters are resampled.

    A top holds the columns whose |mean| is at least the k-th largest and not zero: more than k
    where several tie for the last place, fewer where fewer are not zero. Replicates hold fewer
    different prompts than the data, so that they make a ranking look rather less stable than fresh
    prompts would.

    Attributes:
        k: How many.
        full: Whether each column is in the top of all examples, `[n_columns]`.
        inclusion: Share of replicates whose top holds the column, `[n_columns]`; NaN for columns
            with a NaN or an infinity.
        jaccard: Mean Jaccard index, |A and B| / |A or B|, of a replicate's top and `full`.
        jaccard_low: Its 2.5 % quantile over replicates.
        jaccard_high: Its 97.5 % quantile.
        pairwise: Mean Jaccard index of the tops of two replicates.
        pairwise_low: Its 2.5 % quantile over pairs.
        pairwise_high: Its 97.5 % quantile.
    """

    k: int
    full: Booleans
    inclusion: Array
    jaccard: float
    jaccard_low: float
    jaccard_high: float
    pairwise: float
    pairwise_low: float
    pairwise_high: float


def top_k_inclusion(
    values: ArrayLike,
    clusters: Labels | None = None,
    *,
    k_top: int,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> TopK:
    """How often each column is among the `k_top` of largest |mean| when clusters are resampled.

    Args:
        values: One row an example, `[n, n_columns]`.
        clusters: One label an example, `[n]`; those with the same one are drawn together.
        k_top: Size of the top.
        n_bootstrap: Replicates.
        seed: Of the draws.

    Raises:
        UserError: another shape, other than one label an example, fewer than 100 replicates, or a
            top that holds no column or all.
    """
    groups = Clusters.of(values, clusters)
    n_columns = groups.sums.shape[1]
    if not 0 < k_top < n_columns:
        raise UserError(f"k_top={k_top} of {n_columns} columns; give 1 to {n_columns - 1}")
    weights = groups.weights(n_bootstrap, seed)
    tops = np.empty((n_bootstrap, n_columns), dtype=bool)
    block = max(1, BLOCK_NUMBERS // n_columns)
    for start in range(0, n_bootstrap, block):
        part = slice(start, start + block)
        tops[part] = _top(weights[part] @ groups.sums, k_top)
    full = _top(groups.sums.sum(0, keepdims=True), k_top)
    with_full = _jaccard(tops, full)[:, 0]
    pairs = _jaccard(tops, tops)[np.triu_indices(n_bootstrap, 1)]
    low, high = np.quantile(with_full, BAND).tolist()
    pairwise_low, pairwise_high = np.quantile(pairs, BAND).tolist()
    return TopK(
        k=k_top,
        full=full[0],
        inclusion=np.where(groups.finite, tops.mean(0), np.nan),
        jaccard=with_full.mean().item(),
        jaccard_low=low,
        jaccard_high=high,
        pairwise=pairs.mean().item(),
        pairwise_low=pairwise_low,
        pairwise_high=pairwise_high,
    )


def cancellation(values: ArrayLike) -> Array:
    """How far a column's values cancel over examples `[n, k]`: `1 - |sum| / sum |.|`, `[k]`.

    0 where all have one sign, 1 where they add up to nothing; NaN where all are zero.

    Raises:
        UserError: another shape.
    """
    values = table(values)
    total = np.abs(values).sum(0)
    total[total == 0] = np.nan
    return 1 - np.abs(values.sum(0)) / total


def mean_absolute(values: ArrayLike) -> Array:
    """Mean |value| over examples `[n, k]`, `[k]`: what `cancellation` hides from the mean.

    Raises:
        UserError: another shape.
    """
    return np.abs(table(values)).mean(0)


def _top(sums: Array, k: int) -> Booleans:
    """Whether each column is in its row's top; see `TopK`. Sums rank as means do."""
    size = np.abs(sums)
    last = np.partition(size, -k, axis=1)[:, -k]
    return (size >= last[:, None]) & (size > 0)


def _jaccard(a: Booleans, b: Booleans) -> Array:
    """Jaccard indices of sets `[n, k]` and `[m, k]`, `[n, m]`; two empty sets are alike."""
    used = a.any(0) | b.any(0)
    x, y = a[:, used].astype(np.float64), b[:, used].astype(np.float64)
    both = x @ y.T
    either = x.sum(1)[:, None] + y.sum(1) - both
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)
