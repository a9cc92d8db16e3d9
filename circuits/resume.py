"""Many edited passes of one prompt, of which only what differs from the clean pass is computed.

A row of a batch is one edited pass. Nothing below the first site that it edits changes, and nothing
at positions before the first that it edits. So

1. the clean pass is *kept* (`circuits.kept`);
2. each row *starts*: its first site read the clean pass, so what its edits change there is known
   without a pass, and is added to what the clean pass has at that place;
3. rows *go up* together from the lowest of their places, each joining at its layer, from the lowest
   of their positions on; attention reads the clean keys and values of the positions before;
4. logits are read from the last layer, at clean positions from the clean pass.

The numbers are those of `SplicedModel.run` but for rounding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circuits.formula import Formula, keep_errors
from circuits.freeze import ForwardHook
from circuits.hooks import SiteHook, hooked, site_hooks
from circuits.interventions import Intervention, by_site, edit_at
from circuits.kept import CACHE, Kept
from circuits.outputs import Logits, Output, Part, arrange, logit_positions, parts, position
from circuits.sites import Site

if TYPE_CHECKING:
    from circuits.splice import SplicedModel

Placed = tuple[int, Intervention]
"""A row and what is changed in it."""


@dataclass(frozen=True, eq=False)
class Start:
    """Where and how a row begins to differ from the clean pass.

    Attributes:
        layer: The first layer that is computed; the number of layers for none.
        site: Where `change` is added; None for what enters `layer`.
        first: The lowest position that the row changes anywhere.
        positions: Where there is a change, `[n]`.
        change: `[n, d_out]`, float32 or wider.
        later: What is changed further up.
    """

    layer: int
    site: Site | None
    first: int
    positions: list[int]
    change: Tensor
    later: tuple[Intervention, ...]


def can_resume(model: SplicedModel, output: Output) -> bool:
    """Whether passes can be resumed: no latents that write to several layers, logits alone."""
    crossing = any(model.dictionaries.summary(site).n_later for site in model.sites)
    return not crossing and all(isinstance(part, Logits) for part in parts(output))


@torch.no_grad()
def starts(kept: Kept, rows: Sequence[Sequence[Intervention]], block: int) -> list[Start]:
    """The start of each row; every site's dictionary is read once.

    Args:
        rows: What is changed in each; `kept` has all sites of them.
        block: Positions whose latents are held densely at a time.
    """
    model = kept.model
    first_site = [min((i.node.site for i in row), default=None) for row in rows]
    here: defaultdict[Site, list[Placed]] = defaultdict(list)
    for row, interventions in enumerate(rows):
        for i in interventions:
            if i.node.site == first_site[row]:
                here[i.node.site].append((row, i))
    found: dict[int, tuple[list[int], Tensor]] = {}
    for site in sorted(here):
        found |= _first_changes(kept, site, here[site], block)
    nothing = [], kept.entering[0].new_zeros(0, kept.entering[0].shape[-1])
    result = []
    for row, interventions in enumerate(rows):
        later = tuple(i for i in interventions if i.node.site != first_site[row])
        layer, site = _place(model, first_site[row], later, kept.downstream)
        lowest = min((i.node.pos for i in interventions), default=kept.n_pos - 1)
        result.append(Start(layer, site, lowest, *found.get(row, nothing), later))
    return result


def _first_changes(
    kept: Kept, site: Site, placed: Sequence[Placed], block: int
) -> dict[int, tuple[list[int], Tensor]]:
    """By row, the positions at which its edits change what `site` writes, and by what."""
    tokens = list(dict.fromkeys((row, i.node.pos) for row, i in placed))  # a row's are neighbours
    index = {token: n for n, token in enumerate(tokens)}
    edits: defaultdict[int, list[Placed]] = defaultdict(list)
    for row, i in placed:
        n = index[row, i.node.pos]
        edits[n // block].append((n % block, i))
    changes = []
    for n, some in edits.items():
        positions = torch.tensor([pos for _, pos in tokens[n * block : (n + 1) * block]])
        positions = positions.to(kept.ids.device)
        changes.append(
            Formula(kept.model.dictionaries).changes(
                site,
                kept.reads[:, positions],
                _keep(kept, site, positions),
                _edit(some),
                kept.read[site][:, positions],
                kept.written[site][:, positions],
            )[1][0]
        )
    change, rows = torch.cat(changes), [row for row, _ in tokens]
    counts = [rows.count(row) for row in dict.fromkeys(rows)]
    ...
