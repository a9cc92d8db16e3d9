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
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from attribution import Metric, Targets
from attribution.attribute import record
from attribution.gradients import check_batch_size
from attribution.metrics import Score, metric_name
from circuits import (
    ErrorNode,
    LatentNode,
    LogitNode,
    Node,
    Prompt,
    Reference,
    SplicedModel,
    TokenNode,
    UserError,
)
from circuits.formula import DOWNSTREAM
from circuits.interventions import check_nodes
from circuits.reference import check_reference
from experiments.checks import one_prompt
from experiments.edges.choice import check_graph_of, kept_latents, target_names
from experiments.edges.held import Held, Source, foretold_share, same_reference, value_in
from experiments.edges.path_runs import Route, Trip, total_effect, travel
from experiments.edges.strongest import attributed
from experiments.kinds import AblationKind, patch
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
    `effect` on the metric and its `share` of the total.

    Attributes:
        paths: Without the logit node.
        table: The columns above.
        effects: What the metric loses by each path, `[n]`.
        attributed: What a graph attributes to each path, `[n]`; NaN without a graph, or where edges
            do not say (an error or a token that is set to another vector than the graph's).
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
        graph: Whose attributed effect of each path is set beside the measured one; made against
            the same reference, or else in proportion to what the source, a latent, loses.
        kind: What the source is set to; `patch()` by default.
        downstream: What errors do in the total effect; of a token it is `recompute`.
        batch_size: Rows of one pass.
        memory: Of the pass for the total effect; see `measure`.

    Raises:
        UserError: no path, paths of several sources, nodes that do not follow each other, or an
            option that does not exist.
    """
    if downstream not in DOWNSTREAM:
        raise UserError(f"downstream={downstream!r}; choose {', '.join(DOWNSTREAM)}")
    check_batch_size(batch_size)
    ids, kind = one_prompt(model, prompt), kind or patch()
    if graph is not None:
        check_graph(graph)
        check_graph_of(model, ids, metric, graph)
    routes = _routes(model, ids, metric, paths)
    source = routes[0].source
    if isinstance(source, TokenNode) and downstream != "recompute":
        raise UserError(
            f"downstream={downstream!r}; a token's total effect is measured with recompute alone"
        )
    held, clean = Held.of(model, ids), Reference("clean", model.trace(ids))
    trips: list[list[Trip]] = []  # a list a donor
    totals = []
    references = kind.references(model, prompt)
    for reference in references:
        check_reference(model, reference, ids)
        parts = [routes[i : i + batch_size] for i in range(0, len(routes), batch_size)]
        trips.append([t for part in parts for t in travel(held, metric, part, clean, reference)])
        totals.append(
            total_effect(held, metric, source, reference, downstream=downstream, memory=memory)
        )
    steps = [np.mean([trip.steps for trip in each], axis=0) for each in zip(*trips, strict=True)]
    effects = np.mean([[trip.effect for trip in each] for each in trips], axis=0)
    total, name = float(np.mean(totals)), metric_name(metric)
    conventions = {"metric": name, "reference": kind.name, "downstream": downstream}
    told = np.full(len(routes), np.nan)
    if graph is not None:
        lost = [(r, value_in(clean, source) - value_in(r, source)) for r in references]
        share = np.mean([_foretold(graph, prompt, source, *each) for each in lost])
        logits = [LogitNode(target) for target in target_names(metric)]
        for i, route in enumerate(routes):
            ways = ((*route.nodes, logits[target]) for target in route.targets)
            told[i] = share * sum(attributed(graph, way) for way in ways)
    return PathPatch(
        paths=tuple(route.nodes for route in routes),
        table=_table(model, ids, routes, steps, effects, total, name),
        effects=effects,
        attributed=told,
        total=total,
        conventions=conventions,
        provenance={
            **record(model, prompt, name, dict(conventions)),
            "graph": None if graph is None else graph.provenance,
        },
    )


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


def _table(
    model: SplicedModel,
    ids: Tensor,
    routes: Sequence[Route],
    values: Sequence[np.ndarray],
    effects: np.ndarray,
    total: float,
    metric: str,
) -> DataFrame:
    import pandas as pd

    words = model.words(ids[0])
    rows = []
    for i, (route, steps) in enumerate(zip(routes, values, strict=True)):
        places = [(str(node), words[node.pos]) for node in route.nodes]
        for step, (name, word) in enumerate([*places, (str(LogitNode(metric)), "")]):
            at = {"path": i, "step": step, "node": name, "word": word}
            told = dict(zip(("clean", "patched", "carried"), steps[step].tolist(), strict=True))
            rows.append({**at, **told, "effect": effects[i], "share": _share(effects[i], total)})
    return pd.DataFrame(rows)


def _routes(
    model: SplicedModel,
    ids: Tensor,
    metric: Metric | Targets | Score,
    paths: Sequence[Node] | Sequence[Sequence[Node]],
) -> list[Route]:
    """The paths, checked, without their logit nodes."""
    if not isinstance(paths, Sequence) or isinstance(paths, str) or not paths:
        raise UserError("give a path, a list of nodes from a latent upwards; or several such lists")
    several = [paths] if isinstance(paths[0], Node) else paths
    routes = [_route(model, ids, metric, tuple(path)) for path in several]  # pyright: ignore
    if len({route.source for route in routes}) > 1:
        raise UserError(
            f"paths from {routes[0].source} and from others; give paths from one node, whose total "
            "effect they share"
        )
    return routes


def _route(
    model: SplicedModel, ids: Tensor, metric: Metric | Targets | Score, path: tuple[Node, ...]
) -> Route:
    """One path; refused where its nodes do not exist or do not follow each other."""
    names = target_names(metric)
    targets = tuple(range(len(names)))
    if path and isinstance(path[-1], LogitNode):
        if path[-1].name not in names:
            raise UserError(f"a path ends in {path[-1]}; the metric is {metric_name(metric)!r}")
        targets, path = (names.index(path[-1].name),), path[:-1]
    source, steps = (path[0], path[1:]) if path else (None, ())
    if not isinstance(source, Source) or not all(
        isinstance(node, LatentNode | ErrorNode) for node in steps
    ):
        raise UserError(
            f"{' -> '.join(map(str, path)) or 'nothing'} is no path; it starts at a latent, an "
            "error or a token and goes through latents and errors"
        )
    route = Route(source, steps, targets)  # pyright: ignore[reportArgumentType]
    if isinstance(source, TokenNode) and not 0 <= source.pos < ids.shape[1]:
        raise UserError(f"{source}: no such position; the prompt has {ids.shape[1]} tokens")
    latents = [node for node in route.nodes if not isinstance(node, TokenNode)]
    check_nodes(model, ids, latents)
    below = [(source.pos, (-1, 0) if isinstance(source, TokenNode) else source.site.order)]
    for node in route.steps:
        (pos, order) = below[-1]
        if not (order < node.site.order and pos <= node.pos):
            raise UserError(
                f"{route}: {node} does not lie above the node before it, at its position or a "
                "later one; order nodes as the pass goes"
            )
        below.append((node.pos, node.site.order))
    return route
