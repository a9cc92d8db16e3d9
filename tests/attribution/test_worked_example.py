"""The worked example of docs/what-an-edge-means.md: the project finds the numbers of the pencil.

Two dimensions, one token w0 = (1, 7), latent s at resid.0, latent t at attn.1, and what the heads'
outputs are worth along (0, 10). Between s and t lies one norm: the head of layer 1 looks at BOS,
which is zero, and at the token, half each, and doubles what it sees.
"""

import math
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from attribution import attribute, direction, latent
from circuits import Dictionary, LatentNode, Site, load_gemma, splice
from experiments import ablate_each
from tests.random_gemma import save_words

S, T = LatentNode(Site(0, "resid"), 0, 1), LatentNode(Site(1, "attn"), 0, 1)
LOGIT = direction("blocks.1.attn.hook_out", torch.tensor([0.0, 10.0]), name="y")


def one_latent(W_enc, b_enc, W_dec, b_dec):
    """A dictionary of a single latent."""
    return Dictionary(
        W_enc=torch.tensor(W_enc)[:, None],
        b_enc=torch.tensor([b_enc]),
        threshold=torch.zeros(1),
        W_dec=torch.tensor(W_dec)[None],
        b_dec=torch.tensor(b_dec),
    )


@pytest.fixture(scope="module")
def worked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worked")
    config = Gemma2Config(
        vocab_size=5,
        hidden_size=2,
        intermediate_size=2,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=2,
        max_position_embeddings=4,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    huggingface: Any = Gemma2ForCausalLM(config)
    for weight in huggingface.parameters():
        weight.data.zero_()  # a norm's gain is 1 + weight
    # Gemma multiplies embeddings by the root of their size
    embedding = torch.tensor([1.0, 7.0]) / math.sqrt(2)
    huggingface.model.embed_tokens.weight.data[4] = embedding
    head = huggingface.model.layers[1].self_attn
    head.v_proj.weight.data = 2 * torch.eye(2)
    head.o_proj.weight.data = torch.eye(2)
    huggingface.save_pretrained(folder)
    save_words(folder, 5)
    dictionaries = {
        S.site: one_latent([0.0, 1.0], -2.0, [0.0, 1.0], [1.0, 0.0]),
        T.site: one_latent([5.0, 10.0], -3.0, [0.0, 0.1], [0.0, 0.0]),
    }
    return splice(load_gemma(str(folder), device="cpu"), dictionaries, name="worked")


def row(attribution, target):
    """The edges to `target`, by the name of their source."""
    names = [str(node) for node in attribution.nodes]
    values = attribution.edges.toarray()[names.index(target)]
    return {name: value for name, value in zip(names, values.tolist(), strict=True) if value}


def test_with_the_norm_frozen_edges_are_what_the_latents_are_made_of(worked):
    a = attribute(worked, "w0", LOGIT, downstream="freeze")
    made_s, made_t = row(a, str(S)), row(a, str(T))
    assert made_s == pytest.approx({"token@1": 7, "resid.0/bias": -2})
    assert made_t == pytest.approx(
        {str(S): 10, "resid.0/error@1": 4, "resid.0/bias": 1, "attn.1/bias": -3}
    )
    assert row(a, "logit/y") == pytest.approx({str(T): 12, "attn.1/error@1": 2})
    by_name = dict(zip(map(str, a.nodes), range(len(a.nodes)), strict=True))
    assert sum(made_s.values()) == pytest.approx(a.acts[by_name[str(S)]].item())
    assert sum(made_t.values()) == pytest.approx(a.acts[by_name[str(T)]].item())
    assert a.metric_value == pytest.approx(14)
    assert a.target_grads[by_name[str(T)]].item() == pytest.approx(1)
    assert a.effects[by_name[str(S)]].item() == pytest.approx(10)  # the one path from s


def test_with_the_norm_live_edges_foretell_the_removal(worked):
    a = attribute(worked, "w0", LOGIT, norms="live")
    assert row(a, str(T)) == pytest.approx(
        {str(S): -0.5, "resid.0/error@1": -0.2, "resid.0/bias": 0.7, "attn.1/bias": -3}, rel=1e-5
    )
    (removal,) = ablate_each(worked, "w0", latent(T), [S])
    assert removal.attributed == pytest.approx(-0.5, rel=1e-5)
    assert removal.measured == pytest.approx(12 - (25 / math.sqrt(2.5) - 3), rel=1e-5)
