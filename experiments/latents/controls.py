"""Random latents of the same place whose ablation moves as much, to compare a latent's effect with.

A control may be any latent but the one that it is a control of, the others that are tested among
them: without those the controls would be what was not worth testing, and every latent would look
large beside them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from experiments.pooled import PooledEffects
from experiments.spans import SpanNode
from experiments.statistics import percentile_among

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Controls:
    """The controls of each of the latents that are tested.

    Attributes:
        of: For each latent the columns of its controls, among what is measured.
        further: Those that are not tested themselves: measured after the latents, in this order.
    """

    of: tuple[Array, ...]
    further: tuple[SpanNode, ...]

    @classmethod
    def matched(cls, pooled: PooledEffects, tested: Array, n: int, seed: int) -> Controls:
        """Those of `matched_controls` for the columns `tested` of `pooled`; -1 has none."""
        own = matched_controls(pooled, tested, n, seed)
        further = np.setdiff1d(np.concatenate([tested[:0], *own]), tested).tolist()
        places = {column: place for place, column in enumerate([*tested.tolist(), *further])}
        return cls(
            tuple(np.array([places[c] for c in columns.tolist()], dtype=int) for columns in own),
            tuple(pooled.nodes[column] for column in further),
        )

    def percentiles(self, means: Array) -> list[float]:
        """Share of each latent's controls with a smaller |mean|; NaN for one without any.

        Args:
            means: Of the latents and then of the further controls.
        """
        pairs = zip(means[: len(self.of)].tolist(), self.of, strict=True)
        return [float(percentile_among(mean, means[own])) for mean, own in pairs]


def matched_controls(pooled: PooledEffects, chosen: Array, n: int, seed: int) -> list[Array]:
    """For each column of `chosen`, the columns of up to `n` random latents to compare it with.

    Of the same site and span, and any but the latent itself. Where there are more than `n`, they
    are drawn from the `2 n` whose mean change of what the site writes is nearest, on a log scale.
    One that changes nothing is no control. A column of -1 is on nowhere, and nothing is like it.
    """
    change = np.asarray(pooled.change.mean(0))
    size = np.log(np.maximum(change, np.finfo(np.float64).tiny))
    groups = defaultdict(list)
    for i, node in enumerate(pooled.nodes):
        if node.latent is not None and change[i] > 0:
            groups[node.site, node.span].append(i)
    rng, matched = np.random.default_rng(seed), []
    for i in chosen.tolist():
        here = [] if i < 0 else groups[pooled.nodes[i].site, pooled.nodes[i].span]
        others = np.array([j for j in here if j != i], dtype=np.int64)
        if len(others) > n:
            near = others[np.argsort(np.abs(size[others] - size[i]), kind="stable")[: 2 * n]]
            others = rng.choice(near, size=n, replace=False)
        matched.append(np.sort(others))
    return matched
