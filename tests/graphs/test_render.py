import json
import re
import sys
from html.parser import HTMLParser
from typing import Any, cast
from xml.etree import ElementTree

import pygraphviz
import pytest

from circuits.errors import UserError
from circuits.nodes import ErrorNode, LatentNode, LogitNode, TokenNode
from circuits.sites import Site
from graphs import AttributionGraph, prune, render
from graphs.engine import draw
from graphs.text import number, visible
from tests.graphs.synthetic import (
    TEXT,
    THREE,
    attribution,
    random_attribution,
    random_graph,
    with_attributes,
)

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = [
    "<bos>",
    '"',
    "\\",
    "\\N",
    "a\nb",
    "&lt;",
    "</script><script>alert(1)</script>",
    "<!--",
    "日本",
    "\x07",
    "\ud83d",
    "",
    "   ",
    "{{data}}",
    "é|{}<>]]>",
    "'",
    "\u2028",
    "🙂",
    "%s",
    "n:w",
]


@pytest.fixture(scope="module")
def circuit() -> AttributionGraph:
    graph = prune(random_graph(0), keep_influence=0.8, keep_edges=0.9)
    labels = dict.fromkeys(graph.latents(), "Mary John she | on gave handed")
    return with_attributes(graph, label=labels, measured={graph.latents()[0]: 0.125})


@pytest.fixture(scope="module")
def hostile() -> AttributionGraph:
    """Every text that a tokenizer or a user can come up with, in every place that shows text."""
    nodes = [TokenNode(i) for i in range(len(HOSTILE))]
    latents = [LatentNode(Site(0, "mlp"), i, i) for i in range(len(HOSTILE))]
    nodes += [*latents, ErrorNode(Site(0, "mlp"), 3), LogitNode(' "<b>\\N\n|</script>:')]
    n = len(HOSTILE)
    edges = {(i, n + i): 1.0 for i in range(n)} | {(n + i, 2 * n + 1): -1.0 for i in range(n)}
    graph = AttributionGraph.from_attribution(attribution(nodes, edges, words=HOSTILE))
    return with_attributes(graph, label=dict(zip(latents, HOSTILE, strict=True)))


def svg_texts(path) -> list[str]:
    return [element.text or "" for element in ElementTree.parse(path).iter(f"{SVG}text")]


def dot_shapes(path) -> dict[str, str]:
    """The shape of every node by its name, as Graphviz reads the file (legend left out)."""
    graph = pygraphviz.AGraph(string=path.read_text())  # nodes live as long as it does
    nodes: list[Any] = graph.nodes()
    # DOT doubles backslashes, and pygraphviz leaves it at that
    return {
        node.attr["node"].replace("\\\\", "\\"): node.attr["shape"]
        for node in nodes
        if node.attr["node"]
    }


@pytest.mark.parametrize("name", ["circuit", "hostile"])
def test_every_format_is_what_it_says(tmp_path, request, name):
    graph = request.getfixturevalue(name)
    for suffix in ("svg", "png", "pdf", "dot", "html"):
        assert render(graph, tmp_path / f"g.{suffix}") == tmp_path / f"g.{suffix}"
    assert ElementTree.parse(tmp_path / "g.svg").getroot().tag == f"{SVG}svg"
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (tmp_path / "g.png").stat().st_size > 10_000
    assert (tmp_path / "g.pdf").read_bytes().startswith(b"%PDF-")
    assert set(dot_shapes(tmp_path / "g.dot")) == {visible(str(node)) for node in graph.digraph}


def test_the_picture_says_what_the_graph_says(tmp_path, circuit):
    texts = svg_texts(render(circuit, tmp_path / "g.svg"))
    for word in set(TEXT.split()):
        assert word in texts
    strongest = circuit.latents()[0]
    assert texts.count("on gave handed") == len(circuit.latents())
    assert f"{strongest.site}/{strongest.latent}" in texts
    assert any(text.endswith(" / +0.125") for text in texts)
    assert "error" in texts
    assert "+3.25" in texts
    caption = " ".join(texts)
    for part in ("synthetic", "logit diff Mary - John", "downstream recompute", "norms frozen"):
        assert part in caption


def test_several_outputs_show_their_weights_and_one_the_metrics_value(tmp_path, circuit):
    made = random_attribution(0, n_layers=2, n_latents=20, n_words=5, outputs=THREE)
    several = prune(made)
    texts = svg_texts(render(several, tmp_path / "three.svg"))
    nodes = page_nodes(render(several, tmp_path / "three.html"))
    for name, weight in THREE:
        assert f"weight {number(weight)}" in texts
        assert nodes[f"logit/{name}"]["grad"] == pytest.approx(weight)
        assert nodes[f"logit/{name}"]["text"][1] == ["number", f"weight {number(weight)}"]
    one = page_nodes(render(circuit, tmp_path / "one.html"))["logit/Mary - John"]
    assert one["text"][1] == ["number", "+3.25"]


def page_nodes(path) -> dict[str, dict[str, Any]]:
    """What the page knows of each node, by its name."""
    return {node["name"]: node for node in json.loads(Page(path.read_text()).data)["nodes"]}


def test_hostile_texts_are_shown_as_they_are(tmp_path, hostile):
    texts = svg_texts(render(hostile, tmp_path / "g.svg"))
    for shown in ('"', "\\", "\\N", "a↵b", "&lt;", "<!--", "日本", "�", "é|{}<>]]>", "n:w", "🙂"):
        assert shown in texts


def test_positive_is_blue_and_negative_is_red(tmp_path):
    nodes = [TokenNode(0), LatentNode(Site(0, "mlp"), 1, 0), LogitNode("a")]
    made = attribution(nodes, {(0, 1): 1.0, (1, 2): -1.0}, words=("<bos>",))
    made.effects[:2] = made.effects.new_tensor([1.0, -1.0])
    source = render(AttributionGraph.from_attribution(made), tmp_path / "g.dot").read_text()
    token, latent = (
        re.search(rf'^\tn{i} .*fillcolor="#(..)(..)(..)"', source, re.MULTILINE) for i in (0, 1)
    )
    assert token is not None
    assert latent is not None
    assert token[3] > token[1]  # more blue than red
    assert latent[1] > latent[3]


def test_errors_are_diamonds_and_tokens_are_boxes(tmp_path, hostile):
    shapes = dot_shapes(render(hostile, tmp_path / "g.dot"))
    assert shapes["mlp.0/error@3"] == "diamond"
    assert shapes["token@1"] == "box"


def test_an_existing_file_is_refused_and_left_alone(tmp_path, circuit):
    for suffix in ("svg", "html"):
        path = tmp_path / f"g.{suffix}"
        path.write_text("mine")
        with pytest.raises(UserError, match="exists already"):
            render(circuit, path)
        assert path.read_text() == "mine"
        render(circuit, path, overwrite=True)
        assert path.read_text() != "mine"


def test_a_path_that_cannot_be_written_is_refused(tmp_path, circuit):
    with pytest.raises(UserError, match="does not exist"):
        render(circuit, tmp_path / "nowhere" / "g.svg")
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        render(circuit, tmp_path / "folder.svg")


@pytest.mark.parametrize("suffix", [".html", ".svg", ".dot"])
def test_a_suffix_in_capitals_is_the_same(tmp_path, circuit, suffix):
    small = render(circuit, tmp_path / f"small{suffix}")
    large = render(circuit, tmp_path / f"large{suffix.upper()}")
    assert large.read_bytes() == small.read_bytes()


@pytest.mark.parametrize("name", ["g.gif", "g", "g.svg.txt"])
def test_another_suffix_is_refused(tmp_path, circuit, name):
    with pytest.raises(UserError, match=r"must end in \.html, \.svg, \.png, \.pdf, \.dot"):
        render(circuit, tmp_path / name)


def test_of_a_large_graph_the_most_influential_nodes_are_drawn(tmp_path):
    graph = random_graph(0)
    path = render(graph, tmp_path / "g.dot", max_nodes=40)
    drawn = set(dot_shapes(path))
    assert len(drawn) == 40
    assert drawn >= {str(node) for node in graph.digraph if isinstance(node, TokenNode | LogitNode)}
    n_left_out = len(graph.digraph) - 40
    assert f"{n_left_out} nodes of least influence left out (max_nodes=40)." in path.read_text()
    for none in (0, "5"):
        with pytest.raises(UserError, match=f"max_nodes={none!r}; give a whole number from 1 on"):
            render(graph, tmp_path / "other.dot", max_nodes=cast(Any, none))


def test_a_system_neato_is_preferred_and_its_failure_is_told(tmp_path, monkeypatch):
    program = tmp_path / "neato"
    program.write_text(f"#!{sys.executable}\nimport sys\nprint(sys.argv[1:])\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert draw("digraph {}", "svg") == b"['-n2', '-Tsvg']\n"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no plugin')\n")
    with pytest.raises(UserError, match=r"could not draw svg \(no plugin\)"):
        draw("digraph {}", "svg")


def test_without_a_system_neato_the_wheels_library_draws(monkeypatch):
    monkeypatch.setenv("PATH", "")
    svg = draw('digraph { a [pos="10,10!", label="Zürich"]; }', "svg").decode()
    assert "Zürich" in svg


class Page(HTMLParser):
    """Counts elements and keeps what is inside `<script type="application/json">`."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.data, self._inside = "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        self._inside = dict(attrs).get("id") == "data"

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        self.data += data if self._inside else ""


@pytest.mark.parametrize("name", ["circuit", "hostile"])
def test_the_page_is_one_file_that_fetches_nothing(tmp_path, request, name):
    text = render(request.getfixturevalue(name), tmp_path / "g.html").read_text()
    assert set(re.findall(r"https?://[^\s\"'<]*", text)) == {"http://www.w3.org/2000/svg"}
    page = Page(text)
    assert page.links == []
    assert page.tags.count("script") == 2
    assert "default-src 'none'" in text
    for loader in ("fetch(", "XMLHttpRequest", "import ", "@import", "url("):
        assert loader not in text


def test_the_page_holds_the_graphs_numbers(tmp_path, circuit):
    data = json.loads(Page(render(circuit, tmp_path / "g.html").read_text()).data)
    by_name = {node["name"]: node for node in data["nodes"]}
    assert set(by_name) == {str(node) for node in circuit.digraph}
    for node, attributes in circuit.digraph.nodes(data=True):
        for name in ("act", "effect", "influence", "label", "measured"):
            assert by_name[str(node)][name] == attributes[name]
    edges = {
        (data["nodes"][s]["name"], data["nodes"][t]["name"]): tuple(numbers)
        for s, t, *numbers in data["edges"]
    }
    assert edges == {
        (str(s), str(t)): (values["weight"], values["contribution"], values["query_key"])
        for s, t, values in circuit.digraph.edges(data=True)
    }
    assert data["provenance"] == circuit.provenance


def test_a_graph_of_tokens_alone_can_be_drawn(tmp_path):
    nodes = [TokenNode(0), LogitNode("a")]
    graph = AttributionGraph.from_attribution(attribution(nodes, {}, words=("<bos>",)))
    for suffix in ("svg", "png", "pdf", "dot", "html"):
        render(graph, tmp_path / f"g.{suffix}")


def test_the_page_knows_what_a_latent_of_the_reference_alone_changes(tmp_path, circuit):
    node = circuit.latents()[0]
    off = with_attributes(circuit, act={node: 0.0}, change={node: -2.5})
    shown = page_nodes(render(off, tmp_path / "g.html"))
    assert (shown[str(node)]["act"], shown[str(node)]["change"]) == (0.0, -2.5)
    others = [values for name, values in shown.items() if name != str(node)]
    assert all(values["change"] == values["act"] for values in others)
