"""Every node's influence on the output, from edges that are counted and let go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from attribution.edges.adjoints import groups
from attribution.edges.direct import Stretches
from attribution.edges.rows import block_of
from attribution.edges.sources import Piece
from attribution.influence import reciprocal


def node_influences(stretches: Stretches, outputs: np.ndarray) -> np.ndarray:
    """What `attribution.influence.solve_influence` says of all edges, without storing them.

    A target without influence hands on nothing: its edges are not even computed.

    Args:
        stretches: What edges are computed from.
        outputs: How much each node counts as an output, `[n]`.

    Returns:
        `[n]`, float64.
    """
    targets = stretches.targets
    rows = InfluenceRows(outputs)
    stretches.add_logits(rows)
    with stretches.bar("influence", sum(map(len, targets.values())), stored=False) as bar:
        for site, here in reversed(targets.items()):
            at = stretches.table.sites[site].latents_at  # all that it feeds has been counted
            feeding = here[torch.from_numpy(rows.influences[at.start : at.stop])[here] != 0]
            stretches.add_latents(rows, {site: feeding}, bar)
            bar.update(len(here) - len(feeding))
    return rows.influences


class InfluenceRows:
    """Rows of direct effects, from the output down.

    When a target's row comes, all that the target feeds has come: its influence is known, is handed
    on to its sources, and the row is not needed any more.

    Attributes:
        influences: Of every node, as far as rows have come, `[n]`.
    """

    def __init__(self, outputs: np.ndarray):
        self._outputs = outputs
        self.influences = np.zeros(len(outputs))

    def add(self, nodes: np.ndarray, pos: Tensor, pieces: Sequence[Piece]) -> None:
        """Rows of targets that feed no later ones (`Rows.add`)."""
        arrived = self.influences[nodes] + self._outputs[nodes]
        for place, group in groups(pos):
            columns, values = block_of(pieces, group, place)
            sizes = values.abs_().double()
            handed = arrived[group] * reciprocal(sizes.sum(0).cpu().numpy())
            self.influences[columns] += (sizes @ torch.from_numpy(handed).to(sizes)).cpu().numpy()
