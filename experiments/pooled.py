"""Effects on many prompts of the same nodes: a latent at a named span, pooled over its positions.

1. *Attributed*: an estimator's effects of every latent and error of each prompt, summed over the
   positions of each span.
2. *Measured*: what the metric loses when a node is ablated, at all positions of its span at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from tqdm import tqdm

from attribution.effects import Effects, total_effects
from attribution.gradients import check_batch_size
from attribution.metrics import Metric, Score, Targets, bind
from circuits import Intervention, Prompt, Reference, SplicedModel, UserError
from circuits.reference import average
from experiments.changes import changes_to
from experiments.kinds import AblationKind
from experiments.measure import measure
from experiments.node_codes import NodeCodes
from experiments.spans import SpanNode, Spans, check_spans

MetricOf = Callable[[Any], Metric | Targets | Score]
"""From a prompt to its metric: `logit_diff`, or `task.metric`."""

Estimator = Callable[..., Effects]
"""`total_effects`, `integrated_effects`, or another with their arguments."""

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class PooledEffects:
    """Attributed effects of every node on every prompt; matrices are `[n_prompts, n_nodes]`.

    Attributes:
        nodes: Every latent that is on somewhere on a prompt or in its reference, and every error.
        effect: In the metric's units; a node that a prompt does not have counts 0.
        change: How far ablating the node moves what its site writes: `|act - baseline| |W_dec|`
            summed over the span; of an error the norm of the difference.
        active: Whether the latent is on, on the clean prompt; 1 for errors.
        values: The metric on each clean prompt, `[n_prompts]`.
        estimator: For tables; so are `downstream` and `reference`, the kind of ablation.
    """

    nodes: tuple[SpanNode, ...]
    effect: sparse.csr_array
    change: sparse.csr_array
    active: sparse.csr_array
    values: Array
    estimator: str
    downstream: str
    reference: str


@dataclass(frozen=True, eq=False)
class MeasuredEffects:
    """Measured effects of chosen nodes; matrices are `[n_prompts, n_nodes]`, float64.

    Attributes:
        nodes: The columns.
        effect: `metric(clean) - metric(ablated)`; over several donors the mean; 0 where the
            ablation changes nothing.
        donor_variance: Sample variance over donors; NaN for kinds with a single reference.
        clean: The metric on each clean prompt, `[n_prompts]`.
        downstream: Convention, for tables; so is `reference`, the kind of ablation.
    """

    nodes: tuple[SpanNode, ...]
    effect: Array
    donor_variance: Array
    clean: Array
    downstream: str
    reference: str


def pooled_effects(
    model: SplicedModel,
    prompts: Sequence[Prompt],
    spans: Spans,
    metric: MetricOf,
    kind: AblationKind,
    *,
    estimator: Estimator = total_effects,
    downstream: str = "recompute",
) -> PooledEffects:
    """Effects of every latent and error by span, attributed by `estimator`.

    Against several donors the baseline is their mean, of which gradient x activation gives the
    mean over donors.

    Raises:
        UserError: spans of other prompts, or an estimator that is no function.
    """
    check_spans(spans, prompts)
    if not callable(estimator):
        raise UserError(
            f"estimator={estimator!r}; give a function: total_effects, integrated_effects, ..."
        )
    space = NodeCodes.of(model, spans)
    rows: list[tuple[Array, ...]] = []
    values, name = [], ""
    for i, prompt in enumerate(tqdm(prompts, "attributing", unit="prompt", disable=None, delay=1)):
        reference = baseline(kind, model, prompt)
        effects = estimator(
            model, prompt, metric(prompt), downstream=downstream, reference=reference
        )
        reads = model.reads(model.tokens(prompt))[0]
        rows.append(_row(model, space, spans, i, effects, reference, reads))
        values.append(effects.value)
        name = effects.estimator
    every = np.unique(np.concatenate([codes for codes, *_ in rows]))
    matrices = [_matrix(every, [(row[0], row[k]) for row in rows]) for k in (1, 2, 3)]
    return PooledEffects(
        nodes=tuple(space.node(code) for code in every.tolist()),
        effect=matrices[0],
        change=matrices[1],
        active=matrices[2],
        values=np.array(values),
        estimator=name,
        downstream=downstream,
        reference=kind.name,
    )


def baseline(kind: AblationKind, model: SplicedModel, prompt: str | Prompt) -> Reference:
    """The one reference that effects are attributed against; of several donors the mean."""
    references = kind.references(model, prompt)
    return references[0] if len(references) == 1 else average(references, name=kind.name)


def measured_effects(
    model: SplicedModel,
    prompts: Sequence[Prompt],
    spans: Spans,
    metric: MetricOf,
    nodes: Sequence[SpanNode],
    kind: AblationKind,
    *,
    downstream: str = "recompute",
    batch_size: int | None = None,
    memory: str | int | None = None,
) -> MeasuredEffects:
    """Ablate each of `nodes` alone on every prompt, at all positions of its span at once."""
    (found,) = measured_by_kind(
        model, prompts, spans, metric, nodes, [kind],
        downstream=downstream, batch_size=batch_size, memory=memory,
    )  # fmt: skip
    return found


def measured_by_kind(
    model: SplicedModel,
    prompts: Sequence[Prompt],
    spans: Spans,
    metric: MetricOf,
    nodes: Sequence[SpanNode],
    kinds: Sequence[AblationKind],
    *,
    downstream: str = "recompute",
    batch_size: int | None = None,
    memory: str | int | None = None,
) -> list[MeasuredEffects]:
    """As `measured_effects`, by each of `kinds`; a prompt's clean values are computed once."""
    check_batch_size(batch_size)
    check_spans(spans, prompts)
    shape = len(kinds), len(prompts), len(nodes)
    effect, variance = np.zeros(shape), np.full(shape, np.nan)
    clean = np.zeros(len(prompts))
    how = {"downstream": downstream, "batch_size": batch_size, "memory": memory}
    for i, prompt in enumerate(tqdm(prompts, "ablating", unit="prompt", disable=None, delay=1)):
        here = Reference("clean", model.trace(prompt))
        (reads,) = model.reads(model.tokens(prompt)).tolist()
        members = [[one for one in spans.nodes(node, i) if reads[one.pos]] for node in nodes]
        donors = [kind.references(model, prompt) for kind in kinds]
        rows = [
            changes
            for reference in chain.from_iterable(donors)
            for changes in changes_to(here, reference, members)
        ]
        clean[i], lost = _lost(model, prompt, metric, rows, how)
        ends = np.cumsum([len(references) for references in donors])
        every = lost.reshape(ends[-1], len(nodes))  # all donors of all kinds
        for k, own in enumerate(np.split(every, ends[:-1])):
            effect[k, i] = own.mean(0)
            if len(own) > 1:
                variance[k, i] = own.var(0, ddof=1)
    return [
        MeasuredEffects(tuple(nodes), effect[k], variance[k], clean, downstream, kind.name)
        for k, kind in enumerate(kinds)
    ]


def _lost(
    model: SplicedModel,
    prompt: Prompt,
    metric: MetricOf,
    rows: Sequence[Sequence[Intervention]],
    how: dict[str, Any],
) -> tuple[float, Array]:
    """The clean metric, and what each of `rows` takes from it, `[n]`; 0 where nothing changes."""
    changing = [row for row, changes in enumerate(rows) if changes]
    score = bind(metric(prompt), model)
    clean, values = measure(model, model.tokens(prompt), score, [rows[r] for r in changing], **how)
    lost = np.zeros(len(rows))
    lost[changing] = clean - values.double().numpy()
    return clean, lost


def metric_of_name(metric: MetricOf) -> str:
    """The name of a function from a prompt to its metric; of a task's, `ioi metric`."""
    name = getattr(metric, "__name__", type(metric).__name__)
    owner = getattr(getattr(metric, "__self__", None), "name", None)
    return f"{owner} {name}" if owner else name


def pairs_of(prompts: Sequence[str | Prompt]) -> Array:
    """A number for each prompt, the same for prompts made of the same two texts, `[n]`.

    A pair and its reverse are one witness. Pairs with *one* text in common count as two, though
    what is particular to that text is in both: draws of a task may be joined into one group by such
    texts, which would leave nothing to resample. Where many pairs share a text, intervals are too
    narrow and p too small; give pairs of which no two do.
    """
    keys = [frozenset((p.text, p.corrupted) if isinstance(p, Prompt) else (p,)) for p in prompts]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys])


def _row(
    model: SplicedModel,
    space: NodeCodes,
    spans: Spans,
    i: int,
    effects: Effects,
    reference: Reference,
    reads: Tensor,
) -> tuple[Array, ...]:
    """One prompt's codes, ascending, and for each its effect, its change and whether it is on.

    Errors count where dictionaries read, `reads [pos]`: elsewhere they are all that is written.
    """
    n_pos = len(effects.token_effect)
    span = space.spans_at(spans, i, n_pos)
    codes, terms = [], []
    for site, e in effects.sites.items():
        pos, latent = e.pos.cpu().numpy(), e.latent.cpu().numpy()
        norms = model.dictionaries[site].W_dec[e.latent].float().norm(dim=1)
        other = reference.trace.sites[site].at(e.pos, e.latent)
        change = (e.acts - other.float()).abs() * norms
        kept = span[pos] >= 0
        codes.append(space.codes(site, span[pos], latent)[kept])
        columns = (e.effect, change, e.acts != 0)
        terms.append(np.stack([_numbers(x) for x in columns])[:, kept])

        error_change = (e.error - reference.error(site).float()).norm(dim=1)
        kept = (span >= 0) & reads.cpu().numpy()
        codes.append(space.codes(site, span, None)[kept])
        columns = (e.error_effect, error_change, torch.ones(n_pos))
        terms.append(np.stack([_numbers(x) for x in columns])[:, kept])
    found, place = np.unique(np.concatenate(codes), return_inverse=True)
    effect, change, active = np.concatenate(terms, axis=1)
    sums = [np.bincount(place, x, len(found)) for x in (effect, change, active)]
    return found, sums[0], sums[1], (sums[2] > 0).astype(np.float64)


def _numbers(x: Tensor) -> Array:
    return x.double().cpu().numpy()


def _matrix(every: Array, rows: Sequence[tuple[Array, Array]]) -> sparse.csr_array:
    """Rows of codes and values as one matrix with the ascending codes `every` as columns."""
    columns = [np.searchsorted(every, codes) for codes, _ in rows]
    starts = np.cumsum([0, *map(len, columns)])
    values = np.concatenate([values for _, values in rows])
    shape = len(rows), len(every)
    return sparse.csr_array((values, np.concatenate(columns), starts), shape=shape)
