"""Which active latents become nodes of their own; the others stay in their error node.

Those that are off on the prompt and on in the reference are chosen among like any others.

Three ways: those with the largest total effects; those that are named; and those that influence the
output most, found as circuit-tracer finds them: edges into the most influential latents so far show
the next ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from attribution.edges.direct import Stretches
from attribution.edges.rows import EdgeRows
from attribution.effects import Effects
from attribution.influence import solve_influence
from circuits import LatentNode, Site, SplicedModel, UserError
from circuits.interventions import check_nodes


def strongest(effects: Effects, n: int | None) -> dict[Site, Tensor]:
    """The `n` latents with the largest effects, all for `None`: a mask `[n]` a site."""
    sizes = torch.cat([site.effect.abs() for site in effects.sites.values()])
    kept = torch.zeros_like(sizes, dtype=torch.bool)
    kept[sizes.argsort(descending=True, stable=True)[:n]] = True
    parts = kept.split([len(site.pos) for site in effects.sites.values()])
    return dict(zip(effects.sites, parts, strict=True))


NO_LATENTS: Sequence[LatentNode] = []
"""To be given where no latent is to become a node; an empty list of a user's is a mistake."""


def check_latents(model: SplicedModel, ids: Tensor, latents: Sequence[LatentNode]) -> None:
    """Refuse latents that no prompt of this length can switch on.

    Raises:
        UserError: none, unless it is `NO_LATENTS`; something else than a latent, one that its site
            does not have, or one at a position that does not exist or is not read.
    """
    if not latents and latents is not NO_LATENTS:
        raise UserError("latents=[]; name at least one, or leave it out for max_latents of them")
    for node in latents:
        if not isinstance(node, LatentNode):
            raise UserError(
                f"latents hold {node!r}, a {type(node).__name__}; give LatentNodes "
                "(parse_node makes one from its name)"
            )
    check_nodes(model, ids, latents)


def given(effects: Effects, latents: Sequence[LatentNode]) -> dict[Site, Tensor]:
    """Those of `latents` that are on, on the prompt or in the reference: a mask `[n]` a site.

    Raises:
        UserError: latents are named and none of them is on.
    """
    wanted = {(node.site, node.pos, node.latent) for node in latents}
    masks = {}
    for site, here in effects.sites.items():
        pairs = zip(here.pos.tolist(), here.latent.tolist(), strict=True)
        mask = torch.tensor([(site, *pair) in wanted for pair in pairs], dtype=torch.bool)
        masks[site] = mask.to(here.acts.device)
    if wanted and not any(mask.any() for mask in masks.values()):
        raise UserError(
            f"none of the {len(wanted)} latents named is active on the prompt, among them "
            f"{latents[0]}; name active ones: total_effects(...).strongest(n)"
        )
    return masks


def within(outer: Mapping[Site, Tensor], inner: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
    """A mask of all that `outer` is of, from a mask `inner` of what `outer` keeps."""
    masks = {}
    for site, mask in outer.items():
        masks[site] = torch.zeros_like(mask)
        masks[site][mask] = inner[site].to(mask.device)
    return masks


ROUNDS = 8
"""In how many steps influential latents are found; before each, influence is estimated anew."""


def influential(stretches: Stretches, weights: Sequence[float], n: int) -> dict[Site, Tensor]:
    """The `n` latents that influence the output most, by the edges into those found before.

    A mask `[n]` a site.

    Args:
        stretches: With every latent as a node.
        weights: Of the logit nodes.
        n: How many; fewer where no more influence the output.
    """
    table = stretches.table
    rows = EdgeRows(len(table), len(table.logits))
    stretches.add_logits(rows)
    edges = rows.matrix()
    outputs = table.outputs(weights)
    waiting = np.zeros(len(table), dtype=bool)
    for nodes in table.sites.values():
        waiting[nodes.latents_at.start : nodes.latents_at.stop] = True
    found = np.zeros(len(table), dtype=bool)
    with tqdm(total=n, desc="influential latents", disable=None, delay=1, leave=None) as bar:
        while (left := n - found.sum()) > 0:
            influences = np.where(waiting, solve_influence(edges, outputs), 0.0)
            step = min(left, -(-n // ROUNDS))
            best = influences.argsort(kind="stable")[::-1][:step]
            best = np.sort(best[influences[best] > 0])
            found[best], waiting[best] = True, False
            if not len(best) or step == left:
                break  # the edges into the last ones show nothing more
            rows = EdgeRows(len(table), len(best))
            chosen = {}
            for site, nodes in table.sites.items():
                here = best[(best >= nodes.latents_at.start) & (best < nodes.latents_at.stop)]
                latents = torch.from_numpy(here - nodes.latents_at.start)
                chosen[site] = latents[torch.isin(latents, nodes.targets)]
            stretches.add_latents(rows, chosen, bar)
            edges = edges + rows.matrix()
    return {
        site: torch.from_numpy(found[nodes.latents_at.start : nodes.latents_at.stop])
        for site, nodes in table.sites.items()
    }
