"""Paths that a change can take: which nodes follow each other, and which are no path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from attribution import Metric, Targets
from attribution.metrics import Score, metric_name
from circuits import ErrorNode, LatentNode, LogitNode, Node, SplicedModel, TokenNode, UserError
from circuits.interventions import check_nodes
from experiments.edges.choice import target_names
from experiments.edges.held import Source


@dataclass(frozen=True)
class Route:
    """One path.

    Attributes:
        source: Where it starts.
        steps: What it goes through, in the order of the pass.
        targets: Which targets of the metric it ends in, by number.
    """

    source: Source
    steps: tuple[LatentNode | ErrorNode, ...]
    targets: tuple[int, ...]

    @property
    def nodes(self) -> tuple[Source, ...]:
        return (self.source, *self.steps)

    def __str__(self) -> str:
        return " -> ".join(map(str, self.nodes))


def routes_of(
    model: SplicedModel,
    ids: Tensor,
    metric: Metric | Targets | Score,
    paths: Sequence[Node] | Sequence[Sequence[Node]],
) -> list[Route]:
    """The paths, checked, without their logit nodes.

    Raises:
        UserError: no path, paths of several sources, or nodes that do not exist or do not follow
            each other.
    """
    if not _is_list(paths) or not paths:
        raise UserError("give a path, a list of nodes from a latent upwards; or several such lists")
    several = [paths] if isinstance(paths[0], Node) else paths
    for path in several:
        if not _is_list(path):
            raise UserError(f"{path!r} is no path; give a list of nodes from a latent upwards")
    routes = [_route(model, ids, metric, tuple(path)) for path in several]  # pyright: ignore
    if len({route.source for route in routes}) > 1:
        raise UserError(
            f"paths from {routes[0].source} and from others; give paths from one node, whose total "
            "effect they share"
        )
    return routes


def _is_list(x: object) -> bool:
    return isinstance(x, Sequence) and not isinstance(x, str)


def _route(
    model: SplicedModel, ids: Tensor, metric: Metric | Targets | Score, path: tuple[Node, ...]
) -> Route:
    """One path; refused where its nodes do not exist or do not follow each other."""
    targets, path = _ends(metric, path)
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
    _check_order(route)
    return route


def _ends(
    metric: Metric | Targets | Score, path: tuple[Node, ...]
) -> tuple[tuple[int, ...], tuple[Node, ...]]:
    """The numbers of the targets that a path ends in, all if it names none; and the rest of it."""
    names = target_names(metric)
    if not path or not isinstance(path[-1], LogitNode):
        return tuple(range(len(names))), path
    if path[-1].name not in names:
        raise UserError(f"a path ends in {path[-1]}; the metric is {metric_name(metric)!r}")
    return (names.index(path[-1].name),), path[:-1]


def _check_order(route: Route) -> None:
    for before, node in pairwise(route.nodes):
        assert not isinstance(node, TokenNode)
        below = (-1, 0) if isinstance(before, TokenNode) else before.site.order
        if not (below < node.site.order and before.pos <= node.pos):
            raise UserError(
                f"{route}: {node} does not lie above the node before it, at its position or a "
                "later one; order nodes as the pass goes"
            )
