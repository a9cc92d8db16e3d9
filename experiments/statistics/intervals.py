"""Bootstrap intervals of means over examples, whole clusters resampled."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from attribution.bootstrap import percentile_interval
from circuits import UserError
from experiments.statistics.clusters import BLOCK_NUMBERS, Array, Clusters, Labels, table


def cluster_interval(
    values: ArrayLike,
    clusters: Labels | None = None,
    *,
    level: float = 0.95,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> tuple[Array, Array]:
    """Low and high ends `[k]` of an interval of the mean of `values` over examples.

    Each replicate draws as many clusters as there are, with replacement, and divides the sum of
    their values by the number of their examples: a ratio of two sums, since clusters may differ
    in size. Ends are those of `attribution.bootstrap.percentile_interval`, for as many rows as
    clusters; without labels they are those of `attribution.bootstrap.MeanBootstrap`.

    Few clusters cover too seldom. Of 5, 8, 12 and 30 clusters of one to four examples the 95 %
    interval held the mean in 91, 92, 94 and 95 % of simulations with normal clusters, in 90, 92,
    93 and 94 % with exponential and in 86, 87, 88 and 90 % with lognormal ones.

    Args:
        values: One row an example, `[n, k]`.
        clusters: One label an example, `[n]`; those with the same one are drawn together.
        level: Of the interval.
        n_bootstrap: Replicates.
        seed: Of the draws, which all columns share.

    Returns:
        NaN for a single cluster, and in columns with a NaN or an infinity.

    Raises:
        UserError: another shape, other than one label an example, fewer than 100 replicates, or a
            level that is no share.
    """
    groups = Clusters.of(values, clusters)
    weights = groups.weights(n_bootstrap, seed)
    n_examples = weights @ groups.sizes
    k = groups.sums.shape[1]
    low, high = np.full((2, k), np.nan)
    block = max(1, BLOCK_NUMBERS // n_bootstrap)
    for start in range(0, k, block):
        part = slice(start, start + block)
        means = (weights @ groups.sums[:, part]) / n_examples[:, None]
        low[part], high[part] = percentile_interval(means, len(groups), level)
    low[~groups.finite] = high[~groups.finite] = np.nan
    return low, high


def ratio_interval(
    numerators: ArrayLike,
    denominators: ArrayLike,
    clusters: Labels | None = None,
    *,
    level: float = 0.95,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> tuple[Array, Array]:
    """Low and high ends `[k]` of an interval of `mean of numerators / mean of denominators`.

    Each replicate draws whole clusters, as in `cluster_interval`, and divides the sums of both.
    Replicates whose denominators sum to zero count as infinite; where a numerator does too, that is
    0 / 0, and its interval NaN.

    Args:
        numerators: One row an example, `[n, k]`.
        denominators: One an example, `[n]`.
        clusters, level, n_bootstrap, seed: As in `cluster_interval`.

    Returns:
        NaN for a single cluster, and in columns with a NaN or an infinity.

    Raises:
        UserError: as `cluster_interval`, or another number of denominators.
    """
    below = np.asarray(denominators, dtype=np.float64)
    above = table(numerators)
    if below.shape != above.shape[:1]:
        raise UserError(
            f"denominators of shape {list(below.shape)} for {len(above)} examples; give one each"
        )
    groups = Clusters.of(np.column_stack([above, below]), clusters)
    sums = groups.weights(n_bootstrap, seed) @ groups.sums
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = sums[:, :-1] / sums[:, -1:]
    low, high = percentile_interval(ratios, len(groups), level)
    unknown = ~(groups.finite[:-1] & groups.finite[-1])
    low[unknown] = high[unknown] = np.nan
    return low, high
