"""Set what an experiment measured beside what was attributed."""

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol

import networkx as nx

from circuits.errors import UserError
from circuits.nodes import Node
from graphs.graph import AttributionGraph


class Measurement(Protocol):
    """One row of an experiment: a node and the effect found by intervening on it."""

    @property
    def node(self) -> Node: ...
    @property
    def measured(self) -> float: ...


def with_measured(
    graph: AttributionGraph, rows: Iterable[Measurement], *, settings: dict[str, Any] | None = None
) -> AttributionGraph:
    """A copy of `graph` whose nodes carry what `rows` measured, in the metric's units.

    Args:
        graph: Left as it is.
        rows: For example what `experiments.ablate_each` returns.
        settings: How it was measured (reference, downstream), as JSON values; goes into the
            provenance and under the pictures. Without it, `rows.settings` if there is one.

    Raises:
        UserError: a row's node is not in the graph.
    """
    if settings is None:
        settings = getattr(rows, "settings", None)
    digraph = nx.DiGraph(graph.digraph)  # unfrozen; the attributes' dicts are copies
    for row in rows:
        if row.node not in digraph:
            raise UserError(
                f"{row.node} was measured but is not in the graph; "
                "give the graph whose nodes were measured, or only the rows of its nodes"
            )
        digraph.nodes[row.node]["measured"] = float(row.measured)
    provenance = dict(graph.provenance)
    if settings is not None:
        provenance["measured"] = settings
    return dataclasses.replace(graph, digraph=nx.freeze(digraph), provenance=provenance)
