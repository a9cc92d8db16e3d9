"""Where every node goes: a column for each token, a row for each layer and site.

Tokens are at the bottom, the output on top, so every edge runs upwards. Nodes that share a cell
stand side by side, strongest effect first, on further lines when there are many; columns are as
wide and rows as high as their fullest cell. Several outputs stand in one line, largest weight
first, that ends above the last token and reaches over other columns. Units are points, y grows
upwards, boxes are given by their centres.
"""

import math
from collections import defaultdict
from dataclasses import dataclass

from circuits.nodes import BiasNode, ErrorNode, LatentNode, LogitNode, Node, TokenNode
from circuits.sites import ALL_KINDS, Site
from graphs.graph import AttributionGraph
from graphs.text import visible, width

GAP = 6.0
ROW_GAP = 34.0
LATENT = (86.0, 38.0)
ERROR = (64.0, 38.0)
BIAS = (62.0, 28.0)
WORD_SIZE, LOGIT_SIZE, ROW_SIZE = 9.0, 10.0, 8.5
PER_LINE, WIDEST = (8, 6, 4, 3, 2), 1500.0  # side by side in a cell; wider plans use fewer
OUTPUT = (math.inf, 0)  # the row above all sites
IN_CELL = (LatentNode, BiasNode, ErrorNode, TokenNode, LogitNode)


@dataclass(frozen=True)
class Box:
    """A node's place: its centre and its size."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Band:
    """A row or column: its name, its extent and, for the row of a site, the layer."""

    name: str
    start: float
    end: float
    layer: int | None = None


@dataclass(frozen=True)
class Layout:
    """The whole picture: boxes by node, rows from the bottom up, columns from the left.

    The names of rows are left of the first column.
    """

    boxes: dict[Node, Box]
    rows: tuple[Band, ...]
    columns: tuple[Band, ...]
    width: float
    height: float


def layout(graph: AttributionGraph) -> Layout:
    """Place the nodes of `graph`, as many side by side in a cell as a page is wide."""
    *more, fewest = PER_LINE
    for per_line in more:
        plan = _layout(graph, per_line)
        if plan.width <= WIDEST:
            return plan
    return _layout(graph, fewest)


def _layout(graph: AttributionGraph, per_line: int) -> Layout:
    """Place the nodes of `graph`, at most `per_line` side by side in a cell."""
    cells = _cells(graph)
    lines = {key: _lines(nodes, graph, per_line) for key, nodes in cells.items()}
    rows = _rows(lines)
    margin = max(width(row.name, ROW_SIZE) for row in rows.values()) + 2.5 * GAP
    columns = _columns(lines, graph, margin)
    boxes = {}
    for (row, column), stacked in lines.items():
        _place(stacked, graph, rows[row], columns[column], boxes)
    return Layout(
        boxes={node: boxes[node] for node in graph.digraph},
        rows=tuple(rows.values()),
        columns=tuple(columns.values()),
        width=max(band.end for band in columns.values()),
        height=max(band.end for band in rows.values()),
    )


def size(node: Node, graph: AttributionGraph) -> tuple[float, float]:
    """Width and height of a node's box."""
    match node:
        case LatentNode():
            return LATENT
        case ErrorNode():
            return ERROR
        case BiasNode():
            return BIAS
        case TokenNode(pos):
            return max(
                30.0, min(110.0, width(visible(graph.words[pos]).strip(), WORD_SIZE) + 12)
            ), 22.0
        case LogitNode(name):
            return max(90.0, min(260.0, width(visible(name), LOGIT_SIZE, bold=True) + 20)), 40.0


def _cells(graph: AttributionGraph) -> dict[tuple, list[Node]]:
    """Nodes by (row, column): a row is a site's order, tokens below and output above all sites."""
    last = len(graph.words) - 1
    cells = defaultdict(list)
    for node in graph.digraph:
        match node:
            case TokenNode(pos):
                key = (-1, 0), pos
            case LogitNode():
                key = OUTPUT, last
            case BiasNode(site):
                key = site.order, -1
            case LatentNode(site, _, pos) | ErrorNode(site, pos):
                key = site.order, pos
        cells[key].append(node)
    return cells


def _lines(nodes: list[Node], graph: AttributionGraph, per_line: int) -> list[list[Node]]:
    """A cell's nodes, strongest first and errors last, cut into lines of nearly equal length."""

    def strength(node: Node) -> float:
        attributes = graph.digraph.nodes[node]
        return abs(attributes["grad" if isinstance(node, LogitNode) else "effect"])

    ordered = sorted(nodes, key=lambda node: (IN_CELL.index(type(node)), -strength(node)))
    if isinstance(nodes[0], LogitNode):
        return [ordered]
    n_lines = math.ceil(len(ordered) / per_line)
    length = math.ceil(len(ordered) / n_lines)
    return [ordered[i : i + length] for i in range(0, len(ordered), length)]


def _rows(lines: dict[tuple, list[list[Node]]]) -> dict[tuple, Band]:
    bands, bottom = {}, 0.0
    for row in sorted({row for row, _ in lines}):
        here = [stacked for (other, _), stacked in lines.items() if other == row]
        height = LATENT[1] if row[0] >= 0 else 22.0
        most = max(len(stacked) for stacked in here)
        end = bottom + most * height + (most - 1) * GAP + ROW_GAP
        name, layer = _row_name(row)
        bands[row] = Band(name, bottom, end, layer)
        bottom = end
    return bands


def _row_name(row: tuple) -> tuple[str, int | None]:
    if row[0] == -1:
        return "tokens", None
    if row == OUTPUT:
        return "output", None
    return str(Site(row[0], ALL_KINDS[row[1]])), row[0]


def _columns(
    lines: dict[tuple, list[list[Node]]], graph: AttributionGraph, margin: float
) -> dict[int, Band]:
    first = -1 if any(column == -1 for _, column in lines) else 0
    widths = dict.fromkeys(range(first, len(graph.words)), 30.0)
    outputs: list[Node] = []
    for (row, column), stacked in lines.items():
        if row == OUTPUT:  # reaches over other columns, but no box is wider than its own
            outputs = stacked[0]
            stacked = [[node] for node in outputs]
        widths[column] = max(widths[column], *(_line_width(line, graph) for line in stacked))
    missing = _line_width(outputs, graph) - sum(w + 2 * GAP for w in widths.values())
    widths[len(graph.words) - 1] += max(0.0, missing + 2 * GAP)

    bands, left = {}, margin
    for column, wide in widths.items():
        name = "bias" if column == -1 else visible(graph.words[column])
        bands[column] = Band(name, left, left + wide + 2 * GAP)
        left = bands[column].end
    return bands


def _line_width(line: list[Node], graph: AttributionGraph) -> float:
    return sum(size(node, graph)[0] for node in line) + GAP * (len(line) - 1)


def _place(
    stacked: list[list[Node]],
    graph: AttributionGraph,
    row: Band,
    column: Band,
    boxes: dict[Node, Box],
) -> None:
    """Centre the lines of one cell in it, the first line on top; one too wide overhangs left."""
    heights = [max(size(node, graph)[1] for node in line) for line in stacked]
    top = (row.start + row.end + sum(heights) + GAP * (len(heights) - 1)) / 2
    for line, height in zip(stacked, heights, strict=True):
        wide = _line_width(line, graph)
        left = min((column.start + column.end - wide) / 2, column.end - GAP - wide)
        for node in line:
            own_width, own_height = size(node, graph)
            boxes[node] = Box(left + own_width / 2, top - height / 2, own_width, own_height)
            left += own_width + GAP
        top -= height + GAP
