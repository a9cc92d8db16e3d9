"""The circuit of a data set: which nodes matter over many prompts, and how firm that list is.

Nodes are latents at named spans, so that prompts may differ in length. What a mean over prompts
can hide is shown beside it: the mean absolute effect, how far effects cancel, and how often a node
would be in the list if other prompts of the kind had been drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from matplotlib.figure import Figure

from attribution import logit_diff, total_effects
from circuits import Prompt, SplicedModel, UserError
from experiments.datasets.pairs import shared_texts
from experiments.kinds import AblationKind, patch
from experiments.plots import COLOURS
from experiments.pooled import (
    Estimator,
    MetricOf,
    measured_effects,
    metric_of_name,
    pairs_of,
    pooled_effects,
)
from experiments.records import record_prompts
from experiments.results import Result
from experiments.spans import SpanNode, Spans, aligned
from experiments.statistics import (
    TopK,
    cancellation,
    cluster_interval,
    mean_absolute,
    top_k_inclusion,
)

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, eq=False, repr=False)
class DatasetCircuit(Result):
    """A row a node of the circuit, the largest |mean| first.

    Columns of `frame()`, effects in the metric's units, attributed where nothing else is said:

    - `measured`: mean effect of ablating the node, on the same prompts.
    - `mean`, `low`, `high`: signed mean over prompts and its 95 % interval by prompt pairs.
    - `mean_abs`, `cancellation`: 0 where all effects have one sign, 1 where nothing is left.
    - `firing`: share of prompts where the latent is on (1 for errors).
    - `inclusion`: share of bootstrap replicates with the node among the first k.
    - `test_mean`: on the test prompts, if there are any.

    Attributes:
        nodes: The k nodes, for `faithfulness_curve(model, test, metric, circuit.nodes)`.
        table: The columns above.
        stability: Of the list of k nodes under resampling of prompt pairs.
        test_jaccard: Of the first k on the prompts and on the test prompts; NaN without any.
        n_prompts, n_test: How many prompts.
        conventions: Metric, estimator, kind of ablation, downstream.
        provenance: Everything that the numbers depend on.
    """

    kind: ClassVar[str] = "dataset circuit"
    shown: ClassVar[tuple[str, ...]] = (
        "node", "mean", "measured", "low", "high", "mean_abs", "cancellation", "firing",
        "inclusion", "test_mean",
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
        spans = self.provenance["settings"]["spans"]
        used = [span for span in spans if any(node.span == span for node in self.nodes)]
        figure = Figure(figsize=(max(4.8, 1.6 + 0.8 * len(used)), 4), layout="constrained")
        axes = figure.subplots()
        axes.axhline(0, color="0.8", zorder=0)
        for kind in dict.fromkeys(node.site.kind for node in self.nodes):
            rows = [i for i, node in enumerate(self.nodes) if node.site.kind == kind]
            shift = 0.12 * (list(COLOURS).index(kind) - 2)
            axes.scatter(
                [used.index(self.nodes[i].span) + shift for i in rows],
                self.table["mean"].iloc[rows],
                s=6 + 40 * self.table["inclusion"].iloc[rows],
                color=COLOURS[kind],
                alpha=0.7,
                label=kind,
            )
        axes.set_xticks(range(len(used)), labels=used, rotation=45, ha="right")
        axes.set_ylabel(f"mean effect on {self.conventions['metric']}")
        axes.set_title(
            f"{self.conventions['estimator']} against {self.conventions['reference']}, downstream "
            f"{self.conventions['downstream']}\nsize: share of replicates with the node",
            fontsize=8,
            parse_math=False,
        )
        axes.legend(frameon=False, fontsize=8)
        return figure


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
        test: Other prompts. Where one of them is among `prompts` this is refused.
        test_spans: Of the test prompts, with the same names.
        k: Nodes of the circuit.
        errors: Whether error nodes compete.
        kind: What effects are against; `patch()` by default.
        estimator: `total_effects`, `integrated_effects`, ...
        downstream: `recompute` or `freeze`.
        n_bootstrap, seed: Of intervals and inclusion.
        batch_size, memory: Of one pass of ablations; see `experiments.measure`.

    Raises:
        UserError: train and test overlap, fewer than k nodes, or what the parts refuse.
    """
    import pandas as pd

    kind = kind or patch()
    _check_overlap(prompts, test)
    spans = spans or aligned(model, prompts)
    how = {"kind": kind, "estimator": estimator, "downstream": downstream}
    pooled = pooled_effects(model, prompts, spans, metric, **how)
    compete = np.array([errors or node.latent is not None for node in pooled.nodes])
    (columns,) = compete.nonzero()
    values, clusters = pooled.effect[:, columns].toarray(), pairs_of(prompts)
    draws = {"n_bootstrap": n_bootstrap, "seed": seed}
    stability = top_k_inclusion(values, clusters, k_top=k, **draws)
    mean = values.mean(0)
    first = np.argsort(-np.abs(mean), kind="stable")[:k]
    nodes = tuple(pooled.nodes[columns[i]] for i in first)
    low, high = cluster_interval(values[:, first], clusters, **draws)
    measured = measured_effects(
        model, prompts, spans, metric, nodes, kind,
        downstream=downstream, batch_size=batch_size, memory=memory,
    )  # fmt: skip
    table = {
        "node": [str(node) for node in nodes],
        "span": [node.span for node in nodes],
        "mean": mean[first],
        "measured": measured.effect.mean(0),
        "low": low,
        "high": high,
        "mean_abs": mean_absolute(values[:, first]),
        "cancellation": cancellation(values[:, first]),
        "firing": np.asarray(pooled.active.mean(0))[columns[first]],
        "inclusion": stability.inclusion[first],
    }
    jaccard = np.nan
    if len(test):
        there = pooled_effects(model, test, test_spans or aligned(model, test), metric, **how)
        means = dict(zip(there.nodes, np.asarray(there.effect.mean(0)).tolist(), strict=True))
        table["test_mean"] = [means.get(node, 0.0) for node in nodes]
        ranked = sorted(
            (node for node in means if errors or node.latent is not None),
            key=lambda node: -abs(means[node]),
        )
        jaccard = len(set(nodes) & set(ranked[:k])) / len(set(nodes) | set(ranked[:k]))
    conventions = {
        "metric": metric_of_name(metric),
        "estimator": pooled.estimator,
        "reference": kind.name,
        "downstream": downstream,
    }
    settings = {**conventions, "k": k, "errors": errors, "n_test": len(test)}
    settings |= {"spans": list(spans.names), "n_bootstrap": n_bootstrap}
    return DatasetCircuit(
        nodes=nodes,
        table=pd.DataFrame(table),
        stability=stability,
        test_jaccard=jaccard,
        n_prompts=len(prompts),
        n_test=len(test),
        conventions=conventions,
        provenance=record_prompts(model, prompts, conventions["metric"], settings, seed=seed),
    )


def _check_overlap(prompts: Sequence[Prompt], test: Sequence[Prompt]) -> None:
    shared = shared_texts(prompts, test)
    if shared:
        raise UserError(
            f"{len(shared)} of {len({p.text for p in test})} test texts are also among the "
            f"prompts, the first is {min(shared)!r}; a circuit is tested on others: "
            "datasets.without_overlap(prompts, test)"
        )
