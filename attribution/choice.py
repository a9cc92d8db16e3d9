"""Which active latents become nodes of their own; the others stay in their error node."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attribution.effects import Effects
from circuits import LatentNode, Site, UserError


def strongest(effects: Effects, n: int | None) -> dict[Site, Tensor]:
    """The `n` active latents with the largest effects, all for `None`: a mask `[n]` a site."""
    active = torch.cat([site.acts != 0 for site in effects.sites.values()])
    sizes = torch.cat([site.effect.abs() for site in effects.sites.values()])
    order = sizes.masked_fill(~active, -1.0).argsort(descending=True, stable=True)
    n_active = int(active.sum())
    kept = torch.zeros_like(active)
    kept[order[: n_active if n is None else min(n, n_active)]] = True
    parts = kept.split([len(site.pos) for site in effects.sites.values()])
    return dict(zip(effects.sites, parts, strict=True))


def given(effects: Effects, latents: Sequence[LatentNode]) -> dict[Site, Tensor]:
    """Those of `latents` that are active on the prompt: a mask `[n]` a site.

    Raises:
        UserError: something else than a latent of these sites.
    """
    for node in latents:
        if not isinstance(node, LatentNode) or node.site not in effects.sites:
            raise UserError(
                f"{node} is no latent of this model; its sites are "
                f"{', '.join(map(str, effects.sites))}"
            )
    wanted = {(node.site, node.pos, node.latent) for node in latents}
    masks = {}
    for site, here in effects.sites.items():
        pairs = zip(here.pos.tolist(), here.latent.tolist(), strict=True)
        mask = torch.tensor([(site, *pair) in wanted for pair in pairs], dtype=torch.bool)
        masks[site] = mask.to(here.acts.device) & (here.acts != 0)
    return masks
