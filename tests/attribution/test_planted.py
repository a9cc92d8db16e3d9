"""A circuit set by hand is recovered exactly: precision and recall are 1, for nodes and for edges.

Two layers, sixteen dimensions, each a latent of its own at every site. Head 0 of layer 0 copies: at
`to` it looks for a name and writes the name it found into the residual, where the tied unembedding
reads it. Everything else is a decoy: head 1 finds the same name and writes nothing; at other
positions head 0 copies the name too, where nobody looks.
"""

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from attribution import attribute, logit_diff
from attribution.metrics import bind
from circuits import (
    KINDS,
    Dictionary,
    LatentNode,
    LogitNode,
    Site,
    TokenNode,
    load_gemma,
    splice,
    zero,
)

D, D_HEAD = 16, 8
WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", "Mary", "John", "to", "a", "b", "c"]
MARY, JOHN, NAME, QUERY = 0, 1, 8, 9  # dimensions of the residual stream
PROMPT, LAST = "a Mary b to", 4
METRIC = logit_diff("Mary", "John")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    config = Gemma2Config(
        vocab_size=len(WORDS),
        hidden_size=D,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=D_HEAD,
        query_pre_attn_scalar=D_HEAD,
        sliding_window=16,
        max_position_embeddings=32,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    model: Any = Gemma2ForCausalLM(config)
    for weight in model.parameters():
        weight.data.zero_()  # a norm's gain is 1 + weight
    embedding = model.model.embed_tokens.weight.data
    for word, dimensions in {
        "Mary": [MARY, NAME],
        "John": [JOHN, NAME],
        "to": [QUERY],
        "a": [2],
        "b": [3],
        "c": [4],
        "<bos>": [12],
    }.items():
        embedding[WORDS.index(word), dimensions] = 1.0
    head = model.model.layers[0].self_attn
    for first in (0, D_HEAD):  # both heads look for a name, and read which it is
        head.q_proj.weight.data[first + 3, QUERY] = 10.0  # 3: where rotation is slowest
        head.k_proj.weight.data[first + 3, NAME] = 1.0
        head.v_proj.weight.data[first + 0, MARY] = 1.0
        head.v_proj.weight.data[first + 1, JOHN] = 1.0
    head.o_proj.weight.data[MARY, 0] = 1.0  # head 0 alone writes
    head.o_proj.weight.data[JOHN, 1] = 1.0
    model.save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {f"{n}_token": f"<{n}>" for n in ("pad", "eos", "bos", "unk")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    dictionary = Dictionary(
        W_enc=torch.eye(D),
        b_enc=torch.zeros(D),
        threshold=torch.full((D,), 0.1),
        W_dec=torch.eye(D),
        b_dec=torch.zeros(D),
    )
    sites = [Site(layer, kind) for layer in range(2) for kind in KINDS]
    return splice(load_gemma(str(folder), device="cpu"), dict.fromkeys(sites, dictionary))


COPY = LatentNode(Site(0, "attn"), MARY, LAST)
AFTER_0 = LatentNode(Site(0, "resid"), MARY, LAST)
AFTER_1 = LatentNode(Site(1, "resid"), MARY, LAST)
LOGIT = LogitNode("Mary - John")
NODES = {TokenNode(2), COPY, AFTER_0, AFTER_1}
EDGES = {(TokenNode(2), COPY), (COPY, AFTER_0), (AFTER_0, AFTER_1), (AFTER_1, LOGIT)}


@pytest.fixture(scope="module")
def attribution(planted):
    return attribute(planted, PROMPT, METRIC, max_latents=None, downstream="freeze")


def test_the_model_does_what_was_planted(planted):
    assert bind(METRIC, planted)(planted(PROMPT)).item() > 2
    other = PROMPT.replace("Mary", "John")
    assert bind(METRIC, planted)(planted(other)).item() < -2


def test_nodes_are_recovered_exactly(attribution):
    effects = attribution.effects[:-1].abs()
    found = {attribution.nodes[i] for i in (effects > 1e-5 * effects.max()).nonzero()[:, 0]}
    assert found == NODES
    decoys = [n for n in attribution.nodes if isinstance(n, LatentNode) and n not in NODES]
    assert len(decoys) > 10


def test_edges_are_recovered_exactly(attribution):
    contribution = torch.from_numpy(attribution.edges.toarray()) * attribution.target_grads[:, None]
    strong = (contribution.abs() > 1e-5 * contribution.abs().max()).nonzero().tolist()
    assert {(attribution.nodes[s], attribution.nodes[t]) for t, s in strong} == EDGES


def test_the_whole_metric_passes_through_every_node(attribution):
    index = {node: i for i, node in enumerate(attribution.nodes)}
    through = attribution.effects[[index[node] for node in NODES]]
    torch.testing.assert_close(through, through[:1].expand(len(NODES)))


def test_ablation_confirms_the_circuit_and_clears_the_decoys(planted, attribution):
    score = bind(METRIC, planted)
    clean = score(planted(PROMPT)).item()
    for node in attribution.nodes:
        if not isinstance(node, LatentNode):
            continue
        ablated = score(planted(PROMPT, [zero(node)])).item()
        if node in NODES:
            assert abs(ablated) < 1e-5
        elif node.pos != LAST or node.site.kind == "attn":
            assert ablated == pytest.approx(clean)
