"""How much each node influences the output through every path, from a sparse matrix of edges.

With `w_ts` the direct effect of source s on target t and `A[t, s] = |w_ts| / sum_s' |w_ts'|` its
share of the target's inputs (Ameisen et al. 2025, "Circuit Tracing", and the library
circuit-tracer),

    influence = weights . (A + A^2 + A^3 + ...)

where `weights` says how much each output counts. The graph has no cycles, so one walk from the
outputs down, in which every target hands on what has arrived at it, gives the series' exact sum.
"""

from itertools import pairwise
from typing import Any

import numpy as np
from scipy import sparse

from circuits.errors import UserError

MOST_EDGES = 1 << 18
"""In a run of rows: its float64 copy, 2 MB, stays in the processor's cache."""


def solve_influence(matrix: sparse.csr_array, weights: np.ndarray) -> np.ndarray:
    """`weights . (A + A^2 + ...)`, `[n]` float64, for `matrix` `[target, source]` `[n, n]`.

    Nodes are in topological order, indices sorted. Time is linear in the edges; memory beyond the
    matrix is a few megabytes.
    """
    influences = np.zeros(len(weights))
    for rows in reversed(runs(matrix)):
        inputs = absolute(matrix, rows)
        arrived = influences[rows] + weights[rows]
        influences += inputs.T @ (arrived * reciprocal(inputs.sum(axis=1)))
    return influences


def runs(matrix: sparse.csr_array) -> list[slice]:
    """All rows of `matrix` `[target, source]`, first to last, cut into runs without inner edges.

    Where nodes come site by site, a run is the latents and errors of a site (or a part of them,
    where they have very many edges), so that a graph has few runs and each is a few calls to numpy.
    """
    assert matrix.has_sorted_indices
    n = len(matrix.indptr) - 1
    filled = np.diff(matrix.indptr) > 0
    last = np.full(n, -1)  # the last source of each target
    last[filled] = matrix.indices[matrix.indptr[1:][filled] - 1]
    assert (last < np.arange(n)).all(), "nodes must be in topological order"

    start, starts = 0, [0]
    for row, source in enumerate(last.tolist()):
        if source >= start or matrix.indptr[row + 1] - matrix.indptr[start] > MOST_EDGES:
            start = row
            starts.append(start)
    return [slice(*pair) for pair in pairwise([*starts, n])]


def absolute(matrix: sparse.csr_array, rows: slice) -> sparse.csr_array:
    """`|matrix[rows]|` in float64; of a run's edges only the values are copied."""
    start, stop = matrix.indptr[rows.start], matrix.indptr[rows.stop]
    return sparse.csr_array(
        (
            np.abs(matrix.data[start:stop], dtype=np.float64),
            matrix.indices[start:stop],
            matrix.indptr[rows.start : rows.stop + 1] - start,
        ),
        shape=(rows.stop - rows.start, len(matrix.indptr) - 1),
    )


def reciprocal(totals: np.ndarray) -> np.ndarray:
    """`1 / totals`, and 0 for nodes without inputs."""
    return np.divide(1.0, totals, out=np.zeros_like(totals), where=totals > 0)


TIE = 1e-12
"""Scores that differ by less, relatively, are equal: sums in another order."""

MINOR_BITS = 45
"""A float64's last: numbers that differ in no others are within one in 100 of one another."""


def least_kept(scores: np.ndarray, keep: float) -> float:
    """The least of the fewest `scores [n]` that sum to the share `keep`; its equals are kept too.

    None may be negative. Sums by leading bits, in whose order such numbers are, say which few to
    sort.
    """
    if not scores.size:
        return 0.0
    bits = scores.view(np.int64) >> MINOR_BITS
    sums = np.bincount(bits - bits.min(), scores)[::-1].cumsum()
    wanted = keep * sums[-1]
    last = int(np.searchsorted(sums, wanted))
    falling = np.sort(scores[bits == bits.max() - last])[::-1]
    before = sums[last - 1] if last else 0.0
    place = np.searchsorted(before + falling.cumsum(), wanted)
    return float(falling[min(place, len(falling) - 1)]) * (1 - TIE)


def check_share(name: str, share: Any) -> None:
    """Refuse what is no share.

    Raises:
        UserError: it is no number from 0 to 1.
    """
    if not isinstance(share, int | float) or not 0 <= share <= 1:
        raise UserError(f"{name} is {share!r}; it is a share; give a number from 0 to 1")
