"""With the same weights and transcoders, edges equal circuit-tracer's adjacency matrix: on random
ones, and on the bundled model with the transcoders trained for it.

Its conventions, and where they differ from ours:

- it reads the MLP's normalised input before the gain and writes the MLP's output after its norm, as
  our `transcoder` sites do; gradients pass through skip connections; patterns and norms are frozen;
- a logit is explained before the final soft-cap, as its difference to the mean logit, and not
  weighted by its probability;
- the first token is never read: no latents, no error, though its skip connections act. Where it is
  BOS, ours bypass the dictionary altogether and have the whole of what the MLP writes as error;
  where it is none, ours have latents there, which circuit-tracer has not;
- biases are no nodes.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from attribution.edges.direct import Stretches
from attribution.edges.local_pass import local_pass
from attribution.edges.node_table import NodeTable
from attribution.metrics import bind
from circuits import (
    Dictionary,
    ErrorNode,
    LatentNode,
    Site,
    TokenNode,
    load,
    load_gemma,
    splice,
)
from circuits.active import Active
from circuits.freeze import Freeze
from circuits.loading.gemma_scope import dictionaries_from_folder
from tests.attribution.random_shapes import close, missed
from tests.random_gemma import save_words

FIXTURES = Path(__file__).parent / "fixtures"
SAVED = np.load(FIXTURES / "circuit_tracer.npz", allow_pickle=False)
SAVED_CROSS_LAYER = np.load(FIXTURES / "circuit_tracer_cross_layer.npz", allow_pickle=False)
SAVED_BUNDLED = np.load(FIXTURES / "circuit_tracer_bundled.npz", allow_pickle=False)
ABOUT = json.loads(str(SAVED["about"]))
CROSS_LAYER_CASES = json.loads(str(SAVED_CROSS_LAYER["about"]))["cases"]
BUNDLED_CASES = json.loads(str(SAVED_BUNDLED["about"]))["cases"]
SITES = [Site(layer, "transcoder") for layer in range(ABOUT["config"]["num_hidden_layers"])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peer")
    huggingface = Gemma2ForCausalLM(Gemma2Config(**ABOUT["config"]))
    for name, weight in huggingface.named_parameters():
        weight.data = torch.from_numpy(SAVED[f"model/{name}"]).float()
    huggingface.save_pretrained(folder)
    save_words(folder, ABOUT["config"]["vocab_size"])
    return folder


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=str)
def bridge(request, folder):
    return load_gemma(str(folder), device="cpu", dtype=request.param)


def transcoder(site, case):
    def array(name):
        return torch.from_numpy(SAVED[f"{site}/{name}"]).float()

    return Dictionary(
        W_enc=array("W_enc"),
        b_enc=array("b_enc"),
        threshold=array("threshold") * case["threshold"],
        W_dec=array("W_dec"),
        b_dec=array("b_dec"),
        W_skip=array("W_skip") if case["skip"] else None,
    )


def centred_logit(model, token):
    """The token's logit less the mean logit, before the soft-cap, at the last position."""
    cap = model.config.final_logit_softcapping

    def score(logits):
        raw = cap * torch.atanh(logits[:, -1] / cap)
        return raw[:, token] - raw.mean(-1)

    return score


def peer_matrix(saved, name):
    """circuit-tracer's matrix `[target, source]`: features, errors, tokens, logits."""
    matrix = torch.zeros(*saved[f"{name}/shape"].tolist())
    target, source = (torch.from_numpy(saved[f"{name}/{k}"]).long() for k in ("target", "source"))
    matrix[target, source] = torch.from_numpy(saved[f"{name}/weight"])
    return matrix


def peer_features(saved, name):
    """The rows of its features, `(layer, pos, feature)` each, as our nodes."""
    rows = saved[f"{name}/features"].tolist()
    return [LatentNode(Site(layer, "transcoder"), latent, pos) for layer, pos, latent in rows]


def our_edges(model, ids, logits):
    """Every node, and all edges `[target, source]`, of token ids that may begin without BOS."""
    explained = [bind(centred_logit(model, token), model) for token in logits]
    latents = {site: Active(t.pos, t.latent, t.acts) for site, t in model.trace(ids).sites.items()}
    table = NodeTable.of(ids.shape[1], latents, tuple(map(str, logits)))
    cut = local_pass(model, ids, explained, Freeze(attention=True, norms=True))
    return table.nodes(), torch.from_numpy(Stretches.of(model, table, cut).edges().toarray())


def vector_sources(sites, n_pos):
    """circuit-tracer's columns after the features: errors, tokens."""
    errors = (ErrorNode(site, pos) for site in sites for pos in range(n_pos))
    return [*errors, *(TokenNode(pos) for pos in range(n_pos))]


def check_edges(model, ids, logits, saved, name):
    """Our activations and edges are those saved; returns our latents.

    circuit-tracer has no error at the first position. Errors and tokens are sources alone.
    """
    features, theirs = peer_features(saved, name), peer_matrix(saved, name)
    n, n_pos = len(features), ids.shape[1]
    sites = model.trace(ids).sites
    dense = {site: trace.dense() for site, trace in sites.items()}
    acts = torch.stack([dense[f.site][f.pos, f.latent] for f in features])
    expected = torch.from_numpy(saved[f"{name}/acts"])
    torch.testing.assert_close(acts.float(), expected, rtol=1e-4, atol=1e-6)

    nodes, edges = our_edges(model, ids, logits)
    place = {node: i for i, node in enumerate(nodes)}
    sources = [*features, *vector_sources(model.sites, n_pos)]
    targets = [*(place[node] for node in features), *range(len(nodes) - len(logits), len(nodes))]
    ours = edges[targets][:, [place[node] for node in sources]]
    assert not theirs[n : -len(logits)].any()
    theirs = torch.cat([theirs[:n], theirs[-len(logits) :]])[:, : len(sources)]
    dropped = torch.tensor([isinstance(node, ErrorNode) and node.pos == 0 for node in sources])
    assert not theirs[:, dropped].any()
    assert ((ours != 0) == (theirs != 0))[:, ~dropped].all()
    torch.testing.assert_close(
        ours[:, ~dropped], theirs[:, ~dropped], rtol=1e-4, atol=1e-6 * theirs.abs().max().item()
    )
    return {node for node in nodes if isinstance(node, LatentNode)}


@pytest.mark.parametrize("name", list(ABOUT["cases"]))
def test_edges_equal_circuit_tracers_adjacency_matrix(bridge, name):
    case = ABOUT["cases"][name]
    dictionaries = {
        site: transcoder(site, case).to(dtype=bridge.original_model.dtype) for site in SITES
    }
    model = splice(bridge, dictionaries, name="peer")
    ids = torch.tensor([case["tokens"]])
    latents = check_edges(model, ids, ABOUT["logits"], SAVED, name)
    assert {node for node in latents if node.pos > 0} == set(peer_features(SAVED, name))
    first_is_bos = not model.reads(ids)[0, 0]
    assert any(node.pos == 0 for node in latents) != first_is_bos


@pytest.mark.parametrize("name", list(ABOUT["cases"]))
def test_edges_in_bfloat16_are_circuit_tracers_rounded(folder, name):
    """Between latents that are on in both (one at most is rounded across its threshold), from
    tokens and to logits: weights and every layer are rounded, their edges are not.
    """
    case, theirs = ABOUT["cases"][name], peer_matrix(SAVED, name)
    bridge = load_gemma(str(folder), device="cpu", dtype=torch.bfloat16)
    dictionaries = {site: transcoder(site, case).to(dtype=torch.bfloat16) for site in SITES}
    ids, features = torch.tensor([case["tokens"]]), peer_features(SAVED, name)
    nodes, edges = our_edges(splice(bridge, dictionaries, name="peer"), ids, ABOUT["logits"])
    place = {node: i for i, node in enumerate(nodes)}
    columns = {node: i for i, node in enumerate([*features, *vector_sources(SITES, ids.shape[1])])}
    both = [node for node in features if node in place]
    assert len(both) >= len(features) - 1
    n_logits = len(ABOUT["logits"])
    sources = [*both, *(TokenNode(pos) for pos in range(ids.shape[1]))]
    into = [columns[node] for node in both], [place[node] for node in both]
    logits = (range(len(of) - n_logits, len(of)) for of in (theirs, nodes))
    theirs_into, ours_into = ([*rows, *last] for rows, last in zip(into, logits, strict=True))
    found = edges[ours_into][:, [place[node] for node in sources]]
    expected = theirs[theirs_into][:, [columns[node] for node in sources]]
    close(found.numpy(), expected.numpy(), missed(torch.bfloat16))


@pytest.mark.parametrize("name", list(CROSS_LAYER_CASES))
def test_edges_of_a_cross_layer_transcoder_equal_circuit_tracers(bridge, name):
    """Read from the folder that circuit-tracer saved it in."""
    folder = FIXTURES / "circuit_tracer_cross_layer" / name
    loaded = dictionaries_from_folder(folder, sites=["transcoder"])
    dtype = bridge.original_model.dtype
    dictionaries = {site: loaded[site].to(dtype=dtype) for site in SITES}
    model = splice(bridge, dictionaries, name="peer")
    ids = torch.tensor([CROSS_LAYER_CASES[name]["tokens"]])
    latents = check_edges(model, ids, ABOUT["logits"], SAVED_CROSS_LAYER, name)
    assert latents == set(peer_features(SAVED_CROSS_LAYER, name))
    assert {node.site for node in latents} == set(SITES)


@pytest.fixture(scope="module")
def bundled():
    return load("tiny", sites=["transcoder"], device="cpu")


@pytest.mark.parametrize("name", list(BUNDLED_CASES))
def test_edges_of_the_bundled_model_equal_circuit_tracers(bundled, name):
    case = BUNDLED_CASES[name]
    ids = torch.tensor([case["tokens"]])
    latents = check_edges(bundled, ids, case["logits"], SAVED_BUNDLED, name)
    assert latents == set(peer_features(SAVED_BUNDLED, name))  # none at BOS, in both


def test_the_fixture_has_what_it_must_tell_apart():
    """Several layers, edges of every kind, and skip connections that carry something."""
    for name in ABOUT["cases"]:
        features = SAVED[f"{name}/features"]
        assert set(features[:, 0].tolist()) == {0, 1, 2}
        assert len(SAVED[f"{name}/weight"]) > 1000
    for name in BUNDLED_CASES:
        layers = SAVED_BUNDLED[f"{name}/features"][:, 0].tolist()
        assert min(map(layers.count, range(4))) > 20
