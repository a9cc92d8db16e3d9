"""Where in the model a dictionary is spliced in."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import total_ordering

from circuits.errors import UserError

KINDS = ("attn", "mlp", "resid")
"""Kinds of site that are spliced in by default, in the order in which a layer passes them."""

ALL_KINDS = ("embed", "attn", "transcoder", "mlp", "resid")
"""Every kind of site, in the order of the forward pass."""


@total_ordering
@dataclass(frozen=True)
class Site:
    """A layer and a kind; sites compare in the order of the forward pass.

    Attributes:
        layer: Counted from 0.
        kind: `attn` (head outputs, concatenated, before `W_O`), `mlp` (what the MLP adds to the
            residual, after the post-feedforward norm), `resid` (the residual after the layer),
            `embed` (the scaled embedding; there is one, `embed.0`, before the first layer) or
            `transcoder` (reads the MLP's normalised input, writes what `mlp` does; of a cross-layer
            transcoder the latents that read there).
    """

    layer: int
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in ALL_KINDS:
            raise UserError(f"no kind of site {self.kind!r}; the kinds are {', '.join(ALL_KINDS)}")
        if self.layer < 0:
            raise UserError(f"no layer {self.layer}; layers count from 0")
        if self.kind == "embed" and self.layer > 0:
            raise UserError(f"no site embed.{self.layer}; the embedding is embed.0")

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer}"

    def __lt__(self, other: "Site") -> bool:
        return self.order < other.order

    @property
    def order(self) -> tuple[int, int]:
        return self.layer, ALL_KINDS.index(self.kind)

    @classmethod
    def parse(cls, text: str) -> "Site":
        """The site named by `text`, as `str(site)` writes it: `mlp.3`."""
        match = re.fullmatch(r"(\w+)\.(\d+)", text)
        if match is None:
            raise UserError(f"{text!r} is not a site; write kind.layer, for example mlp.3")
        return cls(int(match[2]), match[1])


def check_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """`kinds` in the order of the forward pass, each once.

    Raises:
        UserError: a kind that does not exist, or none at all.
    """
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    unknown = [kind for kind in kinds if kind not in ALL_KINDS]
    if unknown or not kinds:
        came = ", ".join(map(repr, unknown)) or "none"
        raise UserError(
            f"no kind of site {came}; choose from {', '.join(KINDS)}, embed, transcoder"
        )
    return tuple(kind for kind in ALL_KINDS if kind in kinds)
