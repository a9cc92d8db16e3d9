"""From a prompt to scored nodes and edges.

1. *Total effects*: gradient x activation of every active latent, error, bias and token.
2. *Choice*: the `max_latents` latents with the largest effects, or those that influence the output
   most; the rest stays in its error node.
3. *Direct effects* between the chosen nodes, from tokens to what is explained.
4. *Record* of everything the numbers depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from attribution.baseline import changes_of, integrated_from
from attribution.choice import check_latents, given, influential, strongest, within
from attribution.edges.direct import WORKING_MEMORY, Stretches
from attribution.edges.expectation import Forecast, expected
from attribution.edges.influences import node_influences
from attribution.edges.local_pass import local_pass
from attribution.edges.node_table import NodeTable
from attribution.effects import Effects, total_effects
from attribution.influence import check_share, least_kept
from attribution.metrics import Metric, Score, Targets, bind_all
from attribution.record import record
from circuits import (
    LatentNode,
    Node,
    Prompt,
    Reference,
    Site,
    SplicedModel,
    UserError,
    zero_reference,
)
from circuits.active import Active
from circuits.freeze import LIVE, Freeze
from circuits.gated import POINTS
from circuits.memory import parse_bytes
from circuits.reference import check_reference
from circuits.whole_numbers import number_or_none


@dataclass(frozen=True, eq=False, repr=False)
class Attribution:
    """Nodes and edges of one prompt; tensors are float32 on the CPU, `n` nodes.

    Attributes:
        nodes: In topological order: tokens, then site by site bias, latents, errors; logit nodes
            last. An error node also carries the latents of its site and position that were
            left out, so that sums close.
        acts: A latent's activation, 1 for nodes that are vectors, `[n]`; 0 for a latent that only
            the reference switches on: it is a source, and has no incoming edges.
        changes: What of `acts` effects and edges are of: a latent's activation less that in the
            reference (of zero: `acts`), 1 for nodes that are vectors, `[n]`. An edge over its
            source's change is an edge per unit of activation.
        effects: Total effect on the metric, in its units, `[n]`; of a logit node its value.
        edges: Direct effects, `[target, source]`: on the target latent's pre-activation, or on
            what a logit node stands for. A `scipy.sparse.csr_array` `[n, n]`, float32.
        query_key: With live attention, the part of `edges` that goes through queries and keys, the
            same way; the rest goes through values. `None` where patterns are frozen. It is the
            edges less those with patterns held: of a bfloat16 model, it has the noise of both.
        target_grads: `d metric / d pre-activation` of each latent, the weight of a logit node (1 if
            it is alone), 0 for nodes that are no targets, `[n]`. An edge times this is its share
            of the metric.
        metric_value: The metric on the clean prompt; of several targets their weighted sum.
        words: The prompt's tokens as text.
        provenance: Model, dictionaries, prompt, metric, settings, versions; JSON-able.
        influences: Where `keep_influence` was given, each node's influence on the output through
            all edges, `[n]`, float64: edges are here between those nodes alone that carry this
            share of it, and tokens and logit nodes. `None` where all edges are here.
    """

    nodes: tuple[Node, ...]
    acts: Tensor
    changes: Tensor
    effects: Tensor
    edges: sparse.csr_array
    query_key: sparse.csr_array | None
    target_grads: Tensor
    metric_value: float
    words: tuple[str, ...]
    provenance: dict[str, Any]
    influences: Tensor | None = None

    def __repr__(self) -> str:
        metric = f"{self.provenance['metric']} = {self.metric_value:+.4g}"
        return f"Attribution({metric}: {len(self.nodes):,} nodes, {self.edges.nnz:,} edges)"


def attribute(
    model: SplicedModel,
    prompt: str | Prompt,
    metric: Metric | Targets | Score,
    *,
    max_latents: int | None = 400,
    latents: Sequence[LatentNode] | None = None,
    choose: str = "effect",
    downstream: str = "recompute",
    attention: str = "frozen",
    norms: str = "frozen",
    mlp: str = "jacobian",
    points: int = POINTS,
    reference: Reference | None = None,
    keep_influence: float | None = None,
    memory: str | int | None = None,
) -> Attribution:
    """Score the latents that move `metric`, and the edges between them.

    With `attention="frozen"` edges carry values, not queries and keys (`"live"` they carry both,
    and the part of queries and keys is also given apart); with `norms="frozen"` a norm's scale is a
    constant; an MLP between two sites is made linear by the rule `mlp`. Held, edges are parts of
    the pre-activation they sum to; live, they are derivatives, and foretell better what removing a
    source does. What each choice conserves, and how well it foretells, is in the documentation
    ("What an edge means"). Effects with `downstream="recompute"` leave everything live (they
    predict ablation in the real model); with `"freeze"` they use the edges' settings, so that they
    are what the graph's paths sum to.

    Args:
        model: The spliced model.
        prompt: One text.
        metric: What the graph explains: `logit_diff(prompt)`, `top_logits(model, prompt)`, a
            latent, an attention score, or a function of the logits.
        max_latents: How many latents become nodes; None for all that are active.
        latents: Exactly these become nodes, as far as they are active on the prompt (or in the
            reference), whatever `max_latents`.
        choose: Which `max_latents` they are: those with the largest total `effect`, or those with
            the most `influence` on the output through the edges, found step by step (as
            circuit-tracer does), which takes their edges from all active latents beforehand.
        downstream: Convention of the effects: `recompute` or `freeze`.
        attention: Attention patterns in the edges: `frozen` or `live`.
        norms: Norm scales in the edges: `frozen` or `live`.
        mlp: How MLPs in the edges become linear: `jacobian`, `relp` or `integrated`; see
            `circuits.gated`.
        points: Of `mlp="integrated"`: how many there are on the way from the reference.
        reference: Baseline of effects and edges; zero by default. Against another one a source
            counts by what it adds on the prompt less what it adds there, biases count nothing, and
            latents that are off on the prompt but on in the reference are sources too.
        keep_influence: Store edges only between the nodes that carry this share of the influence
            on the output, 0 to 1; those of others are counted and let go. Then `prune`, with this
            share or a smaller one, gives what it gives of all edges (to float32's rounding), from a
            small part of them: in less time and far less memory where latents are very many.
        memory: What one batch of targets may take besides the edges, for example `"1GB"`; 256 MB
            by default.

    Raises:
        UserError: an option that does not exist, a metric that gives no gradient, `latents` of
            which none is active, or `keep_influence` where edges are not finite.
    """
    check_question(model, prompt)
    if keep_influence is not None:
        check_share("keep_influence", keep_influence)
    max_latents = number_or_none("max_latents", max_latents, "all")
    if choose not in ("effect", "influence"):
        raise UserError(f"choose={choose!r}; choose latents by effect or by influence")
    budget = WORKING_MEMORY if memory is None else parse_bytes(memory)
    freeze = Freeze.of(attention=attention, norms=norms, mlp=mlp, points=points)
    ids = model.tokens(prompt)
    reference = reference or zero_reference(model, prompt)
    check_reference(model, reference, ids)
    freeze = integrated_from(model, ids, reference, freeze)
    if latents is not None:
        check_latents(model, ids, latents)
    effects = total_effects(
        model,
        prompt,
        metric,
        downstream=downstream,
        reference=reference,
        freeze=LIVE if downstream == "recompute" else freeze,
    )
    explained, weights = bind_all(metric, model)
    cut = local_pass(model, ids, explained, freeze)

    def stretches(chosen: Mapping[Site, Tensor]) -> Stretches:
        return Stretches.of(model, node_table(effects, chosen, metric), cut, budget, reference)

    chosen = _choice(effects, latents, choose, max_latents, weights, stretches)
    between = stretches(chosen)
    table, influences, kept = between.table, None, None
    if keep_influence is not None:
        influences = node_influences(between, table.outputs(weights))
        kept = _carriers(table, influences, keep_influence)
        between = between.among(kept)
    edges = between.edges()
    query_key = None
    if not freeze.attention:  # what is left of the edges once patterns are held
        cut_held = local_pass(model, ids, explained, replace(freeze, attention=True))
        held = Stretches.of(model, table, cut_held, budget, reference)
        query_key = edges - (held if kept is None else held.among(kept)).edges()
    asked = {
        "attention": attention,
        "norms": norms,
        "edges": edge_rule(mlp, points),
        "edge_reference": reference.name,
        "max_latents": max_latents if latents is None else None,
        "choose": choose if latents is None else "given",
        **({} if keep_influence is None else {"keep_influence": keep_influence}),
    }
    scores = cut.scores.detach().float().cpu()
    return Attribution(
        nodes=table.nodes(),
        acts=table.acts(),
        changes=changes_of(table, reference),
        effects=torch.cat([_node_effects(effects, chosen), scores]),
        edges=edges,
        query_key=query_key,
        target_grads=torch.cat([_target_grads(effects, chosen), torch.tensor(weights)]),
        metric_value=effects.value,
        words=tuple(model.words(ids[0])),
        provenance=record(model, prompt, effects.metric, _settings(effects, chosen, asked)),
        influences=None if influences is None else torch.from_numpy(influences),
    )


def _carriers(table: NodeTable, influences: np.ndarray, share: float) -> np.ndarray:
    """The nodes that carry a share of all influence, tokens and logit nodes, `[n]`."""
    if not np.isfinite(influences).all():
        raise UserError(
            "edges hold a NaN or an infinity, so that no influence can be told; "
            "check the model's weights and the metric on this prompt"
        )
    kept = influences >= least_kept(influences, share)
    kept[: table.n_pos] = kept[table.logits_at.start :] = True
    return kept


def _choice(
    effects: Effects,
    latents: Sequence[LatentNode] | None,
    choose: str,
    max_latents: int | None,
    weights: Sequence[float],
    stretches: Callable[[Mapping[Site, Tensor]], Stretches],
) -> dict[Site, Tensor]:
    """The latents that become nodes, a mask `[n]` a site; `stretches` gives those of a mask."""
    if latents is not None:
        return given(effects, latents)
    if choose == "influence" and max_latents is not None:
        every = strongest(effects, None)
        return within(every, influential(stretches(every), weights, max_latents))
    return strongest(effects, max_latents)


def _settings(
    effects: Effects, chosen: Mapping[Site, Tensor], asked: Mapping[str, Any]
) -> dict[str, Any]:
    """The conventions of effects, what else was `asked` for, and how many latents there were."""
    return {
        "estimator": effects.estimator,
        "downstream": effects.downstream,
        "reference": effects.reference,
        **asked,
        "latents_active": sum(len(site.pos) for site in effects.sites.values()),
        "latents_chosen": sum(int(mask.sum()) for mask in chosen.values()),
    }


def forecast(
    model: SplicedModel,
    prompt: str | Prompt,
    metric: Metric | Targets | Score,
    *,
    max_latents: int | None = 400,
    attention: str = "frozen",
    norms: str = "frozen",
    mlp: str = "jacobian",
    points: int = POINTS,
    keep_influence: float | None = None,
    memory: str | int | None = None,
) -> Forecast:
    """How long the edges between the strongest latents will take, and how much room.

    From edges to a few targets of each site: right to a factor of two or so. With live attention
    `attribute` computes edges twice, the second time with patterns held; with
    `choose="influence"` it computes those from all active latents first. With `keep_influence` the
    room is that of a batch, to which the edges that are kept will add. Arguments as there.

    Raises:
        UserError: as `attribute`.
    """
    check_question(model, prompt)
    if keep_influence is not None:
        check_share("keep_influence", keep_influence)
    max_latents = number_or_none("max_latents", max_latents, "all")
    budget = WORKING_MEMORY if memory is None else parse_bytes(memory)
    freeze = Freeze.of(attention=attention, norms=norms, mlp=mlp, points=points)
    effects = total_effects(model, prompt, metric)
    table = node_table(effects, strongest(effects, max_latents), metric)
    cut = local_pass(model, model.tokens(prompt), bind_all(metric, model)[0], freeze)
    return expected(Stretches.of(model, table, cut, budget), stored=keep_influence is None)


def edge_rule(mlp: str, points: int) -> str:
    """How edges are made, for records, by the rule for MLPs."""
    names = {"jacobian": "local Jacobian", "relp": "RelP"}
    return names.get(mlp, f"integrated gradients of MLPs (n={points})")


def check_question(model: object, prompt: object) -> None:
    """Refuse what cannot be explained, before anything is computed."""
    if not isinstance(model, SplicedModel):
        raise UserError(f"got {type(model).__name__} as the model; give what load(name) returns")
    if not isinstance(prompt, str | Prompt):
        raise UserError(f"attribute explains one prompt, a text; got {type(prompt).__name__}")


def node_table(
    effects: Effects, chosen: Mapping[Site, Tensor], metric: Metric | Targets | Score
) -> NodeTable:
    """The nodes of a graph: every token, bias and error, the chosen latents, the logit nodes."""
    names = [one.name for one in metric.metrics] if isinstance(metric, Targets) else None
    latents = {
        site: Active(e.pos[chosen[site]], e.latent[chosen[site]], e.acts[chosen[site]])
        for site, e in effects.sites.items()
    }
    return NodeTable.of(len(effects.token_effect), latents, tuple(names or [effects.metric]))


def _node_effects(effects: Effects, chosen: Mapping[Site, Tensor]) -> Tensor:
    """Of every node but the logits `[n]`; latents that were not chosen go into their error node."""
    sums, of_errors = [effects.token_effect], effects.left_out(chosen)
    for site, e in effects.sites.items():
        sums += [torch.tensor([e.bias_effect]), e.effect[chosen[site]], of_errors[site]]
    return torch.cat([part.cpu().float() for part in sums])


def _target_grads(effects: Effects, chosen: Mapping[Site, Tensor]) -> Tensor:
    """Of every node but the logits `[n]`."""
    n_pos = len(effects.token_effect)
    grads = [torch.zeros(n_pos)]
    for site, e in effects.sites.items():
        on = e.acts != 0  # nothing goes on through a latent that is off
        grads += [torch.zeros(1), (e.grad * on)[chosen[site]], torch.zeros(n_pos)]
    return torch.cat([part.cpu().float() for part in grads])
