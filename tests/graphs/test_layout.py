from itertools import combinations, pairwise

import pytest

import graphs.layout
from circuits.nodes import BiasNode, ErrorNode, LatentNode, LogitNode, TokenNode
from graphs import AttributionGraph, prune
from graphs.layout import layout
from graphs.page import page_data
from graphs.text import width
from tests.graphs.synthetic import random_attribution, random_graph


@pytest.fixture(scope="module")
def plan():
    return layout(random_graph(0, n_latents=150))


def test_no_two_boxes_overlap(plan):
    boxes = plan.boxes.values()
    for a, b in combinations(boxes, 2):
        apart = abs(a.x - b.x) >= (a.width + b.width) / 2 - 1e-6
        above = abs(a.y - b.y) >= (a.height + b.height) / 2 - 1e-6
        assert apart or above


def test_columns_are_tokens_and_rows_are_sites(plan):
    rows = {row.name: row for row in plan.rows}
    columns = dict(zip(range(-1, 20), plan.columns, strict=True))
    assert columns[-1].name == "bias"
    for node, box in plan.boxes.items():
        match node:
            case LatentNode(site, _, pos) | ErrorNode(site, pos):
                row, column = rows[str(site)], columns[pos]
            case BiasNode(site):
                row, column = rows[str(site)], columns[-1]
            case TokenNode(pos):
                row, column = rows["tokens"], columns[pos]
            case LogitNode():
                row, column = rows["output"], columns[19]
        assert row.start < box.y - box.height / 2 < box.y + box.height / 2 < row.end
        assert column.start < box.x - box.width / 2 < box.x + box.width / 2 < column.end


def test_rows_follow_the_forward_pass_and_edges_run_upwards(plan):
    names = [row.name for row in plan.rows]
    sites = [f"{kind}.{layer}" for layer in range(4) for kind in ("attn", "mlp", "resid")]
    assert names == ["tokens", *sites, "output"]
    graph = random_graph(0, n_latents=150)
    for source, target in graph.digraph.edges:
        same_site = isinstance(source, BiasNode) and getattr(target, "site", None) == source.site
        assert plan.boxes[source].y < plan.boxes[target].y or same_site


def test_a_fuller_column_is_wider():
    graph = prune(random_graph(0), keep_influence=0.6)
    plan = layout(graph)
    most = {
        pos: max(
            sum(
                getattr(node, "pos", None) == pos and str(getattr(node, "site", "")) == row.name
                for node in graph.digraph
            )
            for row in plan.rows
        )
        for pos in range(20)
    }
    widths = [band.end - band.start for band in plan.columns[-20:]]
    full = [widths[pos] for pos, n in most.items() if n > 1]
    bare = [widths[pos] for pos, n in most.items() if n == 0]
    assert full
    assert bare
    assert min(full) > max(bare)


def test_outputs_stand_in_one_line_by_weight_that_ends_above_the_last_token():
    several = tuple((f"word {i}", 0.5 / (i + 1)) for i in range(8))
    for n_words in (2, 20):
        made = random_attribution(0, n_latents=30, n_words=n_words, outputs=several)
        places = layout(AttributionGraph.from_attribution(made))
        boxes = [places.boxes[LogitNode(name)] for name, _ in several]
        assert [box.x for box in boxes] == sorted(box.x for box in boxes)
        assert len({box.y for box in boxes}) == 1
        assert all(a.x + a.width / 2 < b.x - b.width / 2 for a, b in pairwise(boxes))
        assert boxes[-1].x + boxes[-1].width / 2 < places.columns[-1].end == places.width
        assert boxes[0].x - boxes[0].width / 2 > places.columns[0].start


@pytest.mark.parametrize("kinds", [("resid",), ("attn", "transcoder")])
def test_the_names_of_rows_end_before_the_first_column(kinds):
    """At the sizes at which both pictures set them, and the page's rectangle backs them."""
    graph = random_graph(0, n_layers=12, n_latents=40, n_words=5, kinds=kinds)
    plan, data = layout(graph), page_data(graph, "")
    names = {row.name for row in plan.rows}
    assert f"{kinds[-1]}.11" in names
    assert data["margin"] < plan.columns[0].start
    for name in names:
        assert 5 + width(name, 8.5) < data["margin"]  # 8.5 in style.css
        assert 4 + 1.05 * width(name, 8.0) + 4 < plan.columns[0].start


def test_a_plan_that_fits_is_the_last_one_made(monkeypatch):
    made = []

    def counted(graph, per_line, place=graphs.layout._layout):
        made.append(place(graph, per_line))
        return made[-1]

    monkeypatch.setattr(graphs.layout, "_layout", counted)
    small, large = (random_graph(0, n_latents=n, n_words=m) for n, m in ((6, 3), (600, 20)))
    assert layout(small) is made[0]
    assert len(made) == 1
    made.clear()
    assert layout(large) is made[-1]
    assert 1 < len(made) <= len(graphs.layout.PER_LINE)
    assert all(plan.width > graphs.layout.WIDEST for plan in made[:-1])
