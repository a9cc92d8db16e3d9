"""Total effects: how much every active latent and error moves the metric, through every path.

    effect(node) = d metric / d value . (value - baseline)

The estimator is gradient x activation (attribution patching when the baseline is the corrupted
prompt's value). It estimates the effect of ablating *one* node; for a whole site at once see
`attribution.integrated`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from attribution.baseline import integrated_from, unless_zero
from attribution.gradients import gradients
from attribution.metrics import Metric, Score, Targets, bind, check_not_flat, metric_name
from circuits import (
    BiasNode,
    ErrorNode,
    LatentNode,
    Node,
    Prompt,
    Reference,
    Site,
    SplicedModel,
    TokenNode,
    UserError,
    zero_reference,
)
from circuits.active import Active, constant, find_active, write_active
from circuits.cross_layer import Carried
from circuits.freeze import LIVE, Freeze
from circuits.reference import check_reference
from circuits.trace import SiteTrace

GRADIENT_X_ACTIVATION = "gradient x activation"


@dataclass(frozen=True, eq=False, repr=False)
class SiteEffects:
    """One site: every latent active on the prompt or in the reference, and the errors.

    Attributes:
        pos: `[n]`, ascending.
        latent: `[n]`.
        acts: Activations on the prompt, `[n]`; 0 for a latent that only the reference switches on.
        grad: `d metric / d acts`, `[n]`, in the metric's units per unit of activation.
        effect: `grad * (acts - baseline)`, `[n]`, in the metric's units.
        by_layer: `effect` in parts: through what the latents write at their own layer, and at each
            later one that a cross-layer transcoder writes to, `[1 + n_later, n]`.
        error: What the site writes less what is decoded there, `[pos, d_out]`.
        error_effect: `[pos]`.
        bias_effect: Of the decoder's bias, over all positions; with `freeze` also of the encoder's,
            through the active latents (with `recompute` it has none: the error takes up what it
            changes). Against another reference than zero it is 0: a constant has no difference.
        grad_output: The gradient with respect to what the site writes, `[pos, d_out]`.
    """

    pos: Tensor
    latent: Tensor
    acts: Tensor
    grad: Tensor
    effect: Tensor
    by_layer: Tensor
    error: Tensor
    error_effect: Tensor
    bias_effect: float
    grad_output: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Effects:
    """Total effects of every node of one prompt.

    Attributes:
        metric: Its name.
        value: The metric on the clean prompt.
        estimator: How the effects at sites were estimated; to be named wherever they are shown.
        downstream: `recompute` or `freeze`.
        reference: Name of the baseline.
        sites: By site, in the order of the forward pass.
        token_effect: Of the scaled embedding at each position, `[pos]`; always by gradient x
            activation.
    """

    metric: str
    value: float
    estimator: str
    downstream: str
    reference: str
    sites: Mapping[Site, SiteEffects]
    token_effect: Tensor

    def __repr__(self) -> str:
        sites = ", ".join(map(str, self.sites))
        return f"Effects({self.metric} = {self.value:+.4g} by {self.estimator} at {sites})"

    def of(self, node: Node) -> float:
        """The effect of one node; 0 for a latent that is off in the prompt and in the reference."""
        pos = getattr(node, "pos", 0)
        if not 0 <= pos < len(self.token_effect):
            raise UserError(f"{node}: no position {pos}; there are {len(self.token_effect)}")
        if isinstance(node, TokenNode):
            return self.token_effect[node.pos].item()
        if not isinstance(node, LatentNode | ErrorNode | BiasNode) or node.site not in self.sites:
            raise UserError(
                f"{node} has no effect here; sites are {', '.join(map(str, self.sites))}"
            )
        site = self.sites[node.site]
        if isinstance(node, BiasNode):
            return site.bias_effect
        if isinstance(node, ErrorNode):
            return site.error_effect[node.pos].item()
        return site.effect[(site.pos == node.pos) & (site.latent == node.latent)].sum().item()

    def left_out(self, kept: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
        """The effect `[pos]` of each site's errors with that of the latents that they carry.

        Those are the latents that are not among `kept`, a mask `[n]` a site: whatever they write
        somewhere is part of the error there.
        """
        sums = {site: here.error_effect.clone() for site, here in self.sites.items()}
        for site, here in self.sites.items():
            out = ~kept[site]
            for n, effect in enumerate(here.by_layer):
                there = sums[Site(site.layer + n, site.kind)]
                there.index_add_(0, here.pos[out], effect[out])
        return sums

    def strongest(self, top: int | None = None) -> list[LatentNode]:
        """Latents by the size of their effect, strongest first."""
        nodes = [
            LatentNode(site, latent, pos)
            for site, e in self.sites.items()
            for latent, pos in zip(e.latent.tolist(), e.pos.tolist(), strict=True)
        ]
        sizes = torch.cat([e.effect.abs().cpu() for e in self.sites.values()])
        order = sizes.argsort(descending=True, stable=True)[:top]
        return [nodes[i] for i in order.tolist()]


def total_effects(
    model: SplicedModel,
    prompt: str | Prompt,
    metric: Metric | Targets | Score,
    *,
    downstream: str = "recompute",
    reference: Reference | None = None,
    freeze: Freeze = LIVE,
) -> Effects:
    """Gradient x activation of every latent, error, bias and token.

    Needs one forward and one backward pass of the model; dictionaries are then read one at a
    time, and of their decoders only the rows of active latents.

    Args:
        model: The spliced model.
        prompt: One text.
        metric: A `Metric`, several as `Targets` (of which the weighted sum is meant), or a function
            from logits `[batch, pos, vocab]` to `[batch]`.
        downstream: `recompute` (default) predicts ablation in the real model; `freeze` is what
            sums over the paths of the graph.
        reference: The baseline; zero by default.
        freeze: What gradients treat as constant; nothing by default. With the rule `integrated`,
            MLPs are integrated from the reference.

    Raises:
        UserError: an unknown convention, or a metric that gives no gradient.
    """
    check_not_flat(metric)
    ids = model.tokens(prompt)
    reference = reference or zero_reference(model, prompt)
    check_reference(model, reference, ids)
    freeze = integrated_from(model, ids, reference, freeze)
    result = gradients(model, ids, bind(metric, model), downstream=downstream, freeze=freeze)
    reads = model.reads(ids)
    grads = {site: grad[0].float() for site, grad in result.grads.items()}
    decoded = Carried()
    change = result.embedding[0] - reference.trace.embedding
    return Effects(
        metric=metric_name(metric),
        value=result.score.item(),
        estimator=GRADIENT_X_ACTIVATION,
        downstream=downstream,
        reference=reference.name,
        sites={
            site: site_effects(
                model,
                site,
                read[0],
                result.outputs[site][0],
                grads,
                decoded,
                reads,
                reference,
                downstream,
            )
            for site, read in tqdm(
                result.inputs.items(),
                "total effects",
                unit="site",
                disable=None,
                delay=1,
                leave=None,
            )
        },
        token_effect=(result.embedding_grad[0].float() * change.float()).sum(-1),
    )


def site_effects(
    model: SplicedModel,
    site: Site,
    read: Tensor,
    written: Tensor,
    grads: Mapping[Site, Tensor],
    decoded: Carried,
    reads: Tensor,
    reference: Reference,
    downstream: str,
) -> SiteEffects:
    """One site's effects from what it reads and writes, `[pos, d]`.

    What a skip connection writes is no node: it has its effect through the nodes upstream.

    Args:
        model: The spliced model.
        site: Sites come in the order of the forward pass.
        read, written: What it reads and what the model writes there.
        grads: The metric's gradient wherever the site's latents write, `[pos, d]`, float32.
        decoded: What latents of lower layers write there; gains what this site's write above it.
        reads: Where dictionaries read, `[1, pos]`.
        reference: The baseline.
        downstream: `recompute` or `freeze`.
    """
    dictionary, grad = model.dictionaries[site], grads[site]
    latents, off = _with_baseline(
        find_active(dictionary, read, reads[0]), reference.trace.sites[site], dictionary.d_sae
    )
    on = latents.acts.float()
    layers = zip(dictionary.decoders, model.writes_to(site), strict=True)
    writes = [write_active(W_dec, latents, len(read), grads[there]) for W_dec, there in layers]
    (own, _), *later = writes
    fixed = constant(dictionary, read) * reads[0][:, None]
    error = written.float() - decoded.up(site, own, [x for x, _ in later]).float() - fixed.float()
    by_layer = torch.stack([along.float() for _, along in writes])
    latent_grad = by_layer.sum(0)
    bias_effect = (grad[reads[0]] @ dictionary.b_dec.float()).sum()
    if downstream == "freeze":
        bias_effect += (latent_grad * dictionary.b_enc[latents.latent].float())[on != 0].sum()
    if unless_zero(reference) is not None:
        bias_effect *= 0
    return SiteEffects(
        pos=latents.pos,
        latent=latents.latent,
        acts=on,
        grad=latent_grad,
        effect=latent_grad * (on - off),
        by_layer=by_layer * (on - off),
        error=error,
        error_effect=(grad * (error - reference.error(site).float())).sum(-1),
        bias_effect=bias_effect.item(),
        grad_output=grad,
    )


def _with_baseline(active: Active, baseline: SiteTrace, d_sae: int) -> tuple[Active, Tensor]:
    """Latents active on the prompt or in the baseline, and their baseline values `[n]`."""
    here, there = (x.pos * d_sae + x.latent for x in (active, baseline))
    both = torch.cat([here, there]).unique()  # ascending: by position, then by latent
    on, off = (active.acts.new_zeros(len(both)) for _ in range(2))
    on[torch.searchsorted(both, here)] = active.acts
    off[torch.searchsorted(both, there)] = baseline.acts.to(off)
    return Active(both // d_sae, both % d_sae, on), off.float()
