"""Values by example gathered into clusters, which are resampled and sign-flipped as wholes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from attribution.bootstrap import draws
from circuits import UserError

Array = NDArray[np.float64]
Labels = Sequence[Any] | NDArray[Any]
"""One label an example: examples with the same one are a cluster, such as a prompt pair."""

BLOCK_NUMBERS = 2**21
"""Numbers that are worked on at a time: 16 MiB in double precision."""


@dataclass(frozen=True, eq=False)
class Clusters:
    """Sums over the examples of each of `n` clusters.

    Attributes:
        sums: `[n, k]`; 0 in the columns that are not finite.
        sizes: Examples of each cluster, `[n]`.
        total: `sum |value|` over all examples, `[k]`.
        finite: Columns without NaN or infinity, `[k]`; the others have no statistics.
    """

    sums: Array
    sizes: Array
    total: Array
    finite: NDArray[np.bool_]

    @classmethod
    def of(cls, values: ArrayLike, clusters: Labels | None) -> Clusters:
        """From values `[examples, k]` and a label an example; without labels each is a cluster.

        Raises:
            UserError: another shape, no examples, or another number of labels.
        """
        values = table(values)
        finite = np.asarray(np.isfinite(values).all(axis=0))
        values = np.where(finite, values, 0.0)
        total = np.abs(values).sum(0)
        if clusters is None:
            return cls(values, np.ones(len(values)), total, finite)
        if len(clusters) != len(values):
            raise UserError(
                f"{len(clusters)} cluster labels for {len(values)} examples; give one an example"
            )
        _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
        order = np.argsort(cluster, kind="stable")
        sizes = np.bincount(cluster)
        starts = np.cumsum(sizes) - sizes
        return cls(np.add.reduceat(values[order], starts), sizes.astype(float), total, finite)

    def __len__(self) -> int:
        return len(self.sizes)

    def weights(self, n_bootstrap: int, seed: int) -> Array:
        """How often each bootstrap replicate draws each cluster, `[n_bootstrap, n]`."""
        drawn = list(draws(len(self), n_bootstrap=n_bootstrap, seed=seed))
        return np.stack(drawn, axis=1).astype(float)


def table(values: ArrayLike) -> Array:
    """Values `[examples, k]`, checked.

    Raises:
        UserError: another number of dimensions, or no examples.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not len(values):
        raise UserError(
            f"values of shape {list(values.shape)}; give [examples, columns], at least one example"
        )
    return values
