"""The effect of each latent over many prompts, with the statistics that a reviewer asks for.

1. *Screen*: latents by the larger of mean |gradient x activation| and mean |joint integrated
   gradients|: the second also sees latents that an ablation switches on through a gate.
2. *Measure*: each of them ablated alone on every prompt.
3. *Controls*: for each, random latents of the same site and span whose ablation moves what the site
   writes about as much.
4. *Statistics*: intervals of the mean by resampling prompt pairs, paired sign-flip permutations,
   false discovery rate over all latents tested.
5. *Held out*: the same latents on prompts that had no part in choosing them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from attribution import integrated_effects, logit_diff
from attribution.metrics import bind
from circuits import Prompt, SplicedModel, UserError
from experiments.checks import check_prompts
from experiments.datasets.pairs import shared_texts
from experiments.kinds import AblationKind, patch
from experiments.latent_table_plot import table_figure
from experiments.pooled import (
    MeasuredEffects,
    MetricOf,
    PooledEffects,
    measured_effects,
    metric_of_name,
    pairs_of,
    pooled_effects,
)
from experiments.records import record_prompts
from experiments.results import Result
from experiments.spans import SpanNode, Spans, aligned
from experiments.statistics import (
    benjamini_hochberg,
    cluster_interval,
    percentile_among,
    sign_flip_p,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Array = np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class AblationTable(Result):
    """A row a latent, the largest mean effect first.

    Columns of `frame()`, effects in the metric's units:

    - `mean`, `low`, `high`: what the metric loses, and the 95 % interval of the mean.
    - `share`: `mean` over the behaviour, which is the mean of `m(clean) - m(corrupted)`; where
      prompts have no partner, of `m(clean)` (`share_of` says which).
    - `attributed`: the mean by gradient x activation; `integrated`: by joint integrated gradients.
    - `firing`: share of prompts where the latent is on.
    - `p`, `q`: two-sided, of a mean of zero; q is corrected for all latents tested.
    - `percentile`: share of the matched random latents with a smaller |mean|.
    - `donor_sd`: root mean variance over donors, of kinds with several.
    - `heldout_mean`, `heldout_low`, `heldout_high`, `heldout_p`: on the held-out prompts;
      `confirmed`: the same sign there and p at most 0.05.

    Attributes:
        nodes: The latents, in the order of the rows.
        effects: Measured on each prompt, `[n_prompts, n_nodes]`.
        table: The columns above.
        n_prompts: How many prompts; `n_heldout` of the held-out ones.
        conventions: Metric, kind of ablation and the convention downstream.
        provenance: Everything that the numbers depend on.
    """

    kind: ClassVar[str] = "ablation table"
    shown: ClassVar[tuple[str, ...]] = (
        "node", "mean", "low", "high", "share", "attributed", "integrated", "firing", "q",
        "percentile", "heldout_mean", "confirmed",
    )  # fmt: skip

    nodes: tuple[SpanNode, ...]
    effects: Array
    table: DataFrame
    n_prompts: int
    n_heldout: int
    conventions: dict[str, str]
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        told = ", ".join(f"{key} {value}" for key, value in self.conventions.items())
        return f"AblationTable({len(self.nodes)} latents on {self.n_prompts} prompts; {told})"

    def frame(self) -> DataFrame:
        """One line a latent, with the conventions as columns."""
        return self.table.assign(n_prompts=self.n_prompts, **self.conventions)

    def figure(self) -> Figure:
        """The strongest latents: measured with intervals, attributed, and held out."""
        return table_figure(self)


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
        nodes: The latents to test; by default they are screened.
        max_latents: How many are screened; None tests all that are on anywhere.
        kind: What latents are set to; `patch()` by default.
        downstream: What errors downstream do, in attribution and in ablation: `recompute` or
            `freeze`.
        n_controls: Matched random latents for each; 0 for none.
        n_bootstrap, n_permutations: Of the intervals and of p.
        seed: Of everything random.
        batch_size, memory: Of one pass of ablations; see `experiments.measure`.

    Raises:
        UserError: no prompts, prompts of several lengths without spans, held-out prompts that are
            among the prompts, or what `measure` refuses.
    """
    kind = kind or patch()
    _check(prompts, heldout)
    spans = spans or aligned(model, prompts)
    how = {"kind": kind, "downstream": downstream}
    fast = {**how, "batch_size": batch_size, "memory": memory}
    gradient = pooled_effects(model, prompts, spans, metric, **how)
    integrated = pooled_effects(model, prompts, spans, metric, estimator=integrated_effects, **how)
    if nodes is None:
        chosen = [gradient.nodes[i] for i in screen(gradient, integrated)[:max_latents].tolist()]
    else:
        chosen = list(nodes)
    at = columns_of(gradient, chosen)
    measured = measured_effects(model, prompts, spans, metric, chosen, **fast)
    matched = matched_controls(gradient, at, n_controls, seed)
    others = np.unique(np.concatenate([at[:0], *matched]))
    control_nodes = [gradient.nodes[i] for i in others.tolist()]
    controls = measured_effects(model, prompts, spans, metric, control_nodes, **fast)
    again = None
    if len(heldout):
        there = heldout_spans or aligned(model, heldout)
        again = measured_effects(model, heldout, there, metric, chosen, **fast)

    clusters, draws = pairs_of(prompts), {"n_bootstrap": n_bootstrap, "seed": seed}
    mean = measured.effect.mean(0)
    low, high = cluster_interval(measured.effect, clusters, **draws)
    p = sign_flip_p(measured.effect, clusters, n_permutations=n_permutations, seed=seed)
    behaviour, share_of = _behaviour(model, prompts, metric, measured)
    control_means = np.abs(controls.effect.mean(0))
    columns = {
        "node": [str(node) for node in chosen],
        "mean": mean,
        "low": low,
        "high": high,
        "share": mean / behaviour,
        "share_of": share_of,
        "attributed": _mean_of(gradient, at),
        "integrated": _mean_of(integrated, columns_of(integrated, chosen)),
        "firing": _mean_of(gradient, at, "active"),
        "p": p,
        "q": benjamini_hochberg(p),
        "percentile": [
            percentile_among(abs(value), control_means[np.searchsorted(others, own)])
            for value, own in zip(mean.tolist(), matched, strict=True)
        ],
        "n_controls": [len(own) for own in matched],
        "donor_sd": np.sqrt(measured.donor_variance.mean(0)),
    }
    if again is not None:
        columns |= _held_out(again, pairs_of(heldout), mean, n_permutations, draws)
    conventions = {
        "metric": metric_of_name(metric),
        "reference": kind.name,
        "downstream": downstream,
        "estimator": gradient.estimator,
        "integrated_by": integrated.estimator,
    }
    order = np.argsort(-np.abs(mean), kind="stable")
    import pandas as pd

    return AblationTable(
        nodes=tuple(chosen[i] for i in order),
        effects=measured.effect[:, order],
        table=pd.DataFrame(columns).iloc[order].reset_index(drop=True),
        n_prompts=len(prompts),
        n_heldout=len(heldout),
        conventions=conventions,
        provenance=record_prompts(
            model,
            prompts,
            conventions["metric"],
            {
                **conventions,
                "max_latents": max_latents if nodes is None else None,
                "spans": list(spans.names),
                "n_controls": n_controls,
                "n_bootstrap": n_bootstrap,
                "n_permutations": n_permutations,
                "n_heldout": len(heldout),
            },
            seed=seed,
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


def matched_controls(pooled: PooledEffects, chosen: Array, n: int, seed: int) -> list[Array]:
    """For each column of `chosen`, the columns of up to `n` random latents to compare it with.

    Of the same site and span and not chosen themselves. Where there are more than `n`, they are
    drawn from the `2 n` whose mean change of what the site writes is nearest, on a log scale.
    """
    change = np.log(np.asarray(pooled.change.mean(0)) + 1e-30)
    groups: dict[Any, list[int]] = {}
    for i, node in enumerate(pooled.nodes):
        if node.latent is not None and change[i] > -60:
            groups.setdefault((node.site, node.span), []).append(i)
    taken, rng, matched = set(chosen.tolist()), np.random.default_rng(seed), []
    for i in chosen.tolist():
        if i < 0:  # on nowhere: nothing is like it
            matched.append(chosen[:0])
            continue
        node = pooled.nodes[i]
        others = np.array([j for j in groups.get((node.site, node.span), []) if j not in taken])
        if len(others) > n:
            near = others[np.argsort(np.abs(change[others] - change[i]), kind="stable")[: 2 * n]]
            others = rng.choice(near, size=n, replace=False)
        matched.append(np.sort(others).astype(np.int64))
    return matched


def _held_out(
    again: MeasuredEffects, clusters: Array, mean: Array, n_permutations: int, draws: dict[str, Any]
) -> dict[str, Array]:
    found = again.effect.mean(0)
    low, high = cluster_interval(again.effect, clusters, **draws)
    p = sign_flip_p(again.effect, clusters, n_permutations=n_permutations, seed=draws["seed"])
    confirmed = (np.sign(found) == np.sign(mean)) & (p <= 0.05)
    return {
        "heldout_mean": found,
        "heldout_low": low,
        "heldout_high": high,
        "heldout_p": p,
        "confirmed": confirmed,
    }


def _behaviour(
    model: SplicedModel, prompts: Sequence[Prompt], metric: MetricOf, measured: MeasuredEffects
) -> tuple[float, str]:
    """What effects are shares of: the mean of `m(clean) - m(corrupted)`, or of `m(clean)`."""
    clean = float(measured.clean.mean())
    if any(prompt.corrupted is None for prompt in prompts):
        return clean, "clean"
    without = []
    for prompt in prompts:
        score, partner = bind(metric(prompt), model), prompt.corrupted or ""
        without.append(score(model.run(model.tokens(partner), output=score.output)).item())
    return clean - float(np.mean(without)), "clean - corrupted"


def _mean_of(pooled: PooledEffects, at: Array, what: str = "effect") -> Array:
    """The mean over prompts of some columns; NaN for a column of -1."""
    means = np.asarray(getattr(pooled, what).mean(0))
    return np.where(at < 0, 0.0, means[at])


def columns_of(pooled: PooledEffects, nodes: Sequence[SpanNode]) -> Array:
    """Where `nodes` are among the columns; -1 for one that no prompt has."""
    places = {node: i for i, node in enumerate(pooled.nodes)}
    return np.array([places.get(node, -1) for node in nodes], dtype=np.int64)


def _check(prompts: Sequence[Prompt], heldout: Sequence[Prompt]) -> None:
    check_prompts(prompts)
    shared = shared_texts(prompts, heldout)
    if shared:
        raise UserError(
            f"{len(shared)} of the held-out prompts are among the prompts, the first is "
            f"{min(shared)!r}; hold out other prompts (datasets.without_overlap)"
        )
