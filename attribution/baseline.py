"""What edges and effects are against: the values of a reference at every leaf of a model.

A source then counts by what it adds on the prompt less what it adds in the reference. Against zero
the whole of a leaf counts, the biases of dictionaries too: nothing is written in the reference.
Against any other reference a bias is the same on both sides and counts nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from attribution.edges.adjoints import NormMap
from attribution.edges.local_pass import LayerMaps, layer_maps, watched
from attribution.edges.node_table import NodeTable
from circuits import Reference, Site, SplicedModel
from circuits.active import Active, write_each
from circuits.cross_layer import Carried
from circuits.freeze import Freeze
from circuits.outputs import LAST_LOGITS
from circuits.trace import SiteTrace


def unless_zero(reference: Reference | None) -> Reference | None:
    """The reference, or `None` if every latent, error and embedding in it is zero."""
    if reference is None:
        return None
    sites = reference.trace.sites.values()
    values = [reference.trace.embedding, *(v for here in sites for v in (here.acts, here.error))]
    return reference if any(bool(value.any()) for value in values) else None


def changes_of(table: NodeTable, reference: Reference) -> Tensor:
    """Of every node, its activation less that in the reference, `[n]`; 1 for vectors."""
    changes = table.acts()
    for site, here in table.sites.items():
        pos, latent = here.latents.pos, here.latents.latent
        off = reference.trace.sites[site].at(pos, latent).float()
        changes[here.latents_at.start : here.latents_at.stop] -= off.cpu()
    return changes


def active_in(there: SiteTrace) -> Active:
    """Every latent that a reference has at one site."""
    return Active(there.pos, there.latent, there.acts)


@torch.no_grad()
def integrated_from(
    model: SplicedModel, ids: Tensor, reference: Reference | None, freeze: Freeze
) -> Freeze:
    """`freeze`, with the rule `integrated` starting where the reference leaves each MLP's inputs.

    They are what an MLP reads if every site and the embedding have their reference values, while
    patterns and the scales of norms stay those of the prompt: what lies between is then linear but
    for MLPs, and edges sum to what it changes. Against zero, MLPs are silent there.

    Args:
        model: The spliced model.
        ids: The prompt, `[1, pos]`.
        reference: What effects are against; `None` for zero.
        freeze: Returned as it is if it has another rule, or a start already.
    """
    reference = unless_zero(reference)
    if freeze.mlp != "integrated" or freeze.start or reference is None:
        return freeze
    seen: dict[str, Tensor] = {}
    model.forward(
        ids,
        {},
        output=LAST_LOGITS,
        watch={name: _keep(seen, name) for name in watched(model)},
    )
    reads = model.reads(ids)[0][:, None]
    leaves = _leaves(model, reference, reads)
    x = leaves.get(Site(0, "embed"), reference.trace.embedding.float())
    start = {}
    for number in range(model.n_layers):
        layer = layer_maps(model, number, seen, Freeze(attention=True, norms=True))
        x, start[number] = _through(layer, number, x, leaves, reads)
    return replace(freeze, start=start)


def _keep(seen: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
    return lambda x: seen.update({name: x[0]})


def _leaves(model: SplicedModel, reference: Reference, reads: Tensor) -> dict[Site, Tensor]:
    """What each site writes in the reference, `[pos, d_out]`, but for its skip connection."""
    carried, leaves = Carried(), {}
    for site in model.sites:
        dictionary, there = model.dictionaries[site], reference.trace.sites[site]
        own, *later = write_each(dictionary.decoders, active_in(there), len(there.error))
        written = carried.up(site, own, later)
        leaves[site] = written + dictionary.b_dec.float() * reads + there.error.float()
    return leaves


def _through(
    layer: LayerMaps, number: int, x: Tensor, leaves: dict[Site, Tensor], reads: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The residual stream `[pos, d_model]` after a layer, and its MLP's gate and up."""
    heads = leaves.get(Site(number, "attn"))
    if heads is None:
        heads = layer.attention.heads(layer.before_attn.forward(x))
    x = x + _norm(layer.after_attn, heads @ layer.attention.W_O.T.float())
    inputs = layer.mlp.inputs(layer.before_mlp.forward(x))
    if Site(number, "mlp") in leaves:
        written = leaves[Site(number, "mlp")]
    elif Site(number, "transcoder") in leaves:
        written = leaves[Site(number, "transcoder")]
        if layer.W_skip is not None:
            read = x if layer.reads_residual else x * layer.before_mlp.scale
            written = written + (read @ layer.W_skip.float()) * reads
    else:
        written = _norm(layer.after_mlp, layer.mlp.forward(*inputs))
    return leaves.get(Site(number, "resid"), x + written), inputs


def _norm(norm: NormMap | None, x: Tensor) -> Tensor:
    return x if norm is None else norm.forward(x)
