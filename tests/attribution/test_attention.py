"""Pairs of a query-side and a key-side node sum to a head's attention score."""

import pytest
import torch

from attribution import attention_pairs, attention_score
from attribution.metrics import bind
from circuits import LatentNode, Site, UserError, splice
from tests.random_gemma import TEXT, chosen_dictionaries

CASES = [
    (("attn", "mlp", "resid"), "jacobian"),
    (("attn", "mlp"), "jacobian"),
    (("transcoder",), "jacobian"),
    (("resid",), "relp"),
    (("attn",), "integrated"),
]


@pytest.mark.parametrize(("kinds", "mlp"), CASES)
@pytest.mark.parametrize(("layer", "head", "query", "key"), [(2, 3, -1, 8), (1, 0, 6, 0)])
def test_pairs_sum_to_the_score(bridge, kinds, mlp, layer, head, query, key):
    """Whatever the sites, with all latents or with few."""
    model = splice(bridge, chosen_dictionaries(kinds), name="random")
    metric = bind(attention_score(layer, head, query, key), model)
    score = metric(model.run(model.tokens(TEXT), output=metric.output)).item()
    for max_latents in (None, 20):
        a = attention_pairs(model, TEXT, layer, head, query, key, max_latents=max_latents, mlp=mlp)
        assert a.score == pytest.approx(score, rel=1e-5)
        assert a.pairs.sum().item() == pytest.approx(score, rel=1e-4, abs=1e-5)
        assert a.pairs.shape == (len(a.queries), len(a.keys))


def test_a_pair_is_the_product_of_what_its_nodes_bring(model):
    """By hand, through the norm, the two maps and the rotation: `resid` feeds a head directly."""
    layer, head, query, key = 2, 3, 9, 8
    a = attention_pairs(model, TEXT, layer, head, query, key)
    huggingface = model.bridge.original_model
    block = huggingface.model.layers[layer]
    attention, norm = (m.original_component for m in (block.self_attn, block.input_layernorm))
    ids = model.tokens(TEXT)
    read = model.activations(ids)[1][Site(layer - 1, "resid")][0]
    scale = torch.rsqrt(read.square().mean(-1, keepdim=True) + norm.eps)
    rotary = huggingface.model.rotary_emb
    cos, sin = getattr(rotary, "original_component", rotary)(read[None], torch.arange(11)[None])

    dense = {site: here.dense() for site, here in model.trace(ids).sites.items()}

    def brought(node, linear, of, pos):
        d = model.dictionaries[node.site]
        written = dense[node.site][node.pos, node.latent] * d.W_dec[node.latent]
        x = written * scale[pos] * (1 + norm.weight)
        v = (x @ linear.weight.T).view(-1, attention.head_dim)[of]
        first, second = v.chunk(2)
        return v * cos[0, pos] + torch.cat([-second, first]) * sin[0, pos]

    tested = 0
    for i, one in enumerate(a.queries):
        for j, other in enumerate(a.keys):
            if isinstance(one, LatentNode) and isinstance(other, LatentNode):
                assert (one.pos, other.pos) == (query, key)
                q = brought(one, attention.q_proj, head, query)
                k = brought(other, attention.k_proj, head // 2, key)
                expected = (q @ k * attention.scaling).item()
                assert a.pairs[i, j].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
                tested += 1
    assert tested > 50
    strongest = a.strongest(3)
    assert strongest.score.abs().iloc[0] == a.pairs.abs().max().item()


def test_what_cannot_be_decomposed_is_said(model):
    with pytest.raises(UserError, match=r"no head 7\.0"):
        attention_pairs(model, TEXT, 7, 0, 5, 2)
    with pytest.raises(UserError, match="does not see position 8"):
        attention_pairs(model, TEXT, 1, 0, 5, 8)
    with pytest.raises(UserError, match="choose frozen or live"):
        attention_pairs(model, TEXT, 1, 0, 5, 2, norms="warm")


@pytest.mark.parametrize("max_latents", [20, None])
def test_the_record_says_how_many_latents_were_asked_for(model, max_latents):
    a = attention_pairs(model, TEXT, 1, 0, 5, 2, max_latents=max_latents)
    assert a.provenance["settings"]["max_latents"] == max_latents
