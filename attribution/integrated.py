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
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from attribution.effects import Effects, site_effects
from attribution.gradients import check_batch_size, gradients
from attribution.metrics import BoundMetric, Metric, Score, Targets, bind, metric_name
from circuits import (
    ErrorNode,
    LatentNode,
    Prompt,
    Reference,
    Site,
    SplicedModel,
    Trace,
    zero_reference,
)
from circuits.active import Active, write_active
from circuits.cross_layer import Carried
from circuits.interventions import check_nodes
from circuits.memory import halving, parse_bytes
from circuits.reference import check_reference
from circuits.whole_numbers import whole_number

ROWS = 64
"""Of one pass, if nobody says how many."""


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
        reference: The baseline; zero by default. Decoder biases stay (against zero their effect is
            given by the mean gradient, and is not part of the sum above), and so does what a
            skip connection writes.

    Raises:
        UserError: `n` below 1, an unknown convention, or a metric that gives no gradient.
    """
    n = whole_number("n", n)
    ids = model.tokens(prompt)
    score = bind(metric, model)
    reference = reference or zero_reference(model, prompt)
    check_reference(model, reference, ids)
    reads = model.reads(ids)
    embedding, inputs, outputs = model.activations(ids)
    trace = model.trace(prompt)
    held = _errors(trace) if downstream == "freeze" else None
    alphas = _midpoints(n, embedding)
    batch = ids.expand(n, -1)
    clean = gradients(model, ids, score, downstream=downstream)
    sites, decoded = {}, Carried()
    for site in tqdm(model.sites, desc="integrated gradients", unit="site", disable=None, delay=1):
        changes = _site_changes(model, site, trace, reference)
        shift = {there: (alphas - 1) * change for there, change in changes.items()}
        result = gradients(
            model, batch, score, downstream=downstream, shift=shift, clean_errors=held
        )
        sites[site] = site_effects(
            model,
            site,
            inputs[site][0],
            outputs[site][0],
            {there: result.grads[there].float().mean(0) for there in changes},
            decoded,
            reads,
            reference,
            downstream,
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
    batch_size: int | None = None,
    memory: str | int | None = None,
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
        batch_size: Rows of one pass at most, 64 by default; every node takes `n` of them, which may
            be spread over several passes. A pass for which there is no memory is halved.
        memory: What a pass may take, such as `2GB`; it then has fewer rows if need be. Found out by
            a pass of one row.

    Raises:
        UserError: as `integrated_effects`, or a node at a site that is not spliced.
    """
    n = whole_number("n", n)
    check_batch_size(batch_size)
    ids = model.tokens(prompt)
    score = bind(metric, model)
    reference = reference or zero_reference(model, prompt)
    check_reference(model, reference, ids)
    check_nodes(model, ids, nodes)
    trace = model.trace(prompt)
    held = _errors(trace) if downstream == "freeze" else None
    how = {"downstream": downstream, "clean_errors": held}
    size = batch_size or ROWS
    if memory is not None:
        size = min(size, max(1, parse_bytes(memory) // _bytes_of_a_row(model, ids, score, how)))

    def run(rows: Tensor) -> Tensor:
        """Each row's part of its node's effect, `[k]`; row `i n + j` is point j of node i."""
        own, place = (rows // n).unique(return_inverse=True)
        each = [_change(model, nodes[i], trace, reference) for i in own.tolist()]
        changes = {s: torch.stack([one[s] for one in each])[place] for s in each[0]}
        alphas = (((rows % n) + 0.5) / n)[:, None, None].to(trace.embedding)
        shift = {s: (alphas - 1) * change for s, change in changes.items()}
        grads = gradients(model, ids.expand(len(rows), -1), score, shift=shift, **how).grads
        along = [(grads[s].float() * change.float()).sum((1, 2)) for s, change in changes.items()]
        return torch.stack(along).sum(0) / n

    effects = torch.zeros(len(nodes), device=ids.device)
    bar = tqdm(total=n * len(nodes), desc="integrated gradients", unit="row", disable=None, delay=1)
    for site in model.sites:
        own = torch.tensor(
            [i for i, node in enumerate(nodes) if node.site == site], dtype=torch.long
        )
        rows = (own[:, None] * n + torch.arange(n)).flatten()
        for batch in rows.split(size) if len(rows) else ():
            for part, found in halving(run, batch):
                effects.index_add_(0, (part // n).to(effects.device), found)
                bar.update(len(part))
    bar.close()
    return effects


def _bytes_of_a_row(
    model: SplicedModel, ids: Tensor, score: BoundMetric, how: dict[str, Any]
) -> int:
    """What a pass takes for each of its rows: found out by one of a single row.

    That is what autograd keeps for the way back (but for the model's own parameters), what is
    returned, twice for what is added to it, and with `freeze` the dense activations of a site: as
    they come, before and after the threshold.
    """
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = gradients(model, ids, score, **how)
    for parameter in model.bridge.original_model.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    tensors = [t for side in (found.inputs, found.outputs, found.grads) for t in side.values()]
    dense = 0
    if how["downstream"] == "freeze":
        dense = 3 * 4 * ids.shape[1] * max(model.dictionaries.summary(s).d_sae for s in model.sites)
    return sum(kept.values()) + 2 * sum(tensor.nbytes for tensor in tensors) + dense


def _midpoints(n: int, like: Tensor) -> Tensor:
    """`(k - 1/2) / n` for k = 1 ... n, `[n, 1, 1]`."""
    return ((torch.arange(n, device=like.device) + 0.5) / n)[:, None, None].to(like.dtype)


def _errors(trace: Trace) -> dict[Site, Tensor]:
    """The clean errors `[1, pos, d_out]`."""
    return {site: here.error[None] for site, here in trace.sites.items()}


def _site_changes(
    model: SplicedModel, site: Site, trace: Trace, reference: Reference
) -> dict[Site, Tensor]:
    """What outputs `[pos, d_out]` lose when a site's latents and errors go to the reference."""
    here = trace.sites[site]
    latents = Active.of(here.dense() - reference.acts(site))
    layers = zip(model.writes_to(site), model.dictionaries[site].decoders, strict=True)
    changes = {there: write_active(W_dec, latents, len(here.error))[0] for there, W_dec in layers}
    changes[site] += here.error - reference.error(site)
    return changes


def _change(
    model: SplicedModel, node: LatentNode | ErrorNode, trace: Trace, reference: Reference
) -> dict[Site, Tensor]:
    """What outputs `[pos, d_out]` lose when the node goes to the reference."""
    difference = Reference("clean", trace).value(node) - reference.value(node)
    changes = {}
    for n, there in enumerate(model.writes_to(node.site)):
        change = changes[there] = torch.zeros_like(trace.sites[there].error)
        if isinstance(node, LatentNode):
            W_dec = model.dictionaries[node.site].decoders[n]
            change[node.pos] = (difference * W_dec[node.latent]).to(change.dtype)
        elif there == node.site:
            change[node.pos] = difference.to(change.dtype)
    return changes
