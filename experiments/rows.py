"""How many rows of a prompt go through one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attribution.edges.direct import WORKING_MEMORY
from circuits import SplicedModel
from circuits.memory import parse_bytes

ROWS = 64
"""Of one pass where there is memory for them: more are no faster on two CPU cores."""

SHORT_ROWS = 256
"""Of one pass that computes few positions of each: attention reads all positions all the same."""


def rows_in(model: SplicedModel, n_pos: int, memory: str | int | None = None) -> int:
    """How many rows of a prompt one pass has: `ROWS`, or as many as there is memory for, or one.

    One site at a time holds its latents densely: as they come, changed, and chosen from both.
    """
    budget = WORKING_MEMORY if memory is None else parse_bytes(memory)
    widest = max(model.dictionaries.summary(site).d_sae for site in model.sites)
    return max(1, min(ROWS, budget // (3 * 4 * n_pos * widest)))


def short_rows_in(
    model: SplicedModel, n_pos: int, n_logits: int, memory: str | int | None = None
) -> int:
    """How many rows one pass has however few positions are computed of each; `SHORT_ROWS` at most.

    Attention has the keys and values of all positions for each row, once a head, and each row has
    its logits.

    Args:
        n_logits: The positions whose logits are wanted.
    """
    config = model.config
    heads = config.num_attention_heads + config.num_key_value_heads
    keys_and_values = 2 * n_pos * heads * config.head_dim
    logits = 3 * n_logits * model.d_vocab  # as they come, capped, and as a metric sees them
    a_row = (keys_and_values + logits) * model.dtype.itemsize
    budget = WORKING_MEMORY if memory is None else parse_bytes(memory)
    return max(1, min(SHORT_ROWS, budget // a_row))


def pack(lengths: Sequence[int], n_tokens: int, most: int) -> Iterator[slice]:
    """Neighbouring rows that go through a pass together: about as long as each other.

    A pass that is half full ends where rows get shorter, for it computes its first row's positions
    of all.

    Args:
        lengths: How many positions each row needs, descending.
        n_tokens: Positions of one pass, all rows together, where that is at least one row.
        most: Rows of one pass.
    """
    start = 0
    while start < len(lengths):
        n_rows = max(1, min(n_tokens // lengths[start], most))
        stop = min(start + n_rows, len(lengths))
        half = start + max(1, n_rows // 2)
        stop = next((n for n in range(half, stop) if lengths[n] < lengths[n - 1]), stop)
        yield slice(start, stop)
        start = stop
