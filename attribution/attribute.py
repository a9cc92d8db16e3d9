"""From a prompt to scored nodes and edges.

1. *Total effects*: gradient x activation of every active latent, error, bias and token.
2. *Choice*: the `max_latents` latents with the largest effects; the rest stays in its error node.
3. *Direct effects* between the chosen nodes, from tokens to the metric.
4. *Record* of everything the numbers depend on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from attribution.edges import direct_effects, local_pass
from attribution.effects import Effects, total_effects
from attribution.gradients import check_batch_size
from attribution.metrics import Metric, Score, bind
from circuits import (
    BiasNode,
    ErrorNode,
    LatentNode,
    LogitNode,
    Node,
    Prompt,
    Reference,
    Site,
    SplicedModel,
    TokenNode,
    UserError,
)
from circuits.freeze import LIVE, Freeze

VERSIONS = ("gemma-circuits", "torch", "transformers", "transformer-lens")
"""Distributions whose versions are recorded."""


@dataclass(frozen=True, eq=False, repr=False)
class Attribution:
    """Nodes and edges of one prompt; all tensors float32 on the CPU, `n` nodes.

    Attributes:
        nodes: In topological order: tokens, then site by site bias, latents, errors; the logit
            node last. An error node also carries the latents of its site and position that were
            left out, so that sums close.
        acts: A latent's activation, 1 for nodes that are vectors, `[n]`.
        effects: Total effect on the metric, in its units, `[n]`; the metric itself for its node.
        edges: Direct effects `[n, n]`, sparse, `[target, source]`: on the target latent's
            pre-activation, or on the metric.
        target_grads: `d metric / d pre-activation` of each latent, 1 for the logit node, 0 for
            nodes that are no targets, `[n]`. An edge times this is its share of the metric.
        metric_value: The metric on the clean prompt.
        words: The prompt's tokens as text.
        provenance: Model, dictionaries, prompt, metric, settings, versions; JSON-able.
    """

    nodes: tuple[Node, ...]
    acts: Tensor
    effects: Tensor
    edges: Tensor
    target_grads: Tensor
    metric_value: float
    words: tuple[str, ...]
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        metric = f"{self.provenance['metric']} = {self.metric_value:+.4g}"
        return f"Attribution({metric}: {len(self.nodes)} nodes, {self.edges._nnz()} edges)"


def attribute(
    model: SplicedModel,
    prompt: str | Prompt,
    metric: Metric | Score,
    *,
    max_latents: int | None = 400,
    downstream: str = "recompute",
    attention: str = "frozen",
    norms: str = "frozen",
    reference: Reference | None = None,
    batch_size: int = 128,
) -> Attribution:
    """Score the latents that move `metric`, and the edges between them.

    Edges are the local Jacobian's. With `attention="frozen"` they carry values, not queries and
    keys; with `norms="frozen"` a norm's scale is a constant; an MLP between two sites is
    linearised at the prompt. Effects with `downstream="recompute"` leave everything live (they
    predict ablation in the real model); with `"freeze"` they use the edges' settings, so that
    they are what the graph's paths sum to.

    Args:
        model: The spliced model.
        prompt: One text.
        metric: What the graph explains: `logit_diff(prompt)`, or a function of the logits.
        max_latents: How many latents become nodes, by the size of their effect; None for all.
        downstream: Convention of the effects: `recompute` or `freeze`.
        attention: Attention patterns in the edges: `frozen` or `live`.
        norms: Norm scales in the edges: `frozen` or `live`.
        reference: Baseline of the effects; zero by default.
        batch_size: Targets of one backward pass; lower it to save memory.

    Raises:
        UserError: an option that does not exist, or a metric that gives no gradient.
    """
    if max_latents is not None and max_latents < 1:
        raise UserError(f"max_latents={max_latents}; a graph needs at least one latent")
    if not isinstance(prompt, str | Prompt):
        raise UserError(f"attribute explains one prompt, a text; got {type(prompt).__name__}")
    check_batch_size(batch_size)
    if isinstance(metric, Metric) and metric.flat_at_clean:
        raise UserError(
            f"{metric.name} has no gradient on the clean run, so nothing can be attributed to it; "
            "measure it with ablate_each, or explain a logit or a log probability"
        )
    ids = model.tokens(prompt)
    freeze = Freeze.of(attention=attention, norms=norms)
    effects = total_effects(
        model,
        prompt,
        metric,
        downstream=downstream,
        reference=reference,
        freeze=LIVE if downstream == "recompute" else freeze,
    )
    chosen = choose(effects, max_latents)
    nodes = _lay_out(effects, chosen)
    cut = local_pass(model, ids, bind(metric, model), freeze)
    edges = direct_effects(model, nodes.nodes, nodes.acts, cut, batch_size=batch_size)
    settings = {
        "estimator": effects.estimator,
        "downstream": downstream,
        "reference": effects.reference,
        "attention": attention,
        "norms": norms,
        "edges": "local Jacobian",
        "max_latents": max_latents,
        "latents_active": sum(int((site.acts != 0).sum()) for site in effects.sites.values()),
        "latents_chosen": sum(int(mask.sum()) for mask in chosen.values()),
    }
    return Attribution(
        nodes=nodes.nodes,
        acts=nodes.acts,
        effects=nodes.effects,
        edges=edges,
        target_grads=nodes.target_grads,
        metric_value=effects.value,
        words=tuple(model.words(ids[0])),
        provenance=record(model, prompt, effects.metric, settings),
    )


def choose(effects: Effects, max_latents: int | None) -> dict[Site, Tensor]:
    """Which of each site's active latents become nodes, `[n]` booleans: the largest effects."""
    active = torch.cat([site.acts != 0 for site in effects.sites.values()])
    sizes = torch.cat([site.effect.abs() for site in effects.sites.values()])
    order = sizes.masked_fill(~active, -1.0).argsort(descending=True, stable=True)
    n_active = int(active.sum())
    kept = torch.zeros_like(active)
    kept[order[: n_active if max_latents is None else min(max_latents, n_active)]] = True
    parts = kept.split([len(site.pos) for site in effects.sites.values()])
    return dict(zip(effects.sites, parts, strict=True))


@dataclass(frozen=True)
class _Nodes:
    """Nodes in topological order with their numbers, as in `Attribution`."""

    nodes: tuple[Node, ...]
    acts: Tensor
    effects: Tensor
    target_grads: Tensor


def _lay_out(effects: Effects, chosen: Mapping[Site, Tensor]) -> _Nodes:
    """Nodes from effects; latents that were not chosen go into their error node."""
    tokens = effects.token_effect
    n_pos = len(tokens)
    nodes: list[Node] = [TokenNode(pos) for pos in range(n_pos)]
    acts, sums, grads = [torch.ones(n_pos)], [tokens], [torch.zeros(n_pos)]
    for site, e in effects.sites.items():
        kept = chosen[site]
        pairs = zip(e.latent[kept].tolist(), e.pos[kept].tolist(), strict=True)
        nodes += [BiasNode(site), *(LatentNode(site, latent, pos) for latent, pos in pairs)]
        nodes += [ErrorNode(site, pos) for pos in range(n_pos)]
        left_out = e.error_effect.index_add(0, e.pos[~kept], e.effect[~kept])
        acts += [torch.ones(1), e.acts[kept], torch.ones(n_pos)]
        sums += [torch.tensor([e.bias_effect]), e.effect[kept], left_out]
        grads += [torch.zeros(1), e.grad[kept], torch.zeros(n_pos)]
    nodes.append(LogitNode(effects.metric))
    acts.append(torch.ones(1))
    sums.append(torch.tensor([effects.value]))
    grads.append(torch.ones(1))
    return _Nodes(
        tuple(nodes), *(torch.cat([p.cpu().float() for p in x]) for x in (acts, sums, grads))
    )


def record(
    model: SplicedModel, prompt: str | Prompt, metric: str, settings: dict[str, Any]
) -> dict[str, Any]:
    """Everything that the numbers depend on, JSON-able."""
    return {
        "model": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "dictionaries": {
            str(site): {"name": d.name, "average_l0": d.average_l0, "d_sae": d.d_sae}
            for site in model.sites
            for d in [model.dictionaries.summary(site)]
        },
        "dictionaries_from": model.dictionaries_from,
        "prompt": asdict(prompt) if isinstance(prompt, Prompt) else {"text": prompt},
        "metric": metric,
        "settings": settings,
        "versions": {name: version(name) for name in VERSIONS},
        "seed": None,  # nothing here is random
    }
