"""Where in the model a dictionary is spliced in."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import total_ordering

from circuits.errors import UserError

KINDS = ("attn", "mlp", "resid")
"""Kinds of site, in the order in which a layer passes them."""


@total_ordering
@dataclass(frozen=True)
class Site:
    """A layer and a kind; sites compare in the order of the forward pass.

    Attributes:
        layer: Counted from 0.
        kind: `attn` (head outputs, concatenated, before `W_O`), `mlp` (what the MLP adds to the
            residual, after the post-feedforward norm) or `resid` (the residual after the layer).
    """

    layer: int
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"no kind of site {self.kind!r}; the kinds are {', '.join(KINDS)}")
        if self.layer < 0:
            raise UserError(f"no layer {self.layer}; layers count from 0")

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer}"

    def __lt__(self, other: "Site") -> bool:
        return self.order < other.order

    @property
    def order(self) -> tuple[int, int]:
        return self.layer, KINDS.index(self.kind)

    @property
    def hook_point(self) -> str:
        """TransformerLens' name; for `attn` the tensor there is `[batch, pos, head, d_head]`."""
        name = {"attn": "attn.hook_z", "mlp": "hook_mlp_out", "resid": "hook_resid_post"}
        return f"blocks.{self.layer}.{name[self.kind]}"

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
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        came = ", ".join(map(repr, unknown)) or "none"
        raise UserError(f"no kind of site {came}; choose from {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in kinds)
