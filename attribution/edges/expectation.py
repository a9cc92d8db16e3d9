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
        n_bytes: The edges and one batch of targets, besides the model.
    """

    latents: int
    edges: int
    seconds: float
    n_bytes: int

    def __str__(self) -> str:
        return f"about {self.seconds:.0f} s and {show_bytes(self.n_bytes)}"


def expected(stretches: Stretches) -> Forecast:
    """The forecast for all latents of `stretches`; takes a small part of that time."""
    edges, seconds = 0.0, 0.0
    for site, nodes in stretches.table.sites.items():
        targets = nodes.targets
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
    n_latents = sum(len(nodes.targets) for nodes in stretches.table.sites.values())
    return Forecast(n_latents, round(edges), seconds, round(BYTES * edges) + stretches.memory)
