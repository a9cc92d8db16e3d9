"""The file for viewers has all of the graph, in the words that viewers read.

The schema is Neuronpedia's. What the viewers do beyond it was read in their sources: they know a
node by `layer`, `feature` and `ctx_idx` together, a latent's number by Cantor's pair, and cut an
output's name and probability out of its `clerp`.
"""

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from jsonschema import Draft7Validator

from attribution import attribute, top_logits
from circuits import load
from circuits.catalogue import catalogue, choose_files
from circuits.errors import UserError
from circuits.nodes import BiasNode, ErrorNode, LatentNode, LogitNode, Node, TokenNode, parse_node
from circuits.sites import ALL_KINDS, Site
from graphs import AttributionGraph, export, label_latents, prune
from tests.graphs.synthetic import THREE, attribution, random_graph, with_attributes

SCHEMA = json.loads((Path(__file__).parent / "fixtures/neuronpedia_graph_schema.json").read_text())
TEXT = "when Mary and John went to the store , John gave a drink to"


@pytest.fixture
def exported(tmp_path):
    def content(graph: AttributionGraph, **options) -> dict:
        path = export(graph, tmp_path / "graph.json", overwrite=True, **options)
        return json.loads(path.read_text())

    return content


def five_kinds() -> AttributionGraph:
    """A latent, an error and a bias of every kind of site, in two layers."""
    sites = [Site(0, "embed"), *(Site(i, kind) for i in (0, 1) for kind in ALL_KINDS[1:])]
    nodes: list[Node] = [TokenNode(0), TokenNode(1)]
    for site in sites:
        nodes += [BiasNode(site), LatentNode(site, 3, 1), ErrorNode(site, 1)]
    nodes.append(LogitNode("Mary - John"))
    edges = {(i, len(nodes) - 1): 0.1 * i - 1 for i in range(len(nodes) - 1)}
    return AttributionGraph.from_attribution(attribution(nodes, edges))


def crowded() -> AttributionGraph:
    """Nodes whose ids are the same where viewers make them of layer, number and position alone."""
    site, later = Site(0, "transcoder"), Site(3, "transcoder")
    nodes = [TokenNode(0), TokenNode(1), LatentNode(site, 3, 1), LatentNode(site, 0, 0)]
    nodes += [ErrorNode(site, 0), BiasNode(site), LatentNode(later, 0, 1), ErrorNode(later, 1)]
    nodes += [LogitNode("logit a"), LogitNode("logit a @1")]
    edges = {(i, 8): 1.0 + i for i in range(8)}
    return AttributionGraph.from_attribution(attribution(nodes, edges))


GRAPHS = {
    "three sites a layer": lambda: random_graph(0),
    "pruned": lambda: prune(random_graph(1), keep_influence=0.6),
    "transcoders": lambda: random_graph(2, kinds=("transcoder",)),
    "with transcoders": lambda: random_graph(3, kinds=("attn", "transcoder", "resid")),
    "three outputs": lambda: random_graph(4, outputs=THREE),
    "five kinds": five_kinds,
    "same ids": crowded,
}


@pytest.fixture(params=GRAPHS.values(), ids=list(GRAPHS))
def graph(request) -> AttributionGraph:
    return request.param()


def read_back(content: dict, kinds: list[str], outputs: list[LogitNode]) -> dict[str, Node]:
    """The nodes by their ids, from the fields that viewers read; errors and biases by their ids."""
    nodes = {}
    for told in content["nodes"]:
        match told["feature_type"]:
            case "embedding":
                node = TokenNode(told["ctx_idx"])
            case "cross layer transcoder":
                row, latent = unpaired(told["feature"])
                assert told["layer"] == str(row)
                site = Site(row // len(kinds), kinds[row % len(kinds)])
                node = LatentNode(site, latent, told["ctx_idx"])
            case "logit":
                node = outputs[told["feature"]]
            case "mlp reconstruction error":
                node = parse_node(told["node_id"])
        nodes[told["node_id"]] = node
    return nodes


def unpaired(z: int) -> tuple[int, int]:
    """As both viewers undo Cantor's pair."""
    w = (math.isqrt(8 * z + 1) - 1) // 2
    y = z - (w * w + w) // 2
    return w - y, y


def sites_of(graph: AttributionGraph) -> set[Site]:
    return {node.site for node in graph.digraph if not isinstance(node, TokenNode | LogitNode)}


def test_the_file_fits_the_schema(graph, exported):
    assert not list(Draft7Validator(SCHEMA).iter_errors(exported(graph)))


def test_every_node_and_edge_is_there_and_nothing_else(graph, exported):
    content = exported(graph)
    there = {site.kind for site in sites_of(graph)}
    outputs = [node for node in graph.digraph if isinstance(node, LogitNode)]
    nodes = read_back(content, [kind for kind in ALL_KINDS if kind in there], outputs)
    assert Counter(nodes.values()) == Counter(graph.digraph)
    assert len(content["links"]) == graph.digraph.number_of_edges()
    assert {
        (nodes[link["source"]], nodes[link["target"]]): link["weight"] for link in content["links"]
    } == {(s, t): weight for s, t, weight in graph.digraph.edges(data="weight")}
    for told in content["nodes"]:
        node = nodes[told["node_id"]]
        if isinstance(node, LatentNode):
            assert told["activation"] == graph.digraph.nodes[node]["act"]
        if isinstance(node, LatentNode | ErrorNode | TokenNode):
            assert told["ctx_idx"] == node.pos
    assert content["metadata"]["prompt_tokens"] == list(graph.words)


def test_no_two_nodes_are_one_to_a_viewer(graph, exported):
    content = exported(graph)
    for known_by in (["node_id"], ["jsNodeId"], ["layer", "feature", "ctx_idx"]):
        keys = {tuple(node[name] for name in known_by) for node in content["nodes"]}
        assert len(keys) == len(graph.digraph), known_by


def test_every_site_has_a_row_of_its_own_in_the_order_of_the_forward_pass(graph, exported):
    nodes = exported(graph)["nodes"]
    rows = {}
    for node, told in zip(graph.digraph, nodes, strict=True):
        if isinstance(node, LatentNode | ErrorNode | BiasNode):
            rows.setdefault(node.site, set()).add(int(told["layer"]))
    assert all(len(own) == 1 for own in rows.values())
    in_order = [rows[site].pop() for site in sorted(rows)]
    assert in_order == sorted(set(in_order))
    outputs = [int(told["layer"]) for told in nodes if told["feature_type"] == "logit"]
    assert min(outputs) > max(in_order)


def test_of_one_kind_layers_and_ids_are_those_of_circuit_tracer(exported):
    graph = random_graph(2, kinds=("transcoder",))
    for node, told in zip(graph.digraph, exported(graph)["nodes"], strict=True):
        if isinstance(node, LatentNode):
            layer = node.site.layer
            assert told["node_id"] == f"{layer}_{node.latent}_{node.pos}"
            assert unpaired(told["feature"]) == (layer, node.latent)
            assert told["layer"] == str(layer)


def test_at_each_threshold_viewers_show_the_fewest_nodes_that_hold_more_than_any_others(exported):
    graph = prune(random_graph(1), keep_influence=0.9)
    told = exported(graph)
    influences = np.array([value for _, value in graph.digraph.nodes(data="influence")])
    shares = np.array([node["influence"] or 0.0 for node in told["nodes"]])
    assert (shares <= told["metadata"]["node_threshold"]).all()
    for threshold in (0.0, 0.3, 0.8, 0.99, 1.0):
        shown = (shares <= threshold) & (influences > 0)
        held = influences[shown].sum() / influences.sum()
        assert held <= threshold + 1e-12
        hidden = influences[~shown]
        if threshold < 1:
            assert held + hidden.max() / influences.sum() > threshold
            assert not shown.any() or influences[shown].min() >= hidden.max()


def test_without_influence_every_node_is_shown(exported):
    made = attribution([TokenNode(0), TokenNode(1), LogitNode("a")], {})
    told = exported(AttributionGraph.from_attribution(made))
    assert [node["influence"] for node in told["nodes"]] == [0, 0, None]


def clerps(content: dict, kind: str) -> list[str]:
    return [node["clerp"] for node in content["nodes"] if node["feature_type"] == kind]


def test_labels_become_clerps_and_name_the_site_where_layers_do_not(exported):
    for kinds, wanted in ((("transcoder",), "a|b"), (("attn", "mlp"), "{site}/{latent} a|b")):
        graph = random_graph(5, kinds=kinds, n_latents=8, n_words=4)
        first, second, *_ = (node for node in graph.digraph if isinstance(node, LatentNode))
        graph = with_attributes(graph, label={first: "a|b"})
        said, unsaid, *_ = clerps(exported(graph), "cross layer transcoder")
        assert said == wanted.format(site=first.site, latent=first.latent)
        assert unsaid == ("" if len(kinds) == 1 else f"{second.site}/{second.latent}")


def test_labels_of_the_others(exported):
    content = exported(five_kinds())
    assert clerps(content, "embedding") == ['Emb: "<bos>"', 'Emb: "a"']
    labels = clerps(content, "mlp reconstruction error")
    assert labels[:2] == ["Bias of embed.0", 'Error of embed.0 at "a"']
    assert "Bias of transcoder.1" in labels


@pytest.mark.parametrize(
    ("outputs", "labels", "weights"),
    [
        ([("Mary - John", 1.0)], ["Mary - John|+3.25 (p=n/a)"], [1]),
        ([("logit Mary", 1.0)], ["logit Mary|+3.25 (p=n/a)"], [1]),
        (
            [("logit Mary - mean", 0.625), ("logit '\n' - mean @7", 0.25)],
            ["logit Mary - mean|(p=0.625)", "logit '↵' - mean @7|(p=0.250)"],
            [0.625, 0.25],
        ),
        ([('a "b"', -0.5)], ["a 'b'|+3.25 (p=n/a)"], [0.5]),
        (
            [("logit b", 0.5), ("logit a", -2.0)],
            ["logit b|weight +0.500 (p=n/a)", "logit a|weight \N{MINUS SIGN}2.00 (p=n/a)"],
            [0.5, 2.0],
        ),
    ],
)
def test_outputs_say_their_names_and_what_they_weigh(exported, outputs, labels, weights):
    content = exported(random_graph(6, n_latents=5, n_words=3, outputs=tuple(outputs)))
    for clerp, label in zip(clerps(content, "logit"), labels, strict=True):
        name, said = label.split("|")
        assert clerp.split('"')[1] == name  # what viewers write above it
        assert clerp == f'Output "{name}" {said}'
    told = [node["token_prob"] for node in content["nodes"] if node["feature_type"] == "logit"]
    assert told == weights


def of_gemma_scope(files: dict[Site, str], **recorded) -> AttributionGraph:
    """A latent and an error at each site, of a dictionary of Gemma 2 2B by its name."""
    nodes: list[Node] = [TokenNode(0)]
    for site in sorted(files):
        nodes += [LatentNode(site, 7, 0), ErrorNode(site, 0)]
    made = attribution([*nodes, LogitNode("a")], {(1, len(nodes)): 1.0})
    graph = AttributionGraph.from_attribution(made)
    names = {str(site): {"name": name} for site, name in files.items()}
    told = {"model": "gemma-2-2b", "dictionaries_from": None, "dictionaries": names}
    return dataclasses.replace(graph, provenance={**graph.provenance, **told, **recorded})


def canonical(*kinds: str, width: str = "16k") -> dict[Site, str]:
    """What `load("gemma-2-2b", sites=kinds, width=width)` takes."""
    chosen = choose_files(catalogue()["gemma-2-2b"], sites=kinds, width=width, owner="Gemma Scope")
    return {file.site: file.path for file in chosen}


def source_set(content: dict) -> str | None:
    return content["metadata"].get("feature_details", {}).get("neuronpedia_source_set")


@pytest.mark.parametrize(
    ("kind", "name"), [("attn", "att"), ("mlp", "mlp"), ("resid", "res"), ("transcoder",) * 2]
)
def test_the_source_set_of_canonical_dictionaries_is_named(exported, kind, name):
    content = exported(of_gemma_scope(canonical(kind)))
    assert source_set(content) == f"gemmascope-{name}-16k"
    assert content["metadata"]["scan"] == "gemma-2-2b"
    assert not list(Draft7Validator(SCHEMA).iter_errors(content))


def test_the_source_set_is_that_of_the_model_that_the_file_names(exported):
    files = {Site(5, "resid"): "layer_5/width_16k/average_l0_143"}
    assert source_set(exported(of_gemma_scope(files))) == "gemmascope-res-16k__l0-143"
    mine = of_gemma_scope(files, model="/home/me/gemma 2", dictionaries_from="gemma-2-2b")
    assert exported(mine)["metadata"]["scan"] == "gemma-2"
    assert source_set(exported(mine)) is None
    assert source_set(exported(mine, scan="gemma-2-2b")) == "gemmascope-res-16k__l0-143"


def test_no_source_set_is_named_that_does_not_hold_for_all_latents(exported):
    resid, mixed = canonical("resid"), canonical("attn", "resid")
    sparse = {Site(0, "resid"): "layer_0/width_16k/average_l0_13"}  # has no dashboards
    wide = {Site(0, "resid"): canonical("resid", width="65k")[Site(0, "resid")]}
    for files, recorded in (
        (mixed, {}),
        ({**resid, **sparse}, {}),
        ({**resid, **wide}, {}),
        (resid, {"dictionaries_from": "/home/me/dictionaries"}),
        (resid, {"model": "gemma-2-9b"}),
        (resid, {"dictionaries": {}}),
        # the one row of the catalogue whose id is of another layer
        ({Site(2, "resid"): "layer_2/width_16k/average_l0_8"}, {"model": "gemma-2-9b"}),
    ):
        assert source_set(exported(of_gemma_scope(files, **recorded))) is None


def test_no_source_set_is_named_where_rows_are_no_layers(exported):
    graph = of_gemma_scope(canonical("resid"))
    digraph = nx.DiGraph(graph.digraph)
    digraph.add_node(ErrorNode(Site(0, "attn"), 0), influence=0.0)
    assert source_set(exported(dataclasses.replace(graph, digraph=digraph))) is None


def test_the_bundled_model_from_prompt_to_file(exported, tiny):
    for model in (tiny, load("tiny", sites=("transcoder",), device="cpu")):
        made = attribute(model, TEXT, top_logits(model, TEXT, share=0.999), max_latents=30)
        graph = label_latents(model, AttributionGraph.from_attribution(made))
        content = exported(graph)
        assert not list(Draft7Validator(SCHEMA).iter_errors(content))
        told = graph.digraph.nodes.values()
        labels = [values["label"] for values in told if values["label"]]
        said = clerps(content, "cross layer transcoder")
        assert len(labels) == 30
        assert all(clerp.endswith(label) for clerp, label in zip(said, labels, strict=True))
        assert all("(p=0." in clerp for clerp in clerps(content, "logit"))
        assert content["metadata"]["prompt"] == TEXT
        assert "gradient x activation" in content["metadata"]["info"]["description"]


@pytest.mark.parametrize(
    "name", ["g.html", "g.json.gz", "my graph.json", "g.v2.json", "größe.json"]
)
def test_names_that_viewers_cannot_open_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="viewers want letters, digits, _ and -"):
        export(random_graph(0), tmp_path / name)


def test_what_cannot_be_written_is_refused_and_nothing_is(tmp_path):
    graph, path = random_graph(0), tmp_path / "g.json"
    path.write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        export(graph, path)
    for name in ("act", "influence"):
        broken = with_attributes(graph, **{name: {graph.latents()[0]: math.nan}})
        with pytest.raises(UserError, match="holds a NaN or an infinity"):
            export(broken, path, overwrite=True)
    with pytest.raises(UserError, match="got dict; give a graph"):
        export({}, path, overwrite=True)  # pyright: ignore[reportArgumentType]
    assert path.read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["g.json"]
