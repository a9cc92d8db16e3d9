"""Paired sign-flip permutation tests of means, all columns at once.

Under the null hypothesis a cluster's total is as likely to be -t as t. With signs s in {-1, 1},
one a cluster, and the totals t of the clusters,

    T(s) = |sum_c s_c t_c|        p = share of all s with T(s) >= T(1, ..., 1)

1. *Exact* where all 2^n sign vectors are at most `n_permutations`: half of them are tried, since
   T(-s) = T(s).
2. *Monte Carlo* otherwise: p = (1 + count) / (1 + n_permutations), which is never 0 and valid
   (Phipson and Smyth 2010, "Permutation p-values should never be zero").
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from circuits.whole_numbers import checked_seed, whole_number
from experiments.statistics.clusters import BLOCK_NUMBERS, Array, Clusters, Labels

ROWS = 512
"""Sign vectors that are tried at a time."""

TIE = 2 * float(np.finfo(np.float32).eps)
"""Of `sum |value|`: statistics that are nearer than this are tied. Values that were rounded to
float32 move each of the two by at most half an eps of that sum."""


def sign_flip_p(
    values: ArrayLike,
    clusters: Labels | None = None,
    *,
    n_permutations: int = 10_000,
    seed: int = 0,
) -> Array:
    """Two-sided p `[k]` of "the mean over examples is zero", by flipping the signs of clusters.

    The smallest p is `2 / 2^n` for n clusters where all flips are tried, else
    `1 / (1 + n_permutations)`. Of m columns one alone can pass a corrected level q only if that is
    at most `q / m`: raise `n_permutations` for many columns.

    Args:
        values: One row an example, `[n, k]`: differences, such as effects of an ablation.
        clusters: One label an example, `[n]`; those with the same one are flipped together, since
            what a prompt pair shares is no independent evidence.
        n_permutations: Flips that are tried at most.
        seed: Of the flips, which all columns share.

    Returns:
        1 in columns of zeros; NaN in columns with a NaN or an infinity.

    Raises:
        UserError: another shape, other than one label an example, or no permutations.
    """
    n_permutations, seed = checked_permutations(n_permutations), checked_seed(seed)
    groups = Clusters.of(values, clusters)
    n = len(groups)
    smallest = np.abs(groups.sums.sum(0)) - TIE * groups.total
    exact = 2**n <= n_permutations
    signs = _all_signs(n) if exact else _random_signs(n, n_permutations, seed)
    count = np.zeros(len(smallest))
    for some in signs:
        count += _count(some, groups.sums, smallest)
    p = count / 2 ** (n - 1) if exact else (1 + count) / (1 + n_permutations)
    return np.where(groups.finite, p, np.nan)


def checked_permutations(n_permutations: int) -> int:
    """A number of flips, if it is one.

    Raises:
        UserError: it is none.
    """
    return whole_number("n_permutations", n_permutations, note=", such as 10000")


def _count(signs: Array, sums: Array, smallest: Array) -> Array:
    """Sign vectors `[rows, n]` whose statistic is at least `smallest` `[k]`, by column."""
    count = np.empty(len(smallest))
    block = BLOCK_NUMBERS // ROWS
    for start in range(0, len(smallest), block):
        part = slice(start, start + block)
        count[part] = (np.abs(signs @ sums[:, part]) >= smallest[part]).sum(0)
    return count


def _all_signs(n: int) -> Iterator[Array]:
    """Every sign vector of `n` that begins with a plus, in blocks `[rows, n]`."""
    for start in range(0, 2 ** (n - 1), ROWS):
        pattern = np.arange(start, min(start + ROWS, 2 ** (n - 1)))
        minus = pattern[:, None] >> np.arange(n - 1, -1, -1) & 1
        yield np.where(minus, -1.0, 1.0)


def _random_signs(n: int, n_permutations: int, seed: int) -> Iterator[Array]:
    """Random sign vectors, in blocks `[rows, n]`."""
    rng = np.random.default_rng(seed)
    for start in range(0, n_permutations, ROWS):
        rows = min(ROWS, n_permutations - start)
        yield np.where(rng.random((rows, n)) < 0.5, -1.0, 1.0)
