"""Bootstrap intervals of means, from rows that are seen once, one after the other.

Every replicate resamples whole rows with replacement: a row is a prompt, and what its numbers
share stays together. How often each of `n` rows is drawn is multinomial; one row at a time, that is

    w_i ~ Binomial(n - w_1 - ... - w_{i-1}, 1 / (n - i + 1))

so that only the replicates' running sums are kept, never the rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from circuits import UserError
from circuits.whole_numbers import checked_seed, whole_number

BLOCK = 64
"""Rows, or columns, that are handled at a time."""

Array = NDArray[np.float64]


class MeanBootstrap:
    """Replicates of the mean of `n_rows` rows of `n_columns` numbers.

    Memory is `8 n_bootstrap n_columns` bytes, whatever the number of rows. The draws depend on
    `n_rows` and `seed` alone: columns that are given apart have the same ones.

    Raises:
        UserError: fewer than 100 replicates, or a seed that is none.
    """

    def __init__(
        self, n_rows: int, n_columns: int, *, n_bootstrap: int = 1000, seed: int = 0
    ) -> None:
        n_bootstrap, seed = checked_draws(n_bootstrap, seed)
        self.n_rows = n_rows
        self._draws = draws(n_rows, n_bootstrap=n_bootstrap, seed=seed)
        self._sums = np.zeros((n_bootstrap, n_columns))
        self._block: list[tuple[NDArray[np.int64], Array]] = []
        self._n_seen = 0

    def add(self, row: ArrayLike) -> None:
        """One more row, `[n_columns]`."""
        assert self._n_seen < self.n_rows, f"more than {self.n_rows} rows"
        self._n_seen += 1
        self._block.append((next(self._draws), np.array(row, dtype=np.float64)))
        if len(self._block) == BLOCK:
            self._flush()

    def interval(self, level: float = 0.95) -> tuple[Array, Array]:
        """Low and high ends `[n_columns]` of the mean's interval, after all rows.

        See `percentile_interval`.
        """
        assert self._n_seen == self.n_rows, f"{self._n_seen} of {self.n_rows} rows"
        self._flush()
        low, high = percentile_interval(self._sums, self.n_rows, level)
        return low / self.n_rows, high / self.n_rows

    def _flush(self) -> None:
        if self._block:
            drawn, rows = (np.stack(x) for x in zip(*self._block, strict=True))
            self._sums += drawn.T.astype(np.float64) @ rows
            self._block.clear()


def draws(n_rows: int, *, n_bootstrap: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """How often each replicate draws a row, `[n_bootstrap]`, one row after the other."""
    n_bootstrap, seed = checked_draws(n_bootstrap, seed)
    rng = np.random.default_rng(seed)
    left = np.full(n_bootstrap, n_rows)  # draws that later rows will get
    for n_seen in range(n_rows):
        drawn = rng.binomial(left, 1 / (n_rows - n_seen))
        left -= drawn
        yield drawn


def percentile_interval(replicates: Array, n_rows: int, level: float = 0.95) -> tuple[Array, Array]:
    """Low and high ends `[k]` of an interval of a mean, from replicates `[n_bootstrap, k]` of it.

    The percentile interval, with its tails widened to those of Student's t: for few rows the
    plain one is too narrow by `sqrt((n - 1) / n)` and by taking t for normal ("expanded
    percentile interval", Hesterberg 2015, arXiv 1411.5279). Of 5, 8 and 30 normal numbers the
    95 % interval holds the mean in 92, 94 and 95 % of samples; of skewed ones, less often. NaN
    for one row.

    Raises:
        UserError: a level that is no share.
    """
    if not 0 < level < 1:
        raise UserError(f"level={level}; give a share between 0 and 1, such as 0.95")
    n_columns = replicates.shape[1]
    low, high = np.full((2, n_columns), np.nan)
    if n_rows < 2:
        return low, high
    t = stats.t.ppf((1 + level) / 2, n_rows - 1)
    tail = stats.norm.cdf(-np.sqrt(n_rows / (n_rows - 1)) * t)
    for start in range(0, n_columns, BLOCK):  # quantiles sort a copy
        part = slice(start, start + BLOCK)
        low[part], high[part] = np.quantile(replicates[:, part], (tail, 1 - tail), axis=0)
    return low, high


def checked_draws(n_bootstrap: int, seed: int) -> tuple[int, int]:
    """Both, if they are whole numbers and the replicates enough to say where an interval ends.

    Raises:
        UserError: they are not.
    """
    n_bootstrap = whole_number("n_bootstrap", n_bootstrap, 100, ", as an interval needs")
    return n_bootstrap, checked_seed(seed)
