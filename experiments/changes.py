"""The values that ablated nodes are set to, looked up for many nodes of a site at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from circuits import ErrorNode, Intervention, LatentNode, Reference, UserError, set_to

AnyNode = LatentNode | ErrorNode


def changes_to(
    clean: Reference, reference: Reference, groups: Sequence[Sequence[AnyNode]]
) -> list[list[Intervention]]:
    """Interventions that set the nodes of each group to the reference.

    A node whose value in the reference is the clean one is left out: setting it changes nothing.

    Raises:
        UserError: a site, position or latent that one of the two does not have.
    """
    nodes = list(dict.fromkeys(node for group in groups for node in group))
    changes: dict[AnyNode, Intervention] = {}
    for some in by_place(nodes):
        before, after = values_of(clean, some), values_of(reference, some)
        changed = (before.float() != after.float()).view(len(some), -1).any(1).tolist()
        # an activation is a plain number: on a GPU each tensor would be waited for alone
        values = after if isinstance(some[0], ErrorNode) else after.tolist()
        changes |= {
            node: set_to(node, value)
            for node, value, change in zip(some, values, changed, strict=True)
            if change
        }
    return [[changes[node] for node in group if node in changes] for group in groups]


def values_of(reference: Reference, nodes: Sequence[AnyNode]) -> Tensor:
    """`reference.value` of each of `nodes`, latents of one site, `[n]`, or errors, `[n, d_out]`.

    Raises:
        UserError: a site, position or latent that the reference does not have.
    """
    _check(reference, nodes)
    site = nodes[0].site
    pos = torch.tensor([node.pos for node in nodes], device=reference.trace.ids.device)
    if isinstance(nodes[0], ErrorNode):
        return reference.error(site)[pos]
    latent = pos.new_tensor([node.latent for node in nodes if isinstance(node, LatentNode)])
    return reference.trace.sites[site].at(pos, latent)


def _check(reference: Reference, nodes: Sequence[AnyNode]) -> None:
    n_pos, sites = len(reference.trace.ids), reference.trace.sites
    for node in nodes:
        if node.site not in sites or not 0 <= node.pos < n_pos:
            reference.value(node)  # which says what is wrong
        if isinstance(node, LatentNode) and not 0 <= node.latent < sites[node.site].d_sae:
            raise UserError(
                f"{node}: no latent {node.latent}; {node.site} has {sites[node.site].d_sae}"
            )


def by_place(nodes: Sequence[AnyNode]) -> Iterator[list[AnyNode]]:
    """The latents of each site, and its errors, together."""
    places: dict[tuple, list[AnyNode]] = {}
    for node in nodes:
        places.setdefault((node.site, type(node)), []).append(node)
    yield from places.values()
