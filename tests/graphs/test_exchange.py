import dataclasses
import json

import networkx as nx
import pytest

from circuits.errors import UserError
from circuits.nodes import LogitNode
from graphs import AttributionGraph, prune
from tests.graphs.synthetic import random_graph, with_attributes

NASTY = 'a "b" \\ \n \t </script> → \ud800 @ / 日本'


def small() -> AttributionGraph:
    graph = random_graph(0, n_layers=2, n_latents=10, n_words=4)
    first, second, *_ = graph.latents()
    return with_attributes(
        graph, label={first: NASTY}, measured={first: 1 / 3, second: -1e-300}, act={second: 5e-324}
    )


def same(a: AttributionGraph, b: AttributionGraph) -> bool:
    return (
        list(a.digraph.nodes(data=True)) == list(b.digraph.nodes(data=True))
        and list(a.digraph.edges(data=True)) == list(b.digraph.edges(data=True))
        and (a.words, a.metric_value, a.provenance) == (b.words, b.metric_value, b.provenance)
    )


def test_loading_what_was_saved_gives_the_same_graph(tmp_path):
    graph = small()
    assert graph.save(tmp_path / "g.json") == tmp_path / "g.json"
    loaded = AttributionGraph.load(tmp_path / "g.json")
    assert same(loaded, graph)
    assert nx.is_frozen(loaded.digraph)
    pruned = prune(graph)
    pruned.save(tmp_path / "pruned.json")
    assert same(AttributionGraph.load(tmp_path / "pruned.json"), pruned)


def test_names_of_outputs_survive(tmp_path):
    graph = small()
    digraph = nx.relabel_nodes(
        nx.DiGraph(graph.digraph), {node: LogitNode(NASTY) for node in [LogitNode("Mary - John")]}
    )
    # relabelling puts the new node last, where an output belongs
    named = dataclasses.replace(graph, digraph=digraph, words=(NASTY, *graph.words[1:]))
    named.save(tmp_path / "g.json")
    assert same(AttributionGraph.load(tmp_path / "g.json"), named)


@pytest.mark.parametrize("field", ["effect", "measured"])
def test_nan_is_refused_and_nothing_is_written(tmp_path, field):
    graph = small()
    graph = with_attributes(graph, **{field: {graph.latents()[0]: float("nan")}})
    with pytest.raises(UserError, match="NaN or an infinity"):
        graph.save(tmp_path / "g.json")
    assert not list(tmp_path.iterdir())


def test_provenance_must_be_json(tmp_path):
    graph = dataclasses.replace(small(), provenance={"model": {1, 2}})
    with pytest.raises(UserError, match="provenance is not JSON"):
        graph.save(tmp_path / "g.json")


def test_existing_files_and_other_suffixes_are_refused(tmp_path):
    graph, path = small(), tmp_path / "g.json"
    path.write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        graph.save(path)
    assert path.read_text() == "mine"
    graph.save(path, overwrite=True)
    assert same(AttributionGraph.load(path), graph)
    with pytest.raises(UserError, match=r"saved as \.json"):
        graph.save(tmp_path / "g.pt")
    with pytest.raises(UserError, match="does not exist"):
        graph.save(tmp_path / "nowhere" / "g.json")


def change(tmp_path, edit) -> str:
    path = small().save(tmp_path / "g.json")
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return str(path)


def test_a_bad_file_is_refused_in_one_sentence(tmp_path):
    load = AttributionGraph.load
    with pytest.raises(UserError, match="no file"):
        load(tmp_path / "missing.json")
    with pytest.raises(UserError, match="cannot read"):
        load(tmp_path)
    text = small().save(tmp_path / "g.json").read_text()
    for content in ("", text[: len(text) // 2], text.replace("0.", "NaN, 0.", 1)):
        (tmp_path / "g.json").write_text(content)
        with pytest.raises(UserError, match="not whole JSON"):
            load(tmp_path / "g.json")
    (tmp_path / "g.json").write_bytes(b"\x80\x04\x95pickle")
    with pytest.raises(UserError, match="not whole JSON"):
        load(tmp_path / "g.json")
    for content in ("[1, 2]", '{"format": "other"}', "3"):
        (tmp_path / "g.json").write_text(content)
        with pytest.raises(UserError, match="no attribution graph"):
            load(tmp_path / "g.json")


DAMAGE = {
    "column missing": lambda c: c["nodes"].pop("effect"),
    "column short": lambda c: c["edges"]["weight"].pop(),
    "unknown node": lambda c: c["nodes"]["name"].__setitem__(0, "nonsense"),
    "node twice": lambda c: c["nodes"]["name"].__setitem__(0, c["nodes"]["name"][1]),
    "edge backwards": lambda c: c["edges"]["target"].__setitem__(0, 0),
    "edge to nowhere": lambda c: c["edges"]["target"].__setitem__(0, 10**6),
    "edge not a number": lambda c: c["edges"]["source"].__setitem__(0, "first"),
    "weight not a number": lambda c: c["edges"]["weight"].__setitem__(0, "heavy"),
    "weight missing": lambda c: c["edges"]["weight"].__setitem__(0, None),
    "label a number": lambda c: c["nodes"]["label"].__setitem__(0, 3),
    "no words": lambda c: c.pop("words"),
    "provenance a list": lambda c: c.__setitem__("provenance", [1]),
}


@pytest.mark.parametrize("edit", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_noticed(tmp_path, edit):
    with pytest.raises(UserError, match="is damaged"):
        AttributionGraph.load(change(tmp_path, edit))


def test_another_schema_is_refused(tmp_path):
    path = change(tmp_path, lambda content: content.__setitem__("schema", 4))
    with pytest.raises(UserError, match="has schema 4 and this version reads schemas 1 to 3"):
        AttributionGraph.load(path)


def test_edges_of_a_file_of_the_second_schema_are_against_zero(tmp_path):
    def as_second(content):
        content["schema"] = 2
        content["nodes"].pop("change")

    old = AttributionGraph.load(change(tmp_path, as_second)).digraph
    for node, attributes in small().digraph.nodes(data=True):
        assert old.nodes[node] == {**attributes, "change": attributes["act"]}


def test_a_file_of_the_first_schema_has_its_gradients_in_its_edges(tmp_path):
    def as_first(content):
        content["schema"] = 1
        content["nodes"].pop("grad")
        content["nodes"].pop("change")

    graph = small()
    old = AttributionGraph.load(change(tmp_path, as_first))
    assert list(old.digraph.edges(data=True)) == list(graph.digraph.edges(data=True))
    for node, attributes in graph.digraph.nodes(data=True):
        has_inputs = graph.digraph.in_degree(node) or isinstance(node, LogitNode)
        grad = pytest.approx(attributes["grad"], rel=1e-15) if has_inputs else 0.0
        assert old.digraph.nodes[node] == {**attributes, "grad": grad, "change": attributes["act"]}
