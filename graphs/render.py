"""Draw a graph: `.html` to explore, `.svg`, `.png` and `.pdf` to print, `.dot` to edit."""

import dataclasses
from pathlib import Path

from circuits.errors import UserError
from circuits.files import check_writable, write_atomically
from circuits.nodes import LogitNode, TokenNode
from circuits.whole_numbers import whole_number
from graphs.adjacency import check_graph
from graphs.dot import dot_source
from graphs.engine import draw
from graphs.graph import AttributionGraph, plural, restrict
from graphs.page import page

MAX_NODES = {".html": 600, ".svg": 150, ".png": 150, ".pdf": 150, ".dot": 150}


def render(
    graph: AttributionGraph,
    path: str | Path,
    *,
    overwrite: bool = False,
    max_nodes: int | None = None,
) -> Path:
    """Draw `graph` in the format that the end of `path` names.

    Columns are tokens, rows are layers and sites, colour is the sign of the effect. Pictures come
    from Graphviz, the system's if `neato` is on the path, else the one inside pygraphviz; the HTML
    page is one file that needs no network.

    Args:
        graph: Usually pruned.
        path: Ends in .html, .svg, .png, .pdf or .dot.
        overwrite: Replace an existing file.
        max_nodes: Of a larger graph, draw the tokens, the output and the most influential others,
            this many in all, and say so in the caption. 150 by default, 600 on the HTML page.

    Raises:
        UserError: another suffix, a path that cannot be written, or Graphviz fails.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in MAX_NODES:
        raise UserError(f"cannot draw {path.name}; its name must end in {', '.join(MAX_NODES)}")
    check_graph(graph)
    check_writable(path, overwrite=overwrite)
    limit = MAX_NODES[suffix] if max_nodes is None else max_nodes
    shown = strongest(graph, limit)
    hidden = len(graph.digraph) - len(shown.digraph)
    left_out = ""
    if hidden:
        left_out = f"{plural(hidden, 'node')} of least influence left out (max_nodes={limit})."
    if suffix == ".html":
        content = page(shown, left_out=left_out)
    elif suffix == ".dot":
        content = dot_source(shown, left_out=left_out)
    else:
        source = dot_source(shown, bitmap=suffix == ".png", left_out=left_out)
        content = draw(source, suffix[1:])
    return write_atomically(path, content, overwrite=overwrite)


def strongest(graph: AttributionGraph, n: int) -> AttributionGraph:
    """The part of `graph` on its tokens, its output and its most influential nodes, `n` in all."""
    n = whole_number("max_nodes", n)
    nodes = graph.digraph.nodes
    ranked = sorted(
        nodes,
        key=lambda node: (not isinstance(node, TokenNode | LogitNode), -nodes[node]["influence"]),
    )
    fixed = sum(isinstance(node, TokenNode | LogitNode) for node in nodes)
    if len(ranked) <= max(n, fixed):
        return graph
    return dataclasses.replace(graph, digraph=restrict(graph, set(ranked[: max(n, fixed)])))
