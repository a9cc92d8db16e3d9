"""Set what an experiment measured beside what was attributed."""

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol

import networkx as nx

from attribution.fingerprint import differ
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

    Measurements that it had with other settings are dropped: one caption speaks for all.

    Args:
        graph: Left as it is.
        rows: For example what `experiments.ablate_each` returns.
        settings: How it was measured (reference, downstream), as JSON values; goes into the
            provenance and under the pictures. Without it, `rows.settings` if there is one.

    Raises:
        UserError: a row's node is not in the graph, or the rows are of another model, prompt or
            metric.
    """
    if settings is None:
        settings = getattr(rows, "settings", None)
    _check_same_question(graph, getattr(rows, "provenance", {}))
    digraph = nx.DiGraph(graph.digraph)  # unfrozen; the attributes' dicts are copies
    if graph.provenance.get("measured") != settings:
        nx.set_node_attributes(digraph, dict.fromkeys(digraph), "measured")
    for row in rows:
        if not hasattr(row, "node") or not hasattr(row, "measured"):
            raise UserError(
                f"{row!r} is no measurement of a node; give what ablate_each(...) returns"
            )
        if row.node not in digraph:
            raise UserError(
                f"{row.node} was measured but is not in the graph; "
                "give the graph whose nodes were measured, or only the rows of its nodes"
            )
        digraph.nodes[row.node]["measured"] = float(row.measured)
    provenance = {**graph.provenance, "measured": settings}
    return dataclasses.replace(graph, digraph=nx.freeze(digraph), provenance=provenance)


def _check_same_question(graph: AttributionGraph, measured: dict[str, Any]) -> None:
    """Refuse rows whose record names another model, prompt or metric than the graph's."""
    for key in ("model", "prompt", "metric"):
        here, there = (_text(record.get(key)) for record in (graph.provenance, measured))
        if here and there and here != there:
            raise UserError(
                f"the graph's {key} is {here!r} and the measurements' {there!r}; "
                "measure what the graph explains"
            )
    if differ(graph.provenance, measured):
        raise UserError(
            "the graph and the measurements are of other weights under the same name; "
            "measure with the model that the graph was made with, or make the graph again"
        )


def _text(value: Any) -> Any:
    """A prompt's text; other values as they are."""
    return value.get("text") if isinstance(value, dict) else value
