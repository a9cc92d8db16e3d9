import dataclasses

import pytest
import torch

from circuits import LatentNode, LogitNode, Site, TokenNode, splice
from circuits.errors import UserError
from graphs import AttributionGraph, label_latents, labels_of
from graphs.labels import mean_activations, promoted_logits
from tests.graphs.synthetic import attribution
from tests.random_gemma import random_dictionaries

TEXTS = ["w1 w5 w9 w2 w5", "w30 w7 w8", "w5"]


def graph_of(*latents: LatentNode) -> AttributionGraph:
    nodes = [TokenNode(0), TokenNode(1), *latents, LogitNode("a")]
    return AttributionGraph.from_attribution(attribution(nodes, {}, words=("<bos>", "w5")))


@pytest.mark.parametrize("k", [None, 5])
def test_mean_activations_are_the_traces_averaged_token_by_token(bridge, k):
    dictionaries = {s: dataclasses.replace(d, k=k) for s, d in random_dictionaries().items()}
    model = splice(bridge, dictionaries, name="random")
    latents = {site: [3, 50, 95] for site in model.sites}
    means = mean_activations(model, latents, TEXTS)
    for site in model.sites:
        sums, counts = torch.zeros(model.d_vocab, 3), torch.zeros(model.d_vocab)
        for text in TEXTS:
            trace = model.trace(text)
            for i, token in list(enumerate(trace.ids.tolist()))[1:]:
                sums[token] += trace.sites[site].dense()[i, [3, 50, 95]]
                counts[token] += 1
        expected = sums / counts.clamp(min=1)[:, None]
        torch.testing.assert_close(means[site].T, expected, rtol=1e-4, atol=1e-5)
        assert means[site].shape == (3, model.d_vocab)


def test_promoted_words_are_what_the_latent_adds_to_the_logits(model):
    """At the last residual, with the final norm's scale held, the approximation is exact."""
    site = Site(2, "resid")
    dictionary = model.dictionaries[site]
    huggingface = model.bridge.original_model
    ours = promoted_logits(model, site, [7])[0]
    x = torch.randn(1, model.config.hidden_size, generator=torch.Generator().manual_seed(0))

    def logits(x):
        scale = torch.rsqrt(x_scale.pow(2).mean(-1, keepdim=True) + model.config.rms_norm_eps)
        normed = x * scale * (1 + huggingface.model.norm.weight)
        return normed @ huggingface.get_output_embeddings().weight.T

    x_scale = x
    change = (logits(x + dictionary.W_dec[7]) - logits(x))[0]
    torch.testing.assert_close(ours / ours.norm(), change / change.norm(), rtol=1e-4, atol=1e-5)


def test_an_attention_latent_goes_through_w_o_and_the_norm_after_it(model):
    site = Site(1, "attn")
    block = model.bridge.original_model.model.layers[1]
    written = block.self_attn.o_proj(model.dictionaries[site].W_dec[[4]])
    normed = block.post_attention_layernorm(written)  # up to a positive factor: its scale
    final = normed * (1 + model.bridge.original_model.model.norm.weight)
    expected = (final @ model.bridge.original_model.get_output_embeddings().weight.T)[0]
    ours = promoted_logits(model, site, [4])[0]
    torch.testing.assert_close(ours / ours.norm(), expected / expected.norm(), rtol=1e-4, atol=1e-5)


def test_a_planted_latent_is_labelled_by_what_was_planted(model):
    """It reads the direction of one token and writes that of another."""
    site = Site(0, "resid")
    fires_on, promotes = model.token_id("w9"), model.token_id("w20")
    x = model.activations(model.tokens(TEXTS[0]))[1][site][0]
    reads = x[3] - x.mean(0)  # w9 stands at position 3
    embedding = model.bridge.original_model.get_output_embeddings().weight
    dictionary = model.dictionaries[site]
    W_enc, W_dec = dictionary.W_enc.clone(), dictionary.W_dec.clone()
    b_enc, threshold = dictionary.b_enc.clone(), dictionary.threshold.clone()
    W_enc[:, 11], W_dec[11] = reads, embedding[promotes] * 10
    pre = x @ reads
    second = pre[torch.arange(len(pre)) != 3].max()
    assert pre[3] > second
    b_enc[11], threshold[11] = 0.0, float(pre[3] + second) / 2
    planted = dataclasses.replace(
        dictionary, W_enc=W_enc, W_dec=W_dec, b_enc=b_enc, threshold=threshold
    )
    spliced = splice(model.bridge, {site: planted}, name="planted", example_texts=TEXTS[:1])
    node = LatentNode(site, 11, 1)
    label = label_latents(spliced, graph_of(node)).digraph.nodes[node]["label"]
    promoted, fires = label.split(" | ")
    assert spliced.token_id(fires.removeprefix("on ")) == fires_on
    assert "w20" in promoted.split()


def test_every_latent_gets_a_label_and_the_graph_given_is_left_alone(model):
    latents = [LatentNode(site, 5 + i, 1) for i, site in enumerate(model.sites)]
    graph = graph_of(*latents)
    labelled = label_latents(model, graph, texts=TEXTS)
    assert all(labelled.digraph.nodes[node]["label"] for node in latents)
    assert all(value is None for _, value in graph.digraph.nodes(data="label"))
    assert labelled.provenance["labels"]["fires on"].endswith("over 3 texts")
    assert "labels" not in graph.provenance
    assert "<" not in "".join(labelled.digraph.nodes[node]["label"] for node in latents)


def test_without_texts_the_prompt_itself_is_read(model):
    graph = graph_of(LatentNode(Site(0, "mlp"), 1, 1))
    assert model.example_texts == ()
    labelled = label_latents(model, graph)
    assert labelled.provenance["labels"]["fires on"].endswith("over 1 text")


def test_a_latent_that_the_model_does_not_have_is_refused(model):
    with pytest.raises(UserError, match=r"no dictionary at mlp\.7"):
        label_latents(model, graph_of(LatentNode(Site(7, "mlp"), 1, 1)))
    with pytest.raises(UserError, match=r"no latent 96; mlp\.0 has 96"):
        label_latents(model, graph_of(LatentNode(Site(0, "mlp"), 96, 1)))


def test_a_single_text_is_one_text_and_any_iterable_of_texts_will_do(model):
    nodes = [LatentNode(Site(1, "mlp"), latent, 1) for latent in range(5)]
    expected = labels_of(model, nodes, [TEXTS[0]])
    assert labels_of(model, nodes, TEXTS[0]) == expected
    assert labels_of(model, iter(nodes), (text for text in ("", TEXTS[0]))) == expected
    assert labels_of(model, nodes, TEXTS) != expected
