"""One pass cut at every spliced site, and the linear maps of the stretches between.

Every spliced site's output, and the embedding, is a leaf: the pre-activation of a target then
depends only on sites that reach it without crossing another.

A transcoder cuts the model where its MLP writes, and reads what the MLP reads: with one at every
layer, no MLP lies between any two sites. What its skip connection writes, `x_in @ W_skip`, is no
node but part of the stretch between sites (as in circuit-tracer): it is added to the leaf with its
gradient, so that what lies below the transcoder reaches across it to what lies above.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from attribution.edges.adjoints import Adjoint, AttentionMap, MlpMap, NormMap
from attribution.gradients import checked
from attribution.metrics import BoundMetric
from circuits import Site, SplicedModel
from circuits.freeze import Freeze
from circuits.hooks import SiteHook


@dataclass(frozen=True, eq=False)
class LayerMaps:
    """One layer on one prompt: what lies between its sites.

    Attributes:
        attention: Between `before_attn` and `after_attn`.
        mlp: Between `before_mlp` and `after_mlp`.
        before_attn, before_mlp: The norms that the sublayers read.
        after_attn, after_mlp: The norms of what they write, in families that have them.
        W_skip: Of a transcoder in the MLP's place, `[d_in, d_out]`, if it has one.
        reads_residual: Whether that transcoder reads what the norm before the MLP reads.
    """

    attention: AttentionMap
    mlp: MlpMap
    before_attn: NormMap
    before_mlp: NormMap
    after_attn: NormMap | None
    after_mlp: NormMap | None
    W_skip: Tensor | None
    reads_residual: bool

    def from_transcoder(self, grad: Adjoint) -> Adjoint:
        """From what a transcoder reads to the residual stream."""
        return grad if self.reads_residual else self.before_mlp.adjoint(grad, gain=False)


@dataclass(frozen=True, eq=False)
class LocalPass:
    """A pass cut at every spliced site.

    Attributes:
        inputs: What each site reads, `[1, pos, d_in]`, a function of the leaves below it.
        leaves: What each site writes, `[1, pos, d_out]`; under `None` the scaled embedding.
        scores: What is explained, `[n_logits]`.
        reads: Where dictionaries read, `[pos]`.
        freeze: What gradients treat as constant.
        layers: The maps of each layer.
    """

    inputs: Mapping[Site, Tensor]
    leaves: Mapping[Site | None, Tensor]
    scores: Tensor
    reads: Tensor
    freeze: Freeze
    layers: tuple[LayerMaps, ...]


def local_pass(
    model: SplicedModel, ids: Tensor, explained: Sequence[BoundMetric], freeze: Freeze
) -> LocalPass:
    """One forward pass over `ids [1, pos]` that all metrics of `explained` read."""
    inputs: dict[Site, Tensor] = {}
    leaves: dict[Site | None, Tensor] = {}
    reads = model.reads(ids)

    def cut(site: Site | None) -> SiteHook:
        def hook(read: Tensor, written: Tensor) -> Tensor:
            leaves[site] = written.detach().requires_grad_()
            if site is None:
                return leaves[site]
            inputs[site] = read
            if not model.dictionaries.summary(site).has_skip:
                return leaves[site]
            skip = (model.dictionaries[site].skip(read) * reads[..., None]).to(written.dtype)
            return leaves[site] + (skip - skip.detach())  # no value of its own: the leaf has it

        return hook

    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], None]:
        return lambda x: seen.update({name: x.detach()[0]})

    with torch.enable_grad():
        outputs = model.forward(
            ids,
            {site: cut(site) for site in model.sites},
            freeze=freeze,
            embedding=cut(None),
            output=tuple(metric.output for metric in explained),
            watch={name: keep(name) for name in watched(model)},
        )
        values = [
            checked(metric(out), 1, {"the output": out})
            for metric, out in zip(explained, outputs, strict=True)
        ]
        scores = torch.cat(values)
    layers = tuple(layer_maps(model, layer, seen, freeze) for layer in range(model.n_layers))
    return LocalPass(inputs, leaves, scores, reads[0], freeze, layers)


NORMS = {
    "before_attn": "ln1",
    "after_attn": "ln1_post",
    "before_mlp": "ln2",
    "after_mlp": "ln2_post",
}
"""TransformerLens' names of a layer's norms."""


def watched(model: SplicedModel) -> list[str]:
    """The hook points that the maps are made from."""
    norms = [f"{name}.hook_in" for name in model.family.norms_of(model.bridge.original_model)]
    inside = ("attn.hook_pattern", "mlp.gate.hook_out", "mlp.in.hook_out")
    return norms + [f"blocks.{n}.{point}" for n in range(model.n_layers) for point in inside]


def layer_maps(
    model: SplicedModel, layer: int, seen: Mapping[str, Tensor], freeze: Freeze
) -> LayerMaps:
    """The maps of one layer, from what a pass has `seen [pos, ...]` at the points `watched`."""
    family, huggingface, block = model.family, model.bridge.original_model, f"blocks.{layer}"
    mlp, weight = family.mlp_of(huggingface, layer), partial(family.weight, huggingface)
    modules = family.norms_of(huggingface)
    norms: dict[str, NormMap | None] = dict.fromkeys(NORMS)
    for place, name in NORMS.items():
        if norm := modules.get(f"{block}.{name}"):
            x = seen[f"{block}.{name}.hook_in"]
            live = None if freeze.norms else x.float()
            norms[place] = NormMap(family.scale(norm, x), family.gain(norm), live)
    site = Site(layer, "transcoder")
    summary = model.dictionaries.summary(site) if site in model.dictionaries else None
    has_skip = summary is not None and summary.has_skip
    return LayerMaps(
        attention=AttentionMap.of(
            seen[f"{block}.attn.hook_pattern"],
            weight(family.attn_values, layer),
            weight(family.attn_out, layer),
        ),
        mlp=MlpMap(
            freeze.mlp,
            mlp.act_fn,
            seen[f"{block}.mlp.gate.hook_out"],
            seen[f"{block}.mlp.in.hook_out"],
            mlp.gate_proj.weight,
            mlp.up_proj.weight,
            mlp.down_proj.weight,
            freeze.points,
            freeze.start.get(layer),
        ),
        W_skip=model.dictionaries[site].W_skip if has_skip else None,
        reads_residual=summary is not None and summary.reads_residual,
        **norms,  # pyright: ignore[reportArgumentType]
    )
