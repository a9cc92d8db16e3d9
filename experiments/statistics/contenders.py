"""Which columns can be among the first k when clusters are resampled: few of very many."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from experiments.statistics.clusters import Clusters, Labels

Columns = NDArray[np.int64]

SLACK = 1e-9
"""Of a bound: what rounding may do to either side."""


def contenders(
    values: sparse.csr_array,
    clusters: Labels | None = None,
    *,
    k_top: int,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Columns:
    """Columns of `values` among which `top_k_inclusion` finds the tops of all of them, ascending.

    In a replicate that draws no cluster more than w times, `|sum| <= w * sum |value|`. A column for
    which that is below the k-th largest |sum| of some other columns, in every replicate, is in no
    top. So nearly all of a matrix of effects can stay sparse. The `k_top` columns of largest |mean|
    are among the result, and at least one more if there is one.

    Args:
        values: One row an example, `[n, n_columns]`.
        clusters, k_top, n_bootstrap, seed: As in `top_k_inclusion`.

    Raises:
        UserError: as `top_k_inclusion`.
    """
    size = np.abs(np.asarray(values.sum(0)))
    strong = np.argsort(-size, kind="stable")[: 4 * k_top + 1]
    if len(strong) == len(size):
        return np.arange(len(size))
    groups = Clusters.of(values[:, strong].toarray(), clusters)
    weights = groups.weights(n_bootstrap, seed)
    kth = np.partition(np.abs(weights @ groups.sums), -k_top, axis=1)[:, -k_top]
    least = (kth / weights.max(1)).min()
    total = np.asarray(abs(values).sum(0))
    return np.union1d(strong, np.flatnonzero((total >= least * (1 - SLACK)) & (total > 0)))
