"""Numbers of one set of weights are not set beside those of another."""

from dataclasses import replace

import pytest
import torch

from attribution import attribute, logit_diff
from attribution.fingerprint import fingerprint
from circuits import Prompt, Site, UserError, load_gemma, splice
from experiments import ablate_each, edge_knockout, faithfulness_curve, path_patch
from graphs import AttributionGraph, label_latents, with_measured
from tests.random_gemma import TEXT, random_dictionaries

PROMPT = Prompt(TEXT, target="w3", foil="w4", corrupted=" ".join(reversed(TEXT.split())))
METRIC = logit_diff(PROMPT)


def fresh(folder, dtype=torch.float32):
    """The model, loaded again, with its dictionaries."""
    bridge = load_gemma(str(folder), device="cpu", dtype=dtype)
    return splice(bridge, random_dictionaries(dtype=dtype), name="random")


@pytest.fixture(scope="module")
def graph(model):
    return AttributionGraph.from_attribution(attribute(model, PROMPT, METRIC, max_latents=20))


@pytest.fixture(scope="module")
def retrained(gemma_folder):
    """Under the same name, with one matrix a little off."""
    other = fresh(gemma_folder)
    with torch.no_grad():
        next(p for p in other.bridge.original_model.parameters() if p.ndim == 2).mul_(1.01)
    return other


def test_a_model_that_is_loaded_again_has_the_same(model, gemma_folder):
    assert fingerprint(fresh(gemma_folder)) == fingerprint(model)


def test_every_array_counts(gemma_folder):
    """Of the model also where it is changed in place, of dictionaries in another model of them."""
    other = fresh(gemma_folder)
    seen = {fingerprint(other)}
    for n, weight in enumerate(other.bridge.original_model.parameters(), 2):
        with torch.no_grad():
            weight.add_(torch.randn_like(weight))
        seen.add(fingerprint(other))
        assert len(seen) == n
    dictionaries = random_dictionaries()
    for site, dictionary in dictionaries.items():
        for name, array in dictionary.arrays.items():
            changed = {**dictionaries, site: replace(dictionary, **{name: array + 0.5})}
            n = len(seen)
            seen.add(fingerprint(splice(other.bridge, changed, name="random")))
            assert len(seen) == n + 1


ASKED = {
    "with_measured": lambda m, g: with_measured(g, ablate_each(m, PROMPT, METRIC, g.latents(3))),
    "edge_knockout": lambda m, g: edge_knockout(m, PROMPT, METRIC, g, top=3, n_random=0),
    "path_patch": lambda m, g: path_patch(m, PROMPT, METRIC, [g.latents(1)[0]], graph=g),
    "faithfulness_curve": lambda m, g: faithfulness_curve(
        m, PROMPT, METRIC, g, sizes=[5], n_random=0
    ),
    "label_latents": label_latents,
}
"""All that sets a graph beside a model."""


@pytest.mark.parametrize("asked", ASKED)
def test_a_graph_of_other_weights_is_refused(asked, graph, model, retrained, tmp_path):
    saved = AttributionGraph.load(graph.save(tmp_path / "graph.json"))
    ASKED[asked](model, saved)
    with pytest.raises(UserError, match="other weights"):
        ASKED[asked](retrained, saved)


@pytest.mark.parametrize("asked", ASKED)
def test_a_graph_of_before_there_were_fingerprints_is_taken(asked, graph, retrained):
    old = {key: value for key, value in graph.provenance.items() if key != "weights"}
    ASKED[asked](retrained, replace(graph, provenance=old))


def test_a_graph_of_another_dtype_is_taken(graph, gemma_folder):
    """Rounding gives other values of the same weights."""
    half = fresh(gemma_folder, torch.bfloat16)
    assert fingerprint(half) != graph.provenance["weights"]
    ASKED["with_measured"](half, graph)


def test_other_dictionaries_are_other_weights(graph, model):
    site = Site(1, "mlp")
    others = random_dictionaries()
    others[site] = replace(others[site], b_dec=others[site].b_dec + 1)
    with pytest.raises(UserError, match="other weights"):
        ASKED["edge_knockout"](splice(model.bridge, others, name="random"), graph)
