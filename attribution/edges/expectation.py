"""How long edges will take and how much room, from a sample of targets of every site."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from circuits.memory import show_bytes

if TYPE_CHECKING:
    from attribution.edges.direct import Stretches

SAMPLE = 48
"""Neighbouring targets of a site that are tried."""

BYTES = 10
"""An edge's value and column, and what room was made for more."""


@dataclass(frozen=True)
class Forecast:
    """What direct effects will take, roughly.

    Attributes:
        latents: Targets.
        edges: Between all nodes, exact zeros included.
        seconds: At the speed of the sample; whole batches are often faster.
        n_bytes: The edges, if they are stored, and one batch of targets, besides the model.
    """

    latents: int
    edges: int
    seconds: float
    n_bytes: int

    def __str__(self) -> str:
        return f"about {self.seconds:.0f} s and {show_bytes(self.n_bytes)}"


def expected(stretches: Stretches, *, stored: bool = True) -> Forecast:
    """The forecast for all targets of `stretches`; takes a small part of that time.

    Without `stored`, of edges that are counted and let go.
    """
    edges, seconds = 0.0, 0.0
    all_targets = stretches.targets
    for site, targets in all_targets.items():
        n = len(targets)
        first = max(0, (n - SAMPLE) // 2)  # in the middle: work and edges grow with the position
        sample = targets[first : first + SAMPLE]
        start = time.perf_counter()
        n_values = sum(
            len(piece.rows) * piece.values.shape[1]
            for _, _, pieces in stretches.batches({site: sample})
            for piece in pieces
        )
        if n:
            seconds += (time.perf_counter() - start) * n / len(sample)
            edges += n_values * n / len(sample)
    n_bytes = stretches.memory + (round(BYTES * edges) if stored else 0)
    n_latents = sum(map(len, all_targets.values()))
    return Forecast(n_latents, round(edges), seconds, n_bytes)
