"""Knock out edges of a graph: what reaches the target when its source is ablated.

1. *Held*: a pass in which the source takes its reference value and every other spliced site keeps
   its clean output; what the target's site reads then has changed by what the edge carries.
2. *Target*: the change of its pre-activation, against the edge's weight; of its activation; and how
   much of what changes at its site and position lands in latents that were off.
3. *Metric*: a pass of its own, in which the target alone takes its knocked-out activation.

Changes are clean minus knocked out, so that they have the sign of the edge. Attention and norms are
the model's own, whatever the edges hold frozen: that is what is tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from attribution import Attribution, Metric, Targets
from attribution.gradients import check_batch_size
from attribution.metrics import Score, metric_name
from attribution.record import record
from circuits import (
    ErrorNode,
    LatentNode,
    LogitNode,
    Node,
    Prompt,
    Reference,
    SiteInput,
    SplicedModel,
)
from circuits.formula import check_downstream
from circuits.reference import check_reference
from circuits.whole_numbers import checked_seed, whole_number
from experiments.checks import one_prompt
from experiments.edges.choice import (
    Edge,
    check_graph_of,
    choose_edges,
    kept_latents,
    mlp_between,
)
from experiments.edges.held import Held, same_reference
from experiments.edges.runs import MEASURED, Knockout, measure_targets
from experiments.kinds import AblationKind, checked_kind, zero
from experiments.results import Result
from experiments.statistics import agreement
from graphs import AttributionGraph

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True, eq=False, repr=False)
class EdgeKnockouts(Result):
    """A row an edge.

    Columns of `frame()`:

    - `source`, `target`, `group` (`strongest`, `random`, `given`), `stretch` (kinds of source and
      target), `mlp_between` (whether an MLP lies between the two).
    - `weight`: the edge. `predicted`: what it foretells: the weight, where edges and knock-outs are
      against the same reference; else in proportion to what a latent loses, NaN of errors and
      tokens. `contribution`: `predicted` times the gradient at the target, in the metric's units.
    - `pre_activation_change` of the target; of a logit node the change of what it stands for.
    - `activation_change`, after the threshold.
    - `jump_leak`: of the sum of absolute changes of the activations of all latents at the target's
      site and position, the share in latents that are off on the prompt; NaN where none changes.
    - `metric_change`: what the metric loses when the target alone takes its knocked-out activation;
      of a logit node when nothing else changes.

    Attributes:
        edges: Source and target of each row.
        table: The columns above.
        left_out: How many edges of the graph start at what cannot be knocked out, by why.
        conventions: Of the edges and of the knock-outs; columns of `frame()`.
        provenance: Everything that the numbers depend on.
    """

    kind: ClassVar[str] = "edge knock-outs"
    shown: ClassVar[tuple[str, ...]] = (
        "source", "target", "group", "weight", "pre_activation_change", "activation_change",
        "jump_leak", "contribution", "metric_change",
    )  # fmt: skip

    edges: tuple[tuple[Node, Node], ...]
    table: DataFrame
    left_out: dict[str, int]
    conventions: dict[str, str]
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        counts = self.table["group"].value_counts().to_dict()
        told = ", ".join(f"{n} {group}" for group, n in counts.items())
        return f"EdgeKnockouts({told or 'no edges'})"

    def __len__(self) -> int:
        return len(self.edges)

    def frame(self) -> DataFrame:
        """One line an edge, with the conventions as columns."""
        return self.table.assign(**self.conventions)

    def agreement(self, by: Sequence[str] = ("group",)) -> DataFrame:
        """How far edges foretell what knocking them out does.

        Of pre-activations: Pearson's `r`, the `slope` of measured on foretold through the origin (1
        where sizes are right), `sign`, the share with the right sign (of those not negligible), and
        `missed`, the share where the two differ by more than half of the larger. The same of the
        metric.

        Args:
            by: Columns to tell apart: `group`, `stretch`, `mlp_between`.
        """
        import pandas as pd

        rows = []
        for key, part in self.table.groupby(list(by), sort=False):
            values: tuple[Any, ...] = key  # pyright: ignore[reportAssignmentType]
            pre = agreement(part["predicted"], part["pre_activation_change"])
            metric = agreement(part["contribution"], part["metric_change"])
            rows.append(
                {
                    **dict(zip(by, values, strict=True)),
                    "n": pre.n,
                    "r": pre.pearson,
                    "slope": pre.slope,
                    "sign": pre.sign_agreement,
                    "missed": _missed(part["predicted"], part["pre_activation_change"]),
                    "metric_r": metric.pearson,
                    "metric_slope": metric.slope,
                    "metric_sign": metric.sign_agreement,
                    "median_jump_leak": part["jump_leak"].median(),
                }
            )
        return pd.DataFrame(rows).assign(**self.conventions)

    def figure(self) -> Figure:
        """Weights against changes of pre-activations, and contributions against the metric's."""
        from experiments.edges.knockout_plot import edge_figure

        return edge_figure(self)


def edge_knockout(
    model: SplicedModel,
    prompt: str | Prompt,
    metric: Metric | Targets | Score,
    graph: Attribution | AttributionGraph,
    *,
    edges: Sequence[tuple[Node, Node]] | None = None,
    top: int = 200,
    n_random: int = 200,
    kind: AblationKind | None = None,
    downstream: str = "recompute",
    seed: int = 0,
    batch_size: int = 64,
    memory: str | int | None = None,
) -> EdgeKnockouts:
    """Ablate the source of each edge with every other spliced site held clean, and read the target.

    An error node of the graph also stands for the latents that are no nodes; ablating it takes them
    along. Where the graph has been pruned since, it does not say which they are, and edges from its
    errors are left out and counted; so are edges from biases.

    Args:
        model: The spliced model.
        prompt: The prompt that the graph is of.
        metric: What it explains.
        graph: The edges' weights, and the gradients at their targets.
        edges: Pairs of source and target; by default the strongest and random ones.
        top: Edges with the largest |contribution|, to latents or to what is explained.
        n_random: Edges drawn from the others to latents, all equally likely. Of a pruned graph,
            from those that were kept: give the attribution to draw from all.
        kind: What sources are set to; `zero()` by default. Make the graph against the same
            reference, so that edges foretell it: of every node, and of latents it switches on.
        downstream: What errors do in the pass in which the target alone changes.
        seed: Of the random edges.
        batch_size: Rows of one pass.
        memory: Of the passes for the metric; see `measure`.

    Raises:
        UserError: a graph of another prompt or metric, an edge that it does not have, or an option
            that does not exist.
    """
    check_downstream(downstream)
    top, n_random = whole_number("top", top, 0), whole_number("n_random", n_random, 0)
    seed = checked_seed(seed)
    check_batch_size(batch_size, automatic=False)
    ids, kind = one_prompt(model, prompt), checked_kind(zero() if kind is None else kind)
    check_graph_of(model, ids, metric, graph)
    chosen = choose_edges(graph, edges, top, n_random, seed)
    references = kind.references(model, prompt)
    held = Held.of(model, ids)
    clean = Reference("clean", model.trace(ids))
    kept = kept_latents(graph)
    found = []
    for reference in references:
        check_reference(model, reference, ids)
        same = same_reference(graph.provenance, prompt, reference.name)
        knockout = Knockout(held, metric, clean, reference, kept, same)
        changes = knockout.all(chosen.edges, batch_size)
        measure_targets(model, ids, metric, chosen.edges, changes, downstream, batch_size, memory)
        found.append(changes)
    measured = {name: _mean([each[name] for each in found]) for name in found[0]}
    conventions = {**_conventions(graph, metric), "reference": kind.name, "downstream": downstream}
    settings = {
        **conventions,
        "top": top,
        "n_random": n_random,
        "drawn_from": chosen.drawn_from,
        "left_out": dict(chosen.left_out),
        "reference_settings": kind.settings,
    }
    return EdgeKnockouts(
        edges=tuple((edge.source, edge.target) for edge in chosen.edges),
        table=_table(model, metric, chosen.edges, measured),
        left_out=dict(chosen.left_out),
        conventions=conventions,
        provenance={
            **record(model, prompt, conventions["metric"], settings),
            "seed": seed,
            "graph": graph.provenance,
        },
    )


def _table(
    model: SplicedModel,
    metric: Metric | Targets | Score,
    edges: Sequence[Edge],
    measured: dict[str, np.ndarray],
) -> DataFrame:
    import pandas as pd

    weight = np.array([edge.weight for edge in edges], float)
    predicted = weight * measured["share"]
    output = getattr(metric, "output", None)
    reads = output.site if isinstance(output, SiteInput) else None
    return pd.DataFrame(
        {
            "source": [str(edge.source) for edge in edges],
            "target": [str(edge.target) for edge in edges],
            "group": [edge.group for edge in edges],
            "stretch": [f"{_kind(edge.source)} -> {_kind(edge.target)}" for edge in edges],
            "mlp_between": [
                mlp_between(model.sites, edge.source, edge.target, reads) for edge in edges
            ],
            "weight": weight,
            "predicted": predicted,
            "contribution": predicted * np.array([edge.grad for edge in edges], float),
            **{name: measured[name] for name in MEASURED},
        }
    )


def _missed(foretold: Any, measured: Any) -> float:
    """The share that differs by more than half of the larger; of pairs without a NaN."""
    a, m = np.asarray(foretold, float), np.asarray(measured, float)
    known = ~(np.isnan(a) | np.isnan(m))
    far = np.abs(a - m) > np.maximum(np.abs(a), np.abs(m)) / 2
    return float(far[known].mean()) if known.any() else np.nan


def _kind(node: Node) -> str:
    if isinstance(node, LogitNode):
        return "metric"
    if isinstance(node, ErrorNode):
        return f"{node.site.kind} error"
    return node.site.kind if isinstance(node, LatentNode) else "token"


def _mean(found: list[np.ndarray]) -> np.ndarray:
    """Over donors; NaN where there is none for one of them."""
    return np.mean(found, axis=0)


def _conventions(
    graph: Attribution | AttributionGraph, metric: Metric | Targets | Score
) -> dict[str, str]:
    settings = graph.provenance.get("settings", {})
    names = ("edges", "attention", "norms", "edge_reference")
    told = {name: str(settings.get(name, "unknown")) for name in names}
    return {
        "metric": metric_name(metric),
        "edges": told["edges"],
        "edges_attention": told["attention"],
        "edges_norms": told["norms"],
        "edges_against": told["edge_reference"],
        "attributed_downstream": str(settings.get("downstream", "unknown")),
        "random_from": "a pruned graph" if graph.provenance.get("pruned") else "the whole graph",
        "knock_out": "attention and norms live",
    }
