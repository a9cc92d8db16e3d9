"""Integrated gradients: the gradient averaged over the way from the baseline to the value.

    effect(node) = (value - baseline) . mean over k of  d metric / d value  at  value_k,
    value_k = baseline + alpha_k (value - baseline),  alpha_k = (k - 1/2) / n

(Sundararajan et al. 2017, arXiv 1703.01365, by the midpoint rule.)

Two ways lead there, and they answer different questions.

*Joint* (`integrated_effects`): all latents of a site, and its error, go together. The effects of a
site sum to what the metric loses when the whole site is set to the baseline; they are no estimate
of what one latent does alone.

*Per latent* (`integrated_each`): one latent goes, everything else stays. Its effect is what
ablating that one latent does (under `recompute`), at the price of n passes a latent.

Both converge with n where the metric is smooth on the way. It is not where a whole site goes to
zero and a norm reads nothing else (its scale is singular there), nor, with `freeze`, where latents
cross their thresholds: prefer a mean or a corrupted prompt as the baseline of joint effects.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from attribution.effects import Effects, site_effects
from attribution.gradients import check_batch_size, gradients
from attribution.metrics import Metric, Score, Targets, bind, metric_name
from circuits import (
    ErrorNode,
    LatentNode,
    Prompt,
    Reference,
    Site,
    SplicedModel,
    Trace,
    UserError,
    zero_reference,
)
from circuits.interventions import check_nodes
from circuits.reference import check_reference


def integrated_effects(
    model: SplicedModel,
    prompt: str | Prompt,
    metric: Metric | Targets | Score,
    *,
    n: int = 10,
    downstream: str = "recompute",
    reference: Reference | None = None,
) -> Effects:
    """Joint integrated gradients: `n` forward and backward passes a site, batched.

    Args:
        model: The spliced model.
        prompt: One text.
        metric: A `Metric`, `Targets` (their weighted sum), or a function from logits
            `[batch, pos, vocab]` to `[batch]`.
        n: Points on the way (midpoint rule).
        downstream: `recompute` or `freeze`.
        reference: The baseline; zero by default. Decoder biases stay (their effect is given by
            the mean gradient, and is not part of the sum above), and so does what a skip
            connection writes.

    Raises:
        UserError: `n` below 1, an unknown convention, or a metric that gives no gradient.
    """
    _check_points(n)
    ids = model.tokens(prompt)
    score = bind(metric, model)
    reference = reference or zero_reference(model, prompt)
    check_reference(model, reference, ids)
    reads = model.reads(ids)
    embedding, inputs, outputs = model.activations(ids)
    held = model.errors(ids) if downstream == "freeze" else None
    alphas = _midpoints(n, embedding)
    batch = ids.expand(n, -1)
    clean = gradients(model, ids, score, downstream=downstream)
    sites = {}
    for site in tqdm(model.sites, desc="integrated gradients", unit="site", disable=None, delay=1):
        read, written = inputs[site][0], outputs[site][0]
        base = _write(model, reference, site, read, reads)
        way = base + alphas * (written - base)
        result = gradients(
            model, batch, score, downstream=downstream, replace={site: way}, clean_errors=held
        )
        mean_grad = result.grads[site].float().mean(0)
        sites[site] = site_effects(
            model, site, read, written, mean_grad, reads, reference, downstream
        )
    change = embedding[0] - reference.trace.embedding
    return Effects(
        metric=metric_name(metric),
        value=clean.score.item(),
        estimator=f"joint integrated gradients (n={n})",
        downstream=downstream,
        reference=reference.name,
        sites=sites,
        token_effect=(clean.embedding_grad[0].float() * change.float()).sum(-1),
    )


def integrated_each(
    model: SplicedModel,
    prompt: str | Prompt,
    metric: Metric | Targets | Score,
    nodes: Sequence[LatentNode | ErrorNode],
    *,
    n: int = 10,
    downstream: str = "recompute",
    reference: Reference | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Integrated gradients of each of `nodes` alone, `[len(nodes)]`, in the metric's units.

    Args:
        model: The spliced model.
        prompt: One text.
        metric: A `Metric`, `Targets` (their weighted sum), or a function from logits
            `[batch, pos, vocab]` to `[batch]`.
        nodes: Latents or errors.
        n: Points on the way of each node (midpoint rule).
        downstream: `recompute` or `freeze`.
        reference: The baseline; zero by default.
        batch_size: Rows of one pass; every node takes `n` of them.

    Raises:
        UserError: as `integrated_effects`, or a node at a site that is not spliced.
    """
    _check_points(n)
    check_batch_size(batch_size)
    ids = model.tokens(prompt)
    score = bind(metric, model)
    reference = reference or zero_reference(model, prompt)
    check_reference(model, reference, ids)
    check_nodes(model, ids, nodes)
    outputs = model.activations(ids)[2]
    trace = model.trace(prompt)
    errors = {site: here.error[None] for site, here in trace.sites.items()}
    held = errors if downstream == "freeze" else None
    alphas = _midpoints(n, outputs[model.sites[0]])
    effects = torch.zeros(len(nodes), device=ids.device)
    per_pass = max(1, batch_size // n)
    bar = tqdm(total=len(nodes), desc="integrated gradients", unit="node", disable=None, delay=1)
    for site in model.sites:
        indices = [i for i, node in enumerate(nodes) if node.site == site]
        for chunk in (indices[i : i + per_pass] for i in range(0, len(indices), per_pass)):
            changes = torch.stack([_change(model, nodes[i], trace, reference) for i in chunk])
            changes = changes.to(outputs[site].dtype)
            x = outputs[site] - (1 - alphas) * changes[:, None]  # [node, point, pos, d]
            result = gradients(
                model,
                ids.expand(len(chunk) * n, -1),
                score,
                downstream=downstream,
                replace={site: x.flatten(0, 1)},
                clean_errors=held,
            )
            grads = result.grads[site].float().unflatten(0, (len(chunk), n)).mean(1)
            effects[chunk] = (grads * changes.float()).sum((1, 2))
            bar.update(len(chunk))
    bar.close()
    return effects


def _check_points(n: int) -> None:
    if n < 1:
        raise UserError(f"integrated gradients need at least one point; got n={n}")


def _midpoints(n: int, like: Tensor) -> Tensor:
    """`(k - 1/2) / n` for k = 1 ... n, `[n, 1, 1]`."""
    return ((torch.arange(n, device=like.device) + 0.5) / n)[:, None, None].to(like.dtype)


def _write(
    model: SplicedModel, reference: Reference, site: Site, read: Tensor, reads: Tensor
) -> Tensor:
    """What the site writes with its nodes at the reference, `[pos, d_out]`.

    Decoded latents, bias and error, and the skip connection of the clean `read [pos, d_in]`.
    """
    decoded = model.dictionaries[site].decode(reference.acts(site), read) * reads[0][:, None]
    return (decoded + reference.error(site)).to(model.dtype)


def _change(
    model: SplicedModel, node: LatentNode | ErrorNode, trace: Trace, reference: Reference
) -> Tensor:
    """What the site's output loses when the node goes to the reference, `[pos, d_out]`."""
    clean = Reference("clean", trace).value(node)
    change = torch.zeros_like(trace.sites[node.site].error)
    difference = clean - reference.value(node)
    if isinstance(node, LatentNode):
        difference = difference * model.dictionaries[node.site].W_dec[node.latent]
    change[node.pos] = difference.to(change.dtype)
    return change
