"""A graph as Graphviz DOT, every position fixed, so that `neato -n2` only has to draw it."""

import html
from typing import Any

import graphviz

from circuits.nodes import BiasNode, ErrorNode, LatentNode, LogitNode, Node, TokenNode
from graphs import colours
from graphs.graph import AttributionGraph, plural
from graphs.layout import LOGIT_SIZE, WORD_SIZE, Band, Box, Layout, layout
from graphs.text import (
    caption,
    effect_text,
    fit,
    label_lines,
    output_text,
    short_name,
    visible,
    width,
    wrap,
)

FONT = "DejaVu Sans,Verdana,Arial,sans-serif"
NAME_SIZE, LABEL_SIZE, NUMBER_SIZE, LEGEND_SIZE, CAPTION_SIZE = 6.0, 7.5, 7.0, 8.0, 9.0
DPI, MOST_PIXELS = 200, 7_000  # of a bitmap; vector formats know no pixels
LEAST_WIDTH = 480.0  # for legend and caption, however small the graph
BAND, RULE, GREY = "#f3f3f1", "#dddddb", "#666666"
LEAST_SHARE = 0.01  # of the strongest edge's contribution: weaker edges would be a grey haze


def dot_source(graph: AttributionGraph, *, bitmap: bool = False, left_out: str = "") -> str:
    """The picture of `graph` with legend and caption, as DOT text.

    Args:
        graph: All its nodes are drawn; edges below 1 % of the strongest contribution are not, and
            the caption says how many those are.
        bitmap: Ask for 200 dots an inch (fewer for huge graphs) instead of 72.
        left_out: A sentence for the caption, if nodes were left out already.
    """
    plan = layout(graph)
    edges = sorted(graph.digraph.edges(data="contribution"), key=lambda edge: abs(edge[2]))
    largest = abs(edges[-1][2]) if edges else 0.0
    drawn = [edge for edge in edges if abs(edge[2]) >= LEAST_SHARE * largest and edge[2]]
    if len(drawn) < len(edges):
        weak = plural(len(edges) - len(drawn), "edge")
        left_out += f" {weak} below {LEAST_SHARE:.0%} of the strongest not drawn."

    most = 72 * MOST_PIXELS / max(plan.width, plan.height)
    dot = graphviz.Digraph(
        graph_attr={
            "outputorder": "edgesfirst",
            "splines": "true",
            "bgcolor": "white",
            "pad": "0.15",
            "dpi": f"{min(DPI, most):.0f}" if bitmap else "72",
            "fontname": FONT,
            "_background": _bands(plan),
        },
        node_attr={"fontname": FONT, "fixedsize": "true", "margin": "0", "penwidth": "0.8"},
        edge_attr={"arrowhead": "none"},
    )
    ids = {node: f"n{i}" for i, node in enumerate(graph.digraph)}
    _add_nodes(dot, graph, plan, ids)
    for source, target, contribution in drawn:
        dot.edge(
            ids[source],
            ids[target],
            pos=spline(plan.boxes[source], plan.boxes[target]),
            color=colours.stroke(contribution, largest),
            penwidth=f"{0.4 + 3.6 * abs(contribution) / largest:.2f}",
            tooltip=_plain(f"{source} to {target}: {contribution:+.4g}"),
        )
    for band in plan.rows:
        _text(dot, f"row {band.name}", band.name, 4, (band.start + band.end) / 2, 8.0, GREY)
    _add_legend(dot, graph, plan, caption(graph, left_out=left_out.strip()))
    return dot.source


def spline(source: Box, target: Box) -> str:
    """A curve that leaves a box upwards and arrives from below, as Graphviz writes one."""
    start, end = source.y + source.height / 2, target.y - target.height / 2
    bend = max(12.0, 0.45 * abs(end - start))
    points = [
        (source.x, start),
        (source.x, start + bend),
        (target.x, end - bend),
        (target.x, end),
    ]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _add_nodes(
    dot: graphviz.Digraph, graph: AttributionGraph, plan: Layout, ids: dict[Node, str]
) -> None:
    effects = [
        abs(attributes["effect"])
        for node, attributes in graph.digraph.nodes(data=True)
        if not isinstance(node, LogitNode)
    ]
    largest = max(effects, default=0.0)
    for node, attributes in graph.digraph.nodes(data=True):
        box = plan.boxes[node]
        fill = "#ffffff"
        if not isinstance(node, LogitNode):
            fill = colours.fill(attributes["effect"], largest)
        dot.node(
            ids[node],
            label=_label(node, attributes, graph, box),
            pos=f"{box.x:.1f},{box.y:.1f}!",
            width=f"{box.width / 72:.3f}",
            height=f"{box.height / 72:.3f}",
            fillcolor=fill,
            fontcolor=colours.ink(fill),
            color="#555555",
            tooltip=_plain(_tooltip(node, attributes)),
            node=_plain(str(node)),
            **_shape(node),
        )


def _shape(node: Node) -> dict[str, str]:
    match node:
        case LatentNode():
            return {"shape": "box", "style": "filled,rounded"}
        case ErrorNode():
            return {"shape": "diamond", "style": "filled"}
        case BiasNode():
            return {"shape": "ellipse", "style": "filled"}
        case TokenNode():
            return {"shape": "box", "style": "filled"}
        case LogitNode():
            return {"shape": "box", "style": "filled", "penwidth": "1.8"}


def _label(node: Node, attributes: dict[str, Any], graph: AttributionGraph, box: Box) -> str:
    room = box.width - 8
    effect = effect_text(attributes)
    match node:
        case TokenNode(pos):
            return _stack((fit(visible(graph.words[pos]).strip(), WORD_SIZE, room), WORD_SIZE))
        case LogitNode(name):
            value = output_text(graph, attributes)
            text = fit(visible(name), LOGIT_SIZE, room, bold=True)
            return _stack((text, LOGIT_SIZE, "B"), (value, LABEL_SIZE))
        case ErrorNode():
            return _stack(("error", NAME_SIZE), (fit(effect, NAME_SIZE, room), NAME_SIZE))
        case BiasNode():
            return _stack(("bias", NAME_SIZE), (fit(effect, NAME_SIZE, room), NAME_SIZE))
    label = label_lines(attributes["label"], LABEL_SIZE, room)
    return _stack(
        (fit(short_name(node), NAME_SIZE, room), NAME_SIZE),
        *zip(label, (LABEL_SIZE, LABEL_SIZE), ("B", "I"), strict=False),
        (effect, NUMBER_SIZE),
    )


def _stack(*texts: tuple[str, float] | tuple[str, float, str]) -> str:
    """Lines of text, each at its size and in its style (`B` or `I`), as an HTML-like label."""
    rows = []
    for text, size, *style in texts:
        inner = _escape(text)
        for tag in style:
            inner = f"<{tag}>{inner}</{tag}>"
        rows.append(f'<FONT POINT-SIZE="{size:g}">{inner}</FONT>')
    return f"<{'<BR/>'.join(rows)}>"


def _escape(text: str) -> str:
    # Graphviz replaces \N, \G and so on in HTML-like labels too
    return html.escape(text).replace("\\", "\\\\")


def _tooltip(node: Node, attributes: dict[str, Any]) -> str:
    parts = [str(node), f"effect {attributes['effect']:+.4g}"]
    if attributes["label"]:
        parts.insert(1, attributes["label"])
    if attributes["measured"] is not None:
        parts.append(f"measured {attributes['measured']:+.4g}")
    return ", ".join(parts)


def _bands(plan: Layout) -> str:
    """Every second layer shaded and lines between the columns, in Graphviz' drawing language."""
    left, right = 0.0, plan.width
    drawing = []
    for band in plan.rows:
        if band.layer is not None and band.layer % 2 == 0:
            corners = [(left, band.start), (right, band.start), (right, band.end), (left, band.end)]
            points = " ".join(f"{x:.1f} {y:.1f}" for x, y in corners)
            drawing.append(f"c 7 -{BAND} C 7 -{BAND} P 4 {points}")
    drawing += [_rule(band, plan) for band in plan.columns[1:]]
    return " ".join(drawing)


def _rule(band: Band, plan: Layout) -> str:
    return f"c 7 -{RULE} L 2 {band.start:.1f} 0 {band.start:.1f} {plan.height:.1f}"


def _add_legend(
    dot: graphviz.Digraph, graph: AttributionGraph, plan: Layout, sentences: list[str]
) -> None:
    """Signs with their meaning in rows below the tokens, and the caption below them."""
    room = max(plan.width, LEAST_WIDTH)
    left = plan.columns[0].start
    x, y = left, -18.0
    for i, (sign, meaning) in enumerate(_signs(graph)):
        needed = 26 + width(meaning, LEGEND_SIZE) + 18
        if x + needed > room and x > left:
            x, y = left, y - 16
        dot.node(f"sign {i}", label="", pos=f"{x + 9:.1f},{y:.1f}!", color="#555555", **sign)
        _text(dot, f"meaning {i}", meaning, x + 22, y, LEGEND_SIZE)
        x += needed
    y -= 20
    for i, sentence in enumerate(sentences):
        for j, line in enumerate(wrap(sentence, CAPTION_SIZE, room - left)):
            _text(dot, f"caption {i} {j}", line, left, y, CAPTION_SIZE)
            y -= 13


def _signs(graph: AttributionGraph) -> list[tuple[dict[str, str], str]]:
    blue, red = colours.fill(1.0, 1.0), colours.fill(-1.0, 1.0)
    box = {"shape": "box", "width": "0.25", "height": "0.14"}
    line = {"shape": "box", "width": "0.25", "height": "0.03", "penwidth": "0", "style": "filled"}
    numbers = [attributes["measured"] for _, attributes in graph.digraph.nodes(data=True)]
    signs = [
        ({**box, "style": "filled", "fillcolor": blue}, "raises the output"),
        ({**box, "style": "filled", "fillcolor": red}, "lowers it"),
        ({**line, "fillcolor": blue}, "edge that raises it"),
        ({**line, "fillcolor": red}, "edge that lowers it; the wider the stronger"),
        ({**box, "style": "rounded"}, "latent: promoted words | words it fires on"),
        ({"shape": "diamond", "width": "0.25", "height": "0.2"}, "reconstruction error"),
        ({**box, "shape": "ellipse"}, "bias"),
    ]
    if any(value is not None for value in numbers):
        signs.append(({**box, "style": "invis"}, "numbers: attributed / measured effect"))
    return signs


def _text(
    dot: graphviz.Digraph,
    name: str,
    text: str,
    x: float,
    y: float,
    size: float,
    colour: str = "#222222",
) -> None:
    """A line of text whose left edge is at `x`, centred on `y`."""
    room = 1.05 * width(text, size) + 4  # some slack: renderers round glyphs to whole pixels
    dot.node(
        name,
        label=_plain(text) + "\\l",
        pos=f"{x + room / 2:.1f},{y:.1f}!",
        shape="plaintext",
        width=f"{room / 72:.3f}",
        height=f"{1.4 * size / 72:.3f}",
        fontsize=f"{size:g}",
        fontcolor=colour,
    )


def _plain(text: str) -> str:
    """For a quoted string of DOT, where a backslash and an ampersand begin an escape."""
    return visible(text).replace("&", "&amp;").replace("\\", "\\\\")
