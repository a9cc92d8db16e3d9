"""How many rows of a prompt go through one pass."""

from __future__ import annotations

from attribution.edges import WORKING_MEMORY
from circuits import SplicedModel
from circuits.memory import parse_bytes

ROWS = 64
"""Of one pass where there is memory for them: more are no faster on two CPU cores."""


def rows_in(model: SplicedModel, n_pos: int, memory: str | int | None = None) -> int:
    """How many rows of a prompt one pass has: `ROWS`, or as many as there is memory for, or one.

    One site at a time holds its latents densely: as they come, changed, and chosen from both.
    """
    budget = WORKING_MEMORY if memory is None else parse_bytes(memory)
    widest = max(model.dictionaries.summary(site).d_sae for site in model.sites)
    return max(1, min(ROWS, budget // (3 * 4 * n_pos * widest)))
