"""Path patching: a change travels along named paths alone, from a node to the metric.

1. *Start*: the source takes its counterfactual value.
2. *Step*: with every other spliced site held at its clean output, the next node takes the value
   that it then gets: a latent its activation after the threshold, an error what is then missed.
3. *End*: the last node's change reaches the metric with every spliced site above held clean.

After Goldowsky-Dill et al. 2023 ("Localizing Model Behavior with Path Patching"), with latents and
errors as nodes. Effects are clean minus patched, as those of ablations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from attribution import Metric, Targets
from attribution.gradients import check_batch_size
from attribution.metrics import Score, metric_name
from attribution.record import record
from circuits import (
    ErrorNode,
    LogitNode,
    Node,
    Prompt,
    Reference,
    SplicedModel,
    TokenNode,
    UserError,
)
from circuits.formula import check_downstream
from circuits.reference import check_reference
from experiments.checks import one_prompt
from experiments.edges.choice import check_graph_of, kept_latents, target_names
from experiments.edges.held import Held, Source, foretold_share, same_reference, value_in
from experiments.edges.path_runs import Trip, total_effect, travel
from experiments.edges.routes import Route, routes_of
from experiments.edges.strongest import attributed
from experiments.kinds import AblationKind, checked_kind
from experiments.results import Result
from graphs import AttributionGraph
from graphs.adjacency import check_graph

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True, eq=False, repr=False)
class PathPatch(Result):
    """What travels along paths that start at one node.

    Columns of `frame()`, one line a node of a path and one for the metric at its end: `path`
    (counted from 0), `step`, `node`, `word` (the token at its position), `clean`, `patched` (a
    latent's activation; the norm of an error or an embedding; the metric), `carried` (clean minus
    patched; of an error or an embedding the norm of the difference), and of each path its
    `effect` on the metric, its `share` of the total, what a graph has `attributed` to it (the
    product of its edges, as `strongest_paths` ranks by), and all its nodes, `paths`.

    Attributes:
        paths: Without the logit node.
        table: The columns above.
        effects: What the metric loses by each path, `[n]`.
        attributed: What a graph attributes to each path, `[n]`; NaN without a graph, or where edges
            do not say: one of the path's is not in the graph, or an error or a token is set to
            another vector than the graph's.
        total: What the metric loses when the source is ablated, everything free to follow.
        conventions: Metric, reference and the convention downstream of `total`.
        provenance: Everything that the numbers depend on.
    """

    kind: ClassVar[str] = "path patching"
    shown: ClassVar[tuple[str, ...]] = (
        "path", "step", "node", "word", "clean", "patched", "carried",
    )  # fmt: skip

    paths: tuple[tuple[Source, ...], ...]
    table: DataFrame
    effects: np.ndarray
    attributed: np.ndarray
    total: float
    conventions: dict[str, str]
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        return (
            f"PathPatch({len(self.paths)} from {self.paths[0][0]}: {self.sum:+.4g} of "
            f"{self.total:+.4g}, {self.remainder:+.4g} left over)"
        )

    @property
    def sum(self) -> float:
        """What the paths bring, one at a time: what they do together may be another number."""
        return float(self.effects.sum())

    @property
    def remainder(self) -> float:
        """What is left of the total: other paths, and what paths do only together."""
        return self.total - self.sum

    def frame(self) -> DataFrame:
        """One line a step, with the conventions as columns."""
        return self.table.assign(
            total=self.total, sum=self.sum, remainder=self.remainder, **self.conventions
        )

    def summary(self) -> DataFrame:
        """One line a path, then their sum, what is left over, and the source's total effect."""
        import pandas as pd

        names = [" -> ".join(map(str, path)) for path in self.paths]
        measured = [*self.effects, self.sum, self.remainder, self.total]
        told = {
            "path": [*names, "sum", "left over", "total"],
            "attributed": [*self.attributed, self.attributed.sum(), np.nan, np.nan],
            "effect": measured,
            "share": [_share(effect, self.total) for effect in measured],
        }
        return pd.DataFrame(told).assign(**self.conventions)

    def figure(self) -> Figure:
        """Bars: each path, what is left over, and the total."""
        from experiments.edges.patching_plot import path_figure

        return path_figure(self)


def path_patch(
    model: SplicedModel,
    prompt: str | Prompt,
    metric: Metric | Targets | Score,
    paths: Sequence[Node] | Sequence[Sequence[Node]],
    *,
    graph: AttributionGraph | None = None,
    kind: AblationKind | None = None,
    downstream: str = "recompute",
    batch_size: int = 64,
    memory: str | int | None = None,
) -> PathPatch:
    """Send a node's change along named paths, and set it beside the node's total effect.

    Args:
        model: The spliced model.
        prompt: One text, with a corrupted partner for the default kind.
        metric: A `Metric`, `Targets` (their weighted sum), or a function of the logits.
        paths: One path, or several from the same source: a latent, an error or a token first, then
            latents and errors, each above the one before. Over a step that crosses another spliced
            site nothing is carried, as no edge does that. A logit node at the end may be left out;
            one of several targets means that target's share.
        graph: Whose attributed effect of each path, if it has the path, is set beside the measured
            one; made against the same reference, or else in proportion to what the source, a
            latent, loses.
        kind: What the source is set to; `patch()` by default.
        downstream: What errors do in the total effect; of a token it is `recompute`.
        batch_size: Rows of one pass.
        memory: Of the pass for the total effect; see `measure`.

    Raises:
        UserError: no path, paths of several sources, nodes that do not follow each other, or an
            option that does not exist.
    """
    check_downstream(downstream)
    check_batch_size(batch_size, automatic=False)
    ids, kind = one_prompt(model, prompt), checked_kind(kind)
    if graph is not None:
        check_graph(graph)
        check_graph_of(model, ids, metric, graph)
    routes = routes_of(model, ids, metric, paths)
    source = routes[0].source
    if isinstance(source, TokenNode) and downstream != "recompute":
        raise UserError(
            f"downstream={downstream!r}; a token's total effect is measured with recompute alone"
        )
    held, clean = Held.of(model, ids), Reference("clean", model.trace(ids))
    references = kind.references(model, prompt)
    trips, totals = [], []  # of each donor
    for reference in references:
        check_reference(model, reference, ids)
        parts = [routes[i : i + batch_size] for i in range(0, len(routes), batch_size)]
        trips.append([t for part in parts for t in travel(held, metric, part, clean, reference)])
        how = {"downstream": downstream, "memory": memory}
        totals.append(total_effect(held, metric, source, reference, **how))
    conventions = {"metric": metric_name(metric), "reference": kind.name, "downstream": downstream}
    settings = {**conventions, "reference_settings": kind.settings}
    told = _attributed(graph, prompt, metric, routes, clean, references)
    return _result(
        held, routes, [Trip.mean(each) for each in zip(*trips, strict=True)], told,
        total=float(np.mean(totals)),
        conventions=conventions,
        provenance={
            **record(model, prompt, conventions["metric"], settings),
            "graph": None if graph is None else graph.provenance,
        },
    )  # fmt: skip


def _attributed(
    graph: AttributionGraph | None,
    prompt: str | Prompt,
    metric: Metric | Targets | Score,
    routes: Sequence[Route],
    clean: Reference,
    references: Sequence[Reference],
) -> np.ndarray:
    """What the graph attributes to each route, to all its targets together; NaN if it is silent."""
    told = np.full(len(routes), np.nan)
    if graph is None:
        return told
    source = routes[0].source
    lost = [(r, value_in(clean, source) - value_in(r, source)) for r in references]
    share = np.mean([_foretold(graph, prompt, source, *each) for each in lost])
    logits = [LogitNode(target) for target in target_names(metric)]
    for i, route in enumerate(routes):
        ways = [(*route.nodes, logits[target]) for target in route.targets]
        if all(graph.digraph.has_edge(*edge) for way in ways for edge in pairwise(way)):
            told[i] = share * sum(attributed(graph, way) for way in ways)
    return told


def _foretold(
    graph: AttributionGraph,
    prompt: str | Prompt,
    source: Source,
    reference: Reference,
    lost: Tensor,
) -> float:
    """The share of an edge from the source that is carried; see `foretold_share`."""
    if isinstance(source, ErrorNode) and kept_latents(graph) is not None:
        return np.nan  # the graph's error node stands for latents too
    change = graph.digraph.nodes.get(source, {}).get("change", 0.0)
    same = same_reference(graph.provenance, prompt, reference.name)
    return foretold_share(source, lost, change, same)


def _share(part: float, total: float) -> float:
    return part / total if total else np.nan


def _result(
    held: Held,
    routes: Sequence[Route],
    trips: Sequence[Trip],
    told: np.ndarray,
    *,
    total: float,
    conventions: dict[str, str],
    provenance: dict[str, Any],
) -> PathPatch:
    """What travelled, as a table with a row for each step."""
    import pandas as pd

    words = held.model.words(held.ids[0])
    metric = str(LogitNode(conventions["metric"]))
    rows = []
    for i, (route, trip) in enumerate(zip(routes, trips, strict=True)):
        of_path = {"effect": trip.effect, "share": _share(trip.effect, total),
                   "attributed": told[i], "paths": str(route)}  # fmt: skip
        places = [*((str(node), words[node.pos]) for node in route.nodes), (metric, "")]
        for step, ((node, word), values) in enumerate(zip(places, trip.steps, strict=True)):
            at = {"path": i, "step": step, "node": node, "word": word}
            numbers = dict(zip(("clean", "patched", "carried"), values.tolist(), strict=True))
            rows.append({**at, **numbers, **of_path})
    return PathPatch(
        paths=tuple(route.nodes for route in routes),
        table=pd.DataFrame(rows),
        effects=np.array([trip.effect for trip in trips]),
        attributed=told,
        total=total,
        conventions=conventions,
        provenance=provenance,
    )
