"""How well a ranking finds a known set: AUROC, average precision, precision at K, recall.

Ties are settled by convention, never by the order in which items come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

FLOOR = 1e-4
"""Scores below this share of the largest count as zero: no evidence at all. The planted model's
norms couple everything to everything by less (see `experiments.planted.model`)."""


@dataclass(frozen=True)
class Scores:
    """How well a ranking finds a known set.

    Attributes:
        auroc: Probability that a random member scores higher than a random other item, a tie
            counting one half.
        average_precision: Precision at each score that members have, weighted by how many have it;
            items with equal scores enter together (scikit-learn's convention).
        precision_at_k: Share of members among the K highest scores, K being how many members there
            are; where a tie straddles the cut, the expected share when it is broken at random.
        recall: Share of members whose score is not zero.
    """

    auroc: float
    average_precision: float
    precision_at_k: float
    recall: float


def score_ranking(scores: Sequence[float], member: Sequence[bool], floor: float = FLOOR) -> Scores:
    """`scores [n]`, of which the size counts and not the sign, against `member [n]`."""
    x, y = np.abs(np.asarray(scores, dtype=float)), np.asarray(member, dtype=bool)
    assert x.shape == y.shape, "a score for each item"
    assert 0 < y.sum() < len(y), "some are members and some are not"
    x = np.where(x < floor * x.max(), 0.0, x)
    return Scores(
        auroc=auroc(x, y),
        average_precision=average_precision(x, y),
        precision_at_k=precision_at_k(x, y, int(y.sum())),
        recall=float((x[y] > 0).mean()),
    )


def auroc(x: NDArray, y: NDArray) -> float:
    """The Mann-Whitney statistic over its largest value, from midranks."""
    n, m = int(y.sum()), int((~y).sum())
    return float((rankdata(x)[y].sum() - n * (n + 1) / 2) / (n * m))


def average_precision(x: NDArray, y: NDArray) -> float:
    """Sum over thresholds of the gain in recall times the precision there."""
    _, group = np.unique(-x, return_inverse=True)  # group 0 has the highest score
    members, sizes = np.bincount(group, weights=y), np.bincount(group)
    return float((members / y.sum() * members.cumsum() / sizes.cumsum()).sum())


def precision_at_k(x: NDArray, y: NDArray, k: int) -> float:
    """Members expected among the `k` highest scores, over `k`."""
    cut = np.sort(x)[-k]
    above, at = x > cut, x == cut
    return float((y[above].sum() + y[at].mean() * (k - above.sum())) / k)
