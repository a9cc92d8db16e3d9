"""From a folder of transcoders to a graph that ablations test; the command line does it too."""

import pytest
import torch
from click.testing import CliRunner

from attribution import attribute, logit_diff
from circuits import (
    LatentNode,
    Prompt,
    Site,
    corrupted_reference,
    load,
    mean,
    mean_reference,
    set_to,
    splice,
)
from circuits.nodes import parse_node
from experiments import ablate_each, check_dictionaries, faithfulness_curve
from experiments.cli import main
from graphs import AttributionGraph, label_latents, prune, render
from graphs.labels import promoted_logits
from tests.experiments.conftest import save_dictionaries
from tests.random_gemma import TEXT, chosen_dictionaries

PROMPT = Prompt(TEXT, target="w3", foil="w4", corrupted=TEXT.replace("w5", "w6"))
METRIC = logit_diff(PROMPT)
KINDS = ("attn", "transcoder", "resid")
TRANSCODERS = [Site(layer, "transcoder") for layer in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_dictionaries(tmp_path_factory.mktemp("own"), chosen_dictionaries(KINDS))


@pytest.fixture(scope="module", params=["from a folder", "skip"])
def model(request, gemma_folder, folder, bridge):
    if request.param == "skip":
        return splice(bridge, chosen_dictionaries(["attn", "skip", "resid"]), name="random")
    return load(gemma_folder, dictionaries=folder, sites=KINDS, device="cpu")


@pytest.fixture(scope="module")
def graph(model):
    a = attribute(model, PROMPT, METRIC, max_latents=60)
    return AttributionGraph.from_attribution(a)


def test_the_graph_is_pruned_labelled_drawn_and_read_back(model, graph, tmp_path):
    assert {node.site.kind for node in graph.latents()} == set(KINDS)
    circuit = label_latents(model, prune(graph, keep_influence=0.8), texts=[TEXT])
    assert all(circuit.digraph.nodes[node]["label"] for node in circuit.latents())
    assert all(parse_node(str(node)) == node for node in graph.digraph)
    circuit.save(tmp_path / "g.json")
    assert set(AttributionGraph.load(tmp_path / "g.json").digraph) == set(circuit.digraph)
    for suffix in (".html", ".svg", ".dot"):
        render(circuit, tmp_path / f"g{suffix}")
        assert "transcoder.1" in (tmp_path / f"g{suffix}").read_text()


def test_ablations_stand_beside_what_was_attributed(model, graph, tmp_path):
    nodes = [node for node in graph.latents() if node.site in TRANSCODERS][:5]
    for make in (None, corrupted_reference(model, PROMPT)):
        ablations = ablate_each(model, PROMPT, METRIC, nodes, reference=make)
        assert [row.node for row in ablations] == nodes
        for row in ablations:  # before the prompts part, the corrupted value is the clean one
            moved = abs(row.act - row.baseline) > 1e-4
            assert (abs(row.measured) > 1e-4) == moved, row
        assert any(abs(row.measured) > 1e-4 for row in ablations)
    figure = ablations.plot(tmp_path / "a.svg")
    assert "transcoder" in figure.read_text()


@pytest.mark.parametrize("downstream", ["recompute", "freeze"])
def test_faithfulness_is_1_of_everything(model, downstream):
    everything = [LatentNode(s, int(i), int(p)) for s, t in model.trace(TEXT).sites.items()
                  for i, p in zip(t.latent, t.pos, strict=True)]  # fmt: skip
    curve = faithfulness_curve(
        model, PROMPT, METRIC, everything, sizes=[0, 20, len(everything)], n_random=2,
        downstream=downstream,
    )  # fmt: skip
    assert curve.scores[0].faithfulness == pytest.approx(0, abs=1e-4)
    assert curve.scores[-1].faithfulness == pytest.approx(1, abs=1e-4)


def test_a_mean_is_put_in_the_place_of_a_latent(model):
    site, texts = TRANSCODERS[1], [PROMPT.text, PROMPT.corrupted or ""]
    acts = [model.trace(text).sites[site].dense()[2] for text in texts]  # where the two differ
    latent = int((acts[0] - acts[1]).abs().argmax())
    node, value = LatentNode(site, latent, 2), (acts[0][latent] + acts[1][latent]).item() / 2
    changed = model(TEXT, [mean(node, mean_reference(model, texts))])
    torch.testing.assert_close(changed, model(TEXT, [set_to(node, value)]))
    assert not changed.equal(model(TEXT))


def test_promoted_words_are_those_of_the_same_direction_at_mlp(model, bridge):
    autoencoders = {Site(1, "mlp"): model.dictionaries[Site(1, "transcoder")]}
    expected = promoted_logits(splice(bridge, autoencoders), Site(1, "mlp"), [3, 5])
    assert promoted_logits(model, Site(1, "transcoder"), [3, 5]).equal(expected)


def test_gates_look_at_what_a_transcoder_writes(model):
    rows = {row.site: row for row in check_dictionaries(model, [TEXT])}
    for site in TRANSCODERS:
        error = model.trace(TEXT).sites[site].error[1:]
        written = model.activations(model.tokens(TEXT))[2][site][0, 1:]
        spread = (written - written.mean(0)).square().sum()
        expected = 1 - (error.square().sum() / spread).item()
        assert rows[site].explained == pytest.approx(expected, rel=1e-4)
        assert rows[site].least_explained == 0


def test_the_command_line_takes_the_kind(gemma_folder, folder, tmp_path):
    out = tmp_path / "g.json"
    options = ["--model", gemma_folder, "--dictionaries", folder, "--device", "cpu"]
    options += ["--sites", ",".join(KINDS)]
    pair = ["--target", "w3", "--foil", "w4", "--max-latents", 30, "--out", out]
    trace = ["trace", TEXT, *options, *pair]
    ablate = ["ablate", out, "--dictionaries", folder, "--top", 3]
    for command in (trace, ablate):
        result = CliRunner().invoke(main, [str(word) for word in command])
        assert result.exit_code == 0, result.output
    graph = AttributionGraph.load(out)
    assert {node.site.kind for node in graph.latents()} == set(KINDS)
