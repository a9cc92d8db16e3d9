"""The circuit of a data set: which nodes matter over many prompts, and how firm that list is.

Nodes are latents at named spans, so that prompts may differ in length. What a mean over prompts
can hide is shown beside it: the mean absolute effect, how far effects cancel, and how often a node
would be in the list if other prompts of the kind had been drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from attribution import logit_diff, total_effects
from attribution.bootstrap import checked_draws
from attribution.gradients import check_batch_size
from circuits import Prompt, SplicedModel, UserError
from circuits.whole_numbers import whole_number
from experiments.checks import check_apart, check_prompts
from experiments.circuit.pooled_circuit_plot import circuit_figure
from experiments.kinds import AblationKind
from experiments.pooled import (
    Estimator,
    MetricOf,
    PooledEffects,
    measured_effects,
    metric_of_name,
    pairs_of,
    pooled_effects,
)
from experiments.records import record_of, record_prompts
from experiments.results import Result
from experiments.spans import SpanNode, Spans, aligned, spans_of_others
from experiments.statistics import (
    TopK,
    cancellation,
    cluster_interval,
    mean_absolute,
    top_k_inclusion,
)
from experiments.statistics.contenders import contenders
from experiments.traced import traced_once

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Array = np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class DatasetCircuit(Result):
    """A row a node of the circuit, the largest |mean| first.

    Columns of `frame()`, effects in the metric's units, attributed where nothing else is said:

    - `measured`: mean effect of ablating the node, on the same prompts.
    - `mean`: signed mean over prompts; `unadjusted_low`, `unadjusted_high`: its 95 % interval by
      prompt pairs, *unadjusted for selection*.
    - `mean_abs`, `cancellation`: 0 where all effects have one sign, 1 where nothing is left.
    - `firing`: share of prompts where the latent is on (1 for errors).
    - `inclusion`: share of bootstrap replicates with the node among the first k.
    - `test_mean`, `test_low`, `test_high`: the mean on the test prompts, which had no part in
      choosing the nodes, and its 95 % interval; only with test prompts.

    Nodes are chosen for being large on the prompts, so what is computed on the same prompts
    (`mean`, `measured`, the unadjusted interval) makes them look larger than they are. In
    simulations of 500 nodes without any effect on 20 prompts, nine in ten unadjusted intervals of
    the first 10 excluded zero, and one in twenty of the test intervals. Report the latter.

    Attributes:
        nodes: The k nodes, for `faithfulness_curve(model, test, metric, circuit.nodes)`.
        table: The columns above.
        stability: Of the list under resampling of prompt pairs; its columns are `nodes`.
        test_jaccard: Of the first k on the prompts and on the test prompts; NaN without any.
        n_prompts, n_test: How many prompts.
        conventions: Metric, estimator, kind of ablation, downstream.
        provenance: Everything that the numbers depend on.
    """

    kind: ClassVar[str] = "dataset circuit"
    shown: ClassVar[tuple[str, ...]] = (
        "node", "mean", "measured", "unadjusted_low", "unadjusted_high", "mean_abs",
        "cancellation", "firing", "inclusion", "test_mean", "test_low", "test_high",
    )  # fmt: skip

    nodes: tuple[SpanNode, ...]
    table: DataFrame
    stability: TopK
    test_jaccard: float
    n_prompts: int
    n_test: int
    conventions: dict[str, str]
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        s = self.stability
        test = f", {self.test_jaccard:.2f} with the test prompts'" if self.n_test else ""
        return (
            f"DatasetCircuit({len(self.nodes)} nodes on {self.n_prompts} prompts of "
            f"{self.conventions['metric']}; Jaccard index under resampling {s.jaccard:.2f} "
            f"({s.jaccard_low:.2f} to {s.jaccard_high:.2f}){test})"
        )

    def frame(self) -> DataFrame:
        """One line a node, with the conventions as columns."""
        return self.table.assign(n_prompts=self.n_prompts, **self.conventions)

    def figure(self) -> Figure:
        """Mean effect by span: one mark a node, as large as it is firm."""
        return circuit_figure(self)


def dataset_circuit(
    model: SplicedModel,
    prompts: Sequence[Prompt],
    metric: MetricOf = logit_diff,
    *,
    spans: Spans | None = None,
    test: Sequence[Prompt] = (),
    test_spans: Spans | None = None,
    k: int = 50,
    errors: bool = False,
    kind: AblationKind | None = None,
    estimator: Estimator = total_effects,
    downstream: str = "recompute",
    n_bootstrap: int = 1000,
    seed: int = 0,
    batch_size: int | None = None,
    memory: str | int | None = None,
) -> DatasetCircuit:
    """The k nodes with the largest mean effect over prompts, and how firm they are.

    Args:
        model: The spliced model.
        prompts: The prompts that the circuit is found on.
        metric: From a prompt to its metric.
        spans: Which positions of each prompt belong together; by default each position is a span.
        test: Other prompts, for means and intervals that owe nothing to the choice of nodes. Where
            one of them is among `prompts` this is refused.
        test_spans: Of the test prompts, with the same names.
        k: Nodes of the circuit.
        errors: Whether error nodes compete.
        kind: What effects are against; `patch()` by default.
        estimator: `total_effects`, `integrated_effects`, ...
        downstream: `recompute` or `freeze`.
        n_bootstrap, seed: Of intervals and inclusion.
        batch_size, memory: Of one pass of ablations; see `experiments.measure`.

    Raises:
        UserError: train and test overlap or are divided into other spans, no more than k nodes, or
            what the parts refuse.
    """
    check_prompts(prompts)
    check_apart(prompts, test, "test")
    check_batch_size(batch_size)
    n_bootstrap, seed = checked_draws(n_bootstrap, seed)
    k = whole_number("k", k)
    kind = traced_once(kind)
    spans = spans or aligned(model, prompts)
    test_spans = spans_of_others(model, test, test_spans, spans, "test_spans")
    how = {"kind": kind, "estimator": estimator, "downstream": downstream}
    draws = {"n_bootstrap": n_bootstrap, "seed": seed}
    pooled = pooled_effects(model, prompts, spans, metric, **how)
    nodes, table, stability = _choose(pooled, pairs_of(prompts), k, errors, draws)
    measured = measured_effects(
        model, prompts, spans, metric, nodes, kind,
        downstream=downstream, batch_size=batch_size, memory=memory,
    )  # fmt: skip
    table, jaccard = table.assign(measured=measured.effect.mean(0)), np.nan
    if len(test):
        there = pooled_effects(model, test, test_spans, metric, **how)
        table = table.assign(**_again(there, nodes, pairs_of(test), draws))
        jaccard = _jaccard(there, nodes, errors)
    conventions = {
        "metric": metric_of_name(metric),
        "estimator": pooled.estimator,
        "reference": kind.name,
        "downstream": downstream,
    }
    settings = {**conventions, "k": k, "errors": errors, "n_test": len(test)}
    settings |= {"test": record_of(test), "reference_settings": kind.settings}
    settings |= {"spans": list(spans.names), "n_bootstrap": n_bootstrap}
    return DatasetCircuit(
        nodes=nodes,
        table=table,
        stability=stability,
        test_jaccard=jaccard,
        n_prompts=len(prompts),
        n_test=len(test),
        conventions=conventions,
        provenance=record_prompts(model, prompts, conventions["metric"], settings, seed=seed),
    )


def _choose(
    pooled: PooledEffects, clusters: Array, k: int, errors: bool, draws: dict[str, Any]
) -> tuple[tuple[SpanNode, ...], DataFrame, TopK]:
    """The first k nodes, what they do on the prompts they are chosen on, and how firm they are."""
    import pandas as pd

    columns = _competing(pooled, errors)
    if k >= len(columns):
        raise UserError(
            f"k={k} (--size) of {len(columns)} nodes that compete; give less, so that there are "
            "others to choose them from"
        )
    columns = columns[contenders(pooled.effect[:, columns], clusters, k_top=k, **draws)]
    values = pooled.effect[:, columns].toarray()
    firm = top_k_inclusion(values, clusters, k_top=k, **draws)
    first = np.argsort(-np.abs(values.mean(0)), kind="stable")[:k]
    firm = replace(firm, full=firm.full[first], inclusion=firm.inclusion[first])
    values, chosen = values[:, first], columns[first]
    nodes = tuple(pooled.nodes[i] for i in chosen.tolist())
    low, high = cluster_interval(values, clusters, **draws)
    table = {
        "node": [str(node) for node in nodes],
        "span": [node.span for node in nodes],
        "mean": values.mean(0),
        "unadjusted_low": low,
        "unadjusted_high": high,
        "mean_abs": mean_absolute(values),
        "cancellation": cancellation(values),
        "firing": np.asarray(pooled.active.mean(0))[chosen],
        "inclusion": firm.inclusion,
    }
    return nodes, pd.DataFrame(table), firm


def _again(
    there: PooledEffects, nodes: Sequence[SpanNode], clusters: Array, draws: dict[str, Any]
) -> dict[str, Array]:
    """The mean of nodes on prompts that had no part in choosing them, and its interval."""
    places = {node: i for i, node in enumerate(there.nodes)}
    values = np.zeros((len(clusters), len(nodes)))  # 0 for a node that none of the prompts has
    known = [i for i, node in enumerate(nodes) if node in places]
    values[:, known] = there.effect[:, [places[nodes[i]] for i in known]].toarray()
    low, high = cluster_interval(values, clusters, **draws)
    return {"test_mean": values.mean(0), "test_low": low, "test_high": high}


def _jaccard(there: PooledEffects, nodes: Sequence[SpanNode], errors: bool) -> float:
    """Of `nodes` and of as many that are first on other prompts."""
    columns = _competing(there, errors)
    size = np.abs(np.asarray(there.effect.mean(0)))[columns]
    first = columns[np.argsort(-size, kind="stable")[: len(nodes)]]
    again = {there.nodes[i] for i in first.tolist()}
    return len(again & set(nodes)) / len(again | set(nodes))


def _competing(pooled: PooledEffects, errors: bool) -> Array:
    """Columns of latents, and with `errors` those of errors too."""
    return np.flatnonzero([errors or node.latent is not None for node in pooled.nodes])
