"""The interactive page: template, style, script and data in one HTML file that needs no network."""

import html
import json
import re
from importlib import resources
from typing import Any

from circuits.nodes import NODE_WORDS, BiasNode, ErrorNode, LogitNode, Node, TokenNode
from graphs.graph import AttributionGraph
from graphs.layout import GAP, LOGIT_SIZE, WORD_SIZE, Layout, layout
from graphs.text import (
    caption,
    effect_text,
    fit,
    label_lines,
    number,
    output_text,
    short_name,
    visible,
)

MAX_EDGES = 20_000
NAME_SIZE, LABEL_SIZE, COLUMN_SIZE = 6.5, 8.0, 8.5  # as in style.css


def page(graph: AttributionGraph, *, left_out: str = "") -> str:
    """The page's HTML text.

    Args:
        graph: All its nodes are shown, and its 20,000 strongest edges by absolute contribution.
        left_out: A sentence for the caption, if nodes were left out already.
    """
    folder = resources.files(__name__)
    title = f"{graph.provenance.get('metric', 'metric')} = {number(graph.metric_value)}"
    parts = {
        "title": html.escape(visible(title)),
        "style": (folder / "style.css").read_text("utf-8"),
        "script": (folder / "page.js").read_text("utf-8"),
        "data": as_script_data(page_data(graph, left_out)),
    }
    template = (folder / "template.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def as_script_data(value: Any) -> str:
    """`value` as JSON that can stand inside a `<script>` element, which it cannot end."""
    text = json.dumps(value, allow_nan=False)  # ASCII: no line separators either
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def page_data(graph: AttributionGraph, left_out: str) -> dict[str, Any]:
    """Everything the script draws; lengths are pixels, y grows downwards."""
    plan = layout(graph)
    index = {node: i for i, node in enumerate(graph.digraph)}
    edges = sorted(graph.digraph.edges(data=True), key=lambda edge: -abs(edge[2]["contribution"]))
    if len(edges) > MAX_EDGES:
        left_out += f" The {MAX_EDGES:,} strongest of {len(edges):,} edges are on this page."
        edges = edges[:MAX_EDGES]
    return {
        "caption": caption(graph, left_out=left_out.strip()),
        "provenance": graph.provenance,
        "width": plan.width,
        "height": plan.height,
        "margin": plan.columns[0].start - GAP,
        "rows": [
            {
                "name": row.name,
                "layer": row.layer,
                "y": plan.height - row.end,
                "h": row.end - row.start,
            }
            for row in plan.rows
        ],
        "columns": [
            {
                "name": fit(column.name.strip(), COLUMN_SIZE, column.end - column.start - 4),
                "x": column.start,
                "middle": (column.start + column.end) / 2,
            }
            for column in plan.columns
        ],
        "nodes": [_node(node, graph, plan) for node in index],
        "edges": [
            [index[s], index[t], *(attributes[name] for name in EDGE_NUMBERS)]
            for s, t, attributes in edges
        ],
    }


EDGE_NUMBERS = ("weight", "contribution", "query_key")
"""What the page knows of each edge, after its two ends."""


def _node(node: Node, graph: AttributionGraph, plan: Layout) -> dict[str, Any]:
    box = plan.boxes[node]
    attributes = graph.digraph.nodes[node]
    pos = None if isinstance(node, BiasNode | LogitNode) else node.pos
    return {
        "kind": NODE_WORDS[type(node)],
        "name": visible(str(node)),
        "pos": pos,
        "word": None if pos is None else visible(graph.words[pos]),
        "text": _text(node, attributes, graph, box.width - 8),
        **attributes,
        "label": attributes["label"] and visible(attributes["label"]),
        "x": box.x,
        "y": plan.height - box.y,
        "w": box.width,
        "h": box.height,
    }


def _text(
    node: Node, attributes: dict[str, Any], graph: AttributionGraph, room: float
) -> list[tuple[str, str]]:
    """The lines in a node's box, each with the class of its type."""
    effect = ("number", effect_text(attributes))
    match node:
        case TokenNode(pos):
            return [("word", fit(visible(graph.words[pos]).strip(), WORD_SIZE, room))]
        case LogitNode(name):
            value = ("number", output_text(graph, attributes))
            return [("output", fit(visible(name), LOGIT_SIZE, room, bold=True)), value]
        case ErrorNode() | BiasNode():
            return [("name", NODE_WORDS[type(node)]), effect]
    label = label_lines(attributes["label"], LABEL_SIZE, room)
    name = ("name", fit(short_name(node), NAME_SIZE, room))
    return [name, *(("label", line) for line in label), effect]
