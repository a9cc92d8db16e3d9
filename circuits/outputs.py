"""What a forward pass gives back: logits, or any tensor that the model computes on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from circuits.errors import UserError
from circuits.sites import Site


@dataclass(frozen=True)
class Logits:
    """Logits of every position, `[batch, pos, vocab]`, or of one alone, `[batch, 1, vocab]`.

    Attributes:
        pos: The one position whose logits are computed, counted from the end where negative (in a
            padded batch, from the end of the longest row); None for all. With 256,000 words, those
            of all positions take most of a pass's memory.
        soft_capped: After Gemma's final soft-cap, or before it; a model without one gives the same.
    """

    pos: int | None = None
    soft_capped: bool = True


@dataclass(frozen=True)
class HookPoint:
    """The tensor at a hook point, in the shape in which TransformerLens shows it.

    It is what the model makes, before a dictionary spliced in at the same place replaces it.
    Gradients through a norm's output obey `Freeze.norms`; those through what TransformerLens
    computes beside it (`hook_normalized`, `hook_scale`) do not.
    """

    name: str


@dataclass(frozen=True)
class SiteInput:
    """What the dictionary at `site` reads, or would read if there were one: `[batch, pos, d_in]`.

    The heads of `attn` are joined; a transcoder reads the normalised input of the MLP, whose
    gradient obeys `Freeze.norms`.
    """

    site: Site


Part = Logits | HookPoint | SiteInput

Output = Part | tuple["Output", ...]
"""What a pass gives back: one tensor, or a tuple of what each of several gives."""

ALL_LOGITS = Logits()

LAST_LOGITS = Logits(-1)
"""The cheapest output, for passes of which hooks take what is wanted."""

_BEHIND_THE_CHOICE = ("unembed.", "hook_unembed")
"""Hook points that see only the positions whose logits are computed."""


def parts(output: Output) -> tuple[Part, ...]:
    """The single outputs that `output` is made of, each once."""
    if not isinstance(output, tuple):
        if not isinstance(output, Part):
            raise UserError(f"{output!r} is no output; give Logits(), HookPoint(name) or SiteInput")
        return (output,)
    return tuple(dict.fromkeys(part for one in output for part in parts(one)))


def logit_positions(output: Output, n_pos: int) -> list[int]:
    """The positions whose logits a pass has to compute, ascending; never none.

    Raises:
        UserError: a position that the prompt does not have.
    """
    wanted: set[int] = set()
    for part in parts(output):
        if isinstance(part, HookPoint) and part.name.startswith(_BEHIND_THE_CHOICE):
            return list(range(n_pos))
        if isinstance(part, Logits):
            if part.pos is None:
                return list(range(n_pos))
            wanted.add(position(part.pos, n_pos))
    return sorted(wanted) or [n_pos - 1]


def position(pos: int, n_pos: int) -> int:
    """`pos` counted from the front.

    Raises:
        UserError: there is no such position among `n_pos`.
    """
    if not isinstance(pos, int) or not -n_pos <= pos < n_pos:
        raise UserError(
            f"no position {pos!r}; the prompt has {n_pos} tokens, BOS among them: "
            f"choose 0 to {n_pos - 1}, or -1 for the last"
        )
    return pos % n_pos


def arrange(
    output: Output, tensors: Mapping[Part, Tensor], computed: Sequence[int], n_pos: int
) -> Any:
    """The tensors of the parts in the shape of `output`: one, or tuples.

    Args:
        output: What is given back.
        tensors: Of each part; of logits those at the positions `computed`, `[batch, k, vocab]`.
        computed: As `logit_positions` gives them.
        n_pos: Number of positions.
    """
    if isinstance(output, tuple):
        return tuple(arrange(one, tensors, computed, n_pos) for one in output)
    if not isinstance(output, Logits) or output.pos is None or len(computed) == 1:
        return tensors[output]
    at = computed.index(position(output.pos, n_pos))
    return tensors[output][:, at : at + 1]
