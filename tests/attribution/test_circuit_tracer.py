"""With the same weights and transcoders, edges equal circuit-tracer's adjacency matrix.

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

from attribution.edges import direct_effects, local_pass
from circuits import (
    BiasNode,
    Dictionary,
    ErrorNode,
    LatentNode,
    LogitNode,
    Site,
    TokenNode,
    load_gemma,
    splice,
)
from circuits.freeze import Freeze
from tests.random_gemma import save_words

SAVED = np.load(Path(__file__).parent / "fixtures" / "circuit_tracer.npz", allow_pickle=False)
ABOUT = json.loads(str(SAVED["about"]))
SITES = [Site(layer, "transcoder") for layer in range(ABOUT["config"]["num_hidden_layers"])]


@pytest.fixture(scope="module")
def bridge(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peer")
    huggingface = Gemma2ForCausalLM(Gemma2Config(**ABOUT["config"]))
    for name, weight in huggingface.named_parameters():
        weight.data = torch.from_numpy(SAVED[f"model/{name}"]).float()
    huggingface.save_pretrained(folder)
    save_words(folder, ABOUT["config"]["vocab_size"])
    return load_gemma(str(folder), device="cpu")


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


def peer_matrix(name):
    """circuit-tracer's matrix `[target, source]`: features, errors, tokens, logits."""
    matrix = torch.zeros(*SAVED[f"{name}/shape"].tolist())
    target, source = (torch.from_numpy(SAVED[f"{name}/{k}"]).long() for k in ("target", "source"))
    matrix[target, source] = torch.from_numpy(SAVED[f"{name}/weight"])
    return matrix


def our_edges(model, ids, score):
    """Every node, and all edges `[target, source]`, of token ids that may begin without BOS."""
    n_pos = ids.shape[1]
    nodes: list = [TokenNode(pos) for pos in range(n_pos)]
    acts = [torch.ones(n_pos)]
    for site, trace in model.trace(ids).sites.items():
        pairs = zip(trace.latent.tolist(), trace.pos.tolist(), strict=True)
        nodes += [BiasNode(site), *(LatentNode(site, latent, pos) for latent, pos in pairs)]
        nodes += [ErrorNode(site, pos) for pos in range(n_pos)]
        acts += [torch.ones(1), trace.acts, torch.ones(n_pos)]
    nodes.append(LogitNode("logit"))
    acts = torch.cat([*acts, torch.ones(1)])
    cut = local_pass(model, ids, score, Freeze(attention=True, norms=True))
    return nodes, direct_effects(model, nodes, acts, cut).to_dense()


@pytest.mark.parametrize("name", list(ABOUT["cases"]))
def test_edges_equal_circuit_tracers_adjacency_matrix(bridge, name):
    case, peer = ABOUT["cases"][name], peer_matrix(name)
    model = splice(bridge, {site: transcoder(site, case) for site in SITES}, name="peer")
    ids = torch.tensor([case["tokens"]])
    n_pos = ids.shape[1]
    features = [
        LatentNode(SITES[layer], latent, pos)
        for layer, pos, latent in SAVED[f"{name}/features"].tolist()
    ]
    errors = [ErrorNode(site, pos) for site in SITES for pos in range(n_pos)]
    sources = [*features, *errors, *(TokenNode(pos) for pos in range(n_pos))]
    matrices = []
    for token in ABOUT["logits"]:
        nodes, edges = our_edges(model, ids, centred_logit(model, token))
        place = {node: i for i, node in enumerate(nodes)}
        matrices.append(edges[:, [place[node] for node in sources]])

    latents = {node for node in nodes if isinstance(node, LatentNode)}
    assert {node for node in latents if node.pos > 0} == set(features)
    first_is_bos = not model.reads(ids)[0, 0]
    assert any(node.pos == 0 for node in latents) != first_is_bos
    acts = torch.stack([model.trace(ids).sites[f.site].dense()[f.pos, f.latent] for f in features])
    torch.testing.assert_close(acts, torch.from_numpy(SAVED[f"{name}/acts"]), rtol=1e-4, atol=1e-6)

    of_features = matrices[0][[place[node] for node in features]]
    ours = torch.cat([of_features, torch.stack([edges[-1] for edges in matrices])])
    n, n_logits = len(features), len(matrices)
    theirs = torch.cat([peer[:n], peer[-n_logits:]])[:, : len(sources)]
    dropped = torch.tensor([isinstance(node, ErrorNode) and node.pos == 0 for node in sources])
    assert not theirs[:, dropped].any()
    assert ((ours != 0) == (theirs != 0))[:, ~dropped].all()
    torch.testing.assert_close(
        ours[:, ~dropped], theirs[:, ~dropped], rtol=1e-4, atol=1e-6 * theirs.abs().max().item()
    )
    # no other rows: errors and tokens are sources alone
    assert not peer[n:-n_logits].any()


def test_the_fixture_has_what_it_must_tell_apart():
    """Several layers, edges of every kind, and skip connections that carry something."""
    for name in ABOUT["cases"]:
        features = SAVED[f"{name}/features"]
        assert set(features[:, 0].tolist()) == {0, 1, 2}
        assert len(SAVED[f"{name}/weight"]) > 1000
