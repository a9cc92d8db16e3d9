"""The effect of each latent over many prompts, with the statistics that a reviewer asks for.

1. *Screen*: latents by the larger of mean |gradient x activation| and mean |joint integrated
   gradients|: the second also sees latents that an ablation switches on through a gate.
2. *Match* (`controls.py`): for each, random latents of the same site and span whose
   ablation moves what the site writes about as much.
3. *Measure*: each latent and control ablated alone on every prompt.
4. *Tell* how sure that is: intervals of the mean by resampling prompt pairs, paired sign-flip
   permutations, false discovery rate over all latents tested, share of the behaviour
   (`behaviour.py`).
5. *Test again* (`retest.py`): the same latents on prompts that had no part in choosing them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from attribution import integrated_effects, logit_diff
from attribution.bootstrap import checked_draws
from attribution.effects import total_effects
from attribution.gradients import check_batch_size
from circuits import Prompt, SplicedModel
from circuits.whole_numbers import number_or_none, whole_number
from experiments.checks import check_apart, check_prompts, tested_nodes
from experiments.kinds import AblationKind
from experiments.latents.behaviour import Behaviour
from experiments.latents.controls import Controls
from experiments.latents.result import AblationTable
from experiments.latents.retest import retest
from experiments.pooled import (
    Estimator,
    MeasuredEffects,
    MetricOf,
    PooledEffects,
    measured_effects,
    metric_of_name,
    pairs_of,
    pooled_effects,
)
from experiments.records import record_of, record_prompts
from experiments.spans import SpanNode, Spans, aligned, spans_of_others
from experiments.statistics import benjamini_hochberg, cluster_interval, sign_flip_p
from experiments.statistics.permutation import checked_permutations
from experiments.traced import traced_once

Array = np.ndarray

BOOTSTRAP = ("n_bootstrap", "seed")


def ablation_table(
    model: SplicedModel,
    prompts: Sequence[Prompt],
    metric: MetricOf = logit_diff,
    *,
    heldout: Sequence[Prompt] = (),
    spans: Spans | None = None,
    heldout_spans: Spans | None = None,
    nodes: Sequence[SpanNode] | None = None,
    max_latents: int | None = 50,
    kind: AblationKind | None = None,
    downstream: str = "recompute",
    n_controls: int = 20,
    n_bootstrap: int = 1000,
    n_permutations: int = 10_000,
    seed: int = 0,
    batch_size: int | None = None,
    memory: str | int | None = None,
) -> AblationTable:
    """Ablate each latent on every prompt, and say how sure the mean effect is.

    Args:
        model: The spliced model.
        prompts: Prompts with partners (for `patch`).
        metric: From a prompt to its metric.
        heldout: Prompts for the re-test; none by default.
        spans: Which positions of each prompt belong together; by default each position is a span of
            its own, for prompts of one length.
        heldout_spans: Those of the held-out prompts, with the same names.
        nodes: The latents to test, of which each counts once; by default they are screened.
        max_latents: How many are screened; None tests all that anything is attributed to.
        kind: What latents are set to; `patch()` by default.
        downstream: What errors downstream do, in attribution and in ablation: `recompute` or
            `freeze`.
        n_controls: Matched random latents for each; 0 for none.
        n_bootstrap, n_permutations: Of the intervals and of p.
        seed: Of everything random.
        batch_size, memory: Of one pass of ablations; see `experiments.measure`.

    Raises:
        UserError: no prompts, prompts of several lengths without spans, held-out prompts that are
            among the prompts or divided into other spans, nodes that are no latents at spans, or
            what `measure` refuses.
    """
    check_prompts(prompts)
    check_apart(prompts, heldout, "held-out")
    max_latents = number_or_none("max_latents", max_latents, "all")
    n_controls = whole_number("n_controls", n_controls, 0)
    check_batch_size(batch_size)
    n_bootstrap, seed = checked_draws(n_bootstrap, seed)
    n_permutations = checked_permutations(n_permutations)
    nodes = None if nodes is None else tested_nodes(nodes, errors=False)
    spans = spans or aligned(model, prompts)
    heldout_spans = spans_of_others(model, heldout, heldout_spans, spans, "heldout_spans")
    kind = traced_once(kind)  # three passes ask for each prompt's references
    question = _Question(model, metric, kind, downstream, batch_size, memory)
    draws = {"n_bootstrap": n_bootstrap, "n_permutations": n_permutations, "seed": seed}
    screened = _screened(question, prompts, spans, nodes, max_latents)
    controls = Controls.matched(screened.gradient, screened.at, n_controls, seed)
    measured = question.measured(prompts, spans, [*screened.nodes, *controls.further])
    columns, notes = _told(question, prompts, screened, controls, measured, draws)
    if len(heldout):
        again = question.measured(heldout, heldout_spans, screened.nodes)
        held, why = retest(again.effect, columns["mean"], pairs_of(heldout), **draws)
        columns, notes = columns | held, [*notes, *why]
    settings = {
        "max_latents": max_latents if nodes is None else None,
        "spans": list(spans.names),
        "n_controls": n_controls,
        "n_heldout": len(heldout),
        "heldout": record_of(heldout),
        **draws,
        "notes": notes,
    }
    return _table(question, prompts, screened, measured, columns, settings)


@dataclass(frozen=True)
class _Question:
    """What is asked of every prompt; see `ablation_table`."""

    model: SplicedModel
    metric: MetricOf
    kind: AblationKind
    downstream: str
    batch_size: int | None
    memory: str | int | None

    def attributed(
        self, prompts: Sequence[Prompt], spans: Spans, estimator: Estimator
    ) -> PooledEffects:
        return pooled_effects(
            self.model, prompts, spans, self.metric, self.kind,
            estimator=estimator, downstream=self.downstream,
        )  # fmt: skip

    def measured(
        self, prompts: Sequence[Prompt], spans: Spans, nodes: Sequence[SpanNode]
    ) -> MeasuredEffects:
        return measured_effects(
            self.model, prompts, spans, self.metric, nodes, self.kind,
            downstream=self.downstream, batch_size=self.batch_size, memory=self.memory,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Screened:
    """The latents to test, and what both estimators attribute to all.

    Attributes:
        nodes: The latents.
        at: Where they are among the columns of `gradient`, -1 for one that is on nowhere, `[k]`.
    """

    nodes: tuple[SpanNode, ...]
    at: Array
    gradient: PooledEffects
    integrated: PooledEffects


def _screened(
    question: _Question,
    prompts: Sequence[Prompt],
    spans: Spans,
    nodes: Sequence[SpanNode] | None,
    max_latents: int | None,
) -> _Screened:
    """The latents given, or the `max_latents` strongest of either estimator."""
    gradient = question.attributed(prompts, spans, total_effects)
    integrated = question.attributed(prompts, spans, integrated_effects)
    if nodes is None:
        nodes = [gradient.nodes[i] for i in screen(gradient, integrated)[:max_latents].tolist()]
    return _Screened(tuple(nodes), columns_of(gradient, nodes), gradient, integrated)


def _told(
    question: _Question,
    prompts: Sequence[Prompt],
    screened: _Screened,
    controls: Controls,
    measured: MeasuredEffects,
    draws: dict[str, Any],
) -> tuple[dict[str, Any], list[str]]:
    """The columns of the prompts that the latents were found on, and why one of them is missing."""
    k, clusters = len(screened.nodes), pairs_of(prompts)
    effects, bootstrap = measured.effect[:, :k], {key: draws[key] for key in BOOTSTRAP}
    low, high = cluster_interval(effects, clusters, **bootstrap)
    p = sign_flip_p(effects, clusters, n_permutations=draws["n_permutations"], seed=draws["seed"])
    behaviour = Behaviour.of(question.model, prompts, question.metric, measured.clean)
    shares, notes = behaviour.shares(effects, clusters, **bootstrap)
    integrated_at = columns_of(screened.integrated, screened.nodes)
    return {
        "node": [str(node) for node in screened.nodes],
        "mean": effects.mean(0),
        "low": low,
        "high": high,
        **shares,
        "share_of": behaviour.name,
        "attributed": _mean_of(screened.gradient.effect, screened.at),
        "integrated": _mean_of(screened.integrated.effect, integrated_at),
        "firing": _mean_of(screened.gradient.active, screened.at),
        "p": p,
        "q": benjamini_hochberg(p),
        "percentile": controls.percentiles(measured.effect.mean(0)),
        "n_controls": [len(own) for own in controls.of],
        "donor_sd": np.sqrt(measured.donor_variance[:, :k].mean(0)),
    }, notes


def _table(
    question: _Question,
    prompts: Sequence[Prompt],
    screened: _Screened,
    measured: MeasuredEffects,
    columns: dict[str, Any],
    settings: dict[str, Any],
) -> AblationTable:
    """The largest mean effect first."""
    import pandas as pd

    order = np.argsort(-np.abs(columns["mean"]), kind="stable")
    conventions = {
        "metric": metric_of_name(question.metric),
        "reference": question.kind.name,
        "downstream": question.downstream,
        "estimator": screened.gradient.estimator,
        "integrated_by": screened.integrated.estimator,
    }
    told = {key: value for key, value in settings.items() if key != "seed"}
    told["reference_settings"] = question.kind.settings
    return AblationTable(
        nodes=tuple(screened.nodes[i] for i in order),
        effects=measured.effect[:, order],
        table=pd.DataFrame(columns).iloc[order].reset_index(drop=True),
        n_prompts=len(prompts),
        n_heldout=settings["n_heldout"],
        conventions=conventions,
        notes=tuple(settings["notes"]),
        provenance=record_prompts(
            question.model,
            prompts,
            conventions["metric"],
            {**conventions, **told},
            seed=settings["seed"],
        ),
    )


def screen(gradient: PooledEffects, integrated: PooledEffects) -> Array:
    """Columns of `gradient` that are latents, by the larger of the two mean absolute effects."""
    size = np.asarray(abs(gradient.effect).mean(0))
    places = {node: i for i, node in enumerate(gradient.nodes)}
    shared = np.array([places[node] for node in integrated.nodes])
    size[shared] = np.maximum(size[shared], np.asarray(abs(integrated.effect).mean(0)))
    latents = np.array([node.latent is not None for node in gradient.nodes])
    order = np.argsort(-size, kind="stable")
    return order[latents[order] & (size[order] > 0)]


def columns_of(pooled: PooledEffects, nodes: Sequence[SpanNode]) -> Array:
    """Where `nodes` are among the columns; -1 for one that no prompt has."""
    places = {node: i for i, node in enumerate(pooled.nodes)}
    return np.array([places.get(node, -1) for node in nodes], dtype=np.int64)


def _mean_of(values: sparse.csr_array, at: Array) -> Array:
    """The mean over prompts of some columns; 0 for a column of -1."""
    return np.where(at < 0, 0.0, np.asarray(values.mean(0))[at])
