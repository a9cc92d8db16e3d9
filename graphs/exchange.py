"""A graph as one JSON file: readable anywhere, nothing to execute, every number exact.

Nodes are named by `str(node)`, in topological order; edges are columns of equal length that refer
to nodes by their place. Python writes a float with as many digits as bring the same float back.

Schema 3 has one column more than schema 2, the nodes' `change`; in files of schema 2, whose edges
are against zero, it is `act`. Schema 2 has two columns more than schema 1, the nodes' `grad` and
the edges' `query_key`. Files of schema 1 are read: there `grad` is the quotient of an incoming
edge's contribution and weight, so exact to rounding, and the parts of queries and keys are not
known.
"""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

import networkx as nx

from circuits.errors import UserError
from circuits.files import write_atomically
from circuits.nodes import parse_node
from graphs.graph import AttributionGraph

FORMAT = "gemma-circuits attribution graph"
SCHEMA = 3
NODE_COLUMNS = ("act", "change", "effect", "grad", "influence", "label", "measured")
EDGE_COLUMNS = ("weight", "contribution", "query_key")
OPTIONAL = ("measured", "query_key")


def save(graph: AttributionGraph, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write `graph` to `path`, whole or not at all.

    Raises:
        UserError: `path` does not end in .json, exists already (unless `overwrite`) or cannot be
            written; the graph or its provenance holds a NaN or something that is not JSON.
    """
    path = Path(path)
    if path.suffix != ".json":
        raise UserError(f"cannot save a graph as {path.name}; graphs are saved as .json")
    return write_atomically(path, json_text(_as_dict(graph), path), overwrite=overwrite)


def json_text(content: dict[str, Any], path: Path) -> str:
    """What a file of a graph will hold.

    Raises:
        UserError: a NaN, or something that is not JSON; the message names the file.
    """
    try:
        return json.dumps(content, allow_nan=False)
    except ValueError:
        raise UserError(f"the graph holds a NaN or an infinity; {path} was not written") from None
    except TypeError as error:
        raise UserError(
            f"the graph's provenance is not JSON ({error}); {path} was not written"
        ) from None


def load(path: str | Path) -> AttributionGraph:
    """Read what `save` wrote.

    Raises:
        UserError: no such file, or it is not a whole graph of this schema.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text("utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise UserError(f"no file {path}; graph.save (trace --out) writes one") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(
            f"{path} is not whole JSON ({error}); was it cut short? Save the graph again"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(
            f"{path} is JSON but no attribution graph; give what graph.save (trace --out) writes"
        )
    schema = content.get("schema")
    if schema not in (1, 2, SCHEMA):
        raise UserError(
            f"{path} has schema {schema!r} and this version reads schemas 1 to {SCHEMA}; "
            "trace the prompt again, or read it with the version that wrote it"
        )
    try:
        if schema == 1:
            content = _from_schema_1(content)
        if schema < SCHEMA:
            content = _from_schema_2(content)
        return _from_dict(content)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} is damaged ({error}); save the graph again") from None


def _as_dict(graph: AttributionGraph) -> dict[str, Any]:
    index = {node: i for i, node in enumerate(graph.digraph)}
    nodes = graph.digraph.nodes(data=True)
    edges = list(graph.digraph.edges(data=True))
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "words": list(graph.words),
        "metric_value": graph.metric_value,
        "provenance": graph.provenance,
        "nodes": {
            "name": [str(node) for node, _ in nodes],
            **{name: [attributes[name] for _, attributes in nodes] for name in NODE_COLUMNS},
        },
        "edges": {
            "source": [index[source] for source, _, _ in edges],
            "target": [index[target] for _, target, _ in edges],
            **{name: [attributes[name] for _, _, attributes in edges] for name in EDGE_COLUMNS},
        },
    }


def _from_dict(content: dict[str, Any]) -> AttributionGraph:
    columns = content["nodes"]
    nodes = [parse_node(name) for name in columns["name"]]
    if len(set(nodes)) < len(nodes):
        raise ValueError("a node is there twice")
    digraph = nx.DiGraph()
    values = zip(*(columns[name] for name in NODE_COLUMNS), strict=True)
    for node, attributes in zip(nodes, values, strict=True):
        digraph.add_node(node, **_checked(NODE_COLUMNS, attributes))

    columns = content["edges"]
    values = zip(*(columns[name] for name in EDGE_COLUMNS), strict=True)
    for source, target, attributes in zip(
        columns["source"], columns["target"], values, strict=True
    ):
        if not 0 <= source < target:
            raise ValueError("an edge does not run forward")
        digraph.add_edge(nodes[source], nodes[target], **_checked(EDGE_COLUMNS, attributes))
    return AttributionGraph(
        digraph=nx.freeze(digraph),
        words=tuple(content["words"]),
        metric_value=float(content["metric_value"]),
        provenance=dict(content["provenance"]),
    )


def _from_schema_1(content: dict[str, Any]) -> dict[str, Any]:
    """Content of schema 1 with the columns of schema 2; such a file has one logit node."""
    nodes, edges = content["nodes"], content["edges"]
    grads = [float(name.startswith("logit/")) for name in nodes["name"]]
    for target, weight, contribution in zip(
        edges["target"], edges["weight"], edges["contribution"], strict=True
    ):
        if weight:
            grads[target] = contribution / weight
    edges = {**edges, "query_key": [None] * len(edges["weight"])}
    return {**content, "nodes": {**nodes, "grad": grads}, "edges": edges}


def _from_schema_2(content: dict[str, Any]) -> dict[str, Any]:
    """Content of schema 2 with the column of schema 3."""
    nodes = content["nodes"]
    return {**content, "nodes": {**nodes, "change": nodes["act"]}}


def _checked(names: tuple[str, ...], values: tuple) -> dict[str, Any]:
    """The attributes by name, each of its type."""
    attributes = dict(zip(names, values, strict=True))
    for name, value in attributes.items():
        if name == "label":
            fits = value is None or isinstance(value, str)
        else:
            fits = isinstance(value, float | int) and math.isfinite(value)
            fits = fits or (name in OPTIONAL and value is None)
        if not fits:
            raise ValueError(f"{name} is {value!r}")
    return attributes


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
