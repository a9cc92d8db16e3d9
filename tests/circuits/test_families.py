"""A second family passes the theorems of the first, and a third is one more file."""

import json
import sys
from functools import partial
from itertools import combinations
from pathlib import Path

import pytest
import torch
from transformers import (
    Gemma2ForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

import circuits.families
from attribution import attribute, logit_diff, total_effects
from attribution.metrics import bind
from circuits import (
    KINDS,
    ErrorNode,
    LatentNode,
    Prompt,
    Site,
    TokenNode,
    UserError,
    load,
    load_gemma,
    scale,
    splice,
    zero,
)
from circuits.families import families, family_of
from circuits.formats.npz import save_npz
from circuits.freeze import Freeze
from circuits.interventions import edits
from circuits.sites import ALL_KINDS
from graphs import AttributionGraph, label_latents
from graphs.labels import promoted_logits
from tests.plain_hooks import plain_hooks
from tests.random_gemma import (
    TEXT,
    chosen_dictionaries,
    random_dictionaries,
    random_transcoders,
)
from tests.random_llama import BOS, EOS, save_random_llama

METRIC = logit_diff("w3", "w4")
TEXTS = ["w1 w2 w3", TEXT, "w4 w4 w20 w21 w22 w4"]
SITES = [Site(layer, kind) for layer in range(3) for kind in KINDS]
CHOICES = [kinds for n in (1, 2, 3) for kinds in combinations(KINDS, n)]
CHOICES += [("transcoder",), ("attn", "skip", "resid")]
PLAIN = {"gemma2": Gemma2ForCausalLM, "llama": LlamaForCausalLM}


def keep(acts, error):
    """The edit that changes nothing: it makes the site compute its formula."""
    return acts, error


@pytest.fixture(scope="module")
def llama(llama_bridge):
    """Every site spliced, float32."""
    return splice(llama_bridge, random_dictionaries(), name="random Llama")


@pytest.fixture(scope="module", params=["gemma2", "llama"])
def folder(request, gemma_folder, llama_folder):
    return {"gemma2": gemma_folder, "llama": llama_folder}[request.param]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def both(request, folder):
    """A bridge and the plain Hugging Face model, from the same folder."""
    bridge = load_gemma(str(folder), device="cpu", dtype=request.param)
    plain = PLAIN[family_of(bridge.original_model).model_type].from_pretrained(
        folder, dtype=request.param, attn_implementation="eager"
    )
    return bridge, plain.eval()


@pytest.mark.parametrize("downstream", ["recompute", "freeze"])
@pytest.mark.parametrize("kinds", CHOICES, ids="+".join)
def test_spliced_and_plain_logits_agree_bit_for_bit(both, kinds, downstream):
    bridge, plain = both
    model = splice(bridge, chosen_dictionaries(kinds))
    for text in TEXTS:
        ids = model.tokens(text)
        with torch.no_grad():
            expected = plain(ids).logits
        spliced = model.run(ids, dict.fromkeys(model.sites, keep), downstream=downstream)
        assert torch.equal(spliced, expected)
        assert torch.equal(model(text), expected)


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("attention", [False, True])
def test_what_gradients_hold_constant_does_not_change_a_bit(both, attention, norms):
    bridge, plain = both
    model = splice(bridge, random_dictionaries())
    ids = model.tokens(TEXT)
    frozen = model.forward(ids, {}, freeze=Freeze(attention, norms))
    with torch.no_grad():
        assert torch.equal(frozen, plain(ids).logits)


def test_every_norm_of_the_model_is_one_of_the_familys(both):
    bridge, _ = both
    huggingface = bridge.original_model
    family = family_of(huggingface)
    there = {n.removesuffix(".hook_normalized") for n in bridge.hook_dict if "_normalized" in n}
    norms = family.norms_of(huggingface)
    assert set(norms) == there
    ones = torch.ones(huggingface.config.hidden_size)
    for norm in norms.values():  # of a vector of ones a norm makes its gain
        expected = norm(ones) * (1 + huggingface.config.rms_norm_eps) ** 0.5
        torch.testing.assert_close(family.gain(norm), expected.float(), rtol=1e-2, atol=1e-2)


def activation_by_hand(huggingface, ids, path, *, before):
    """What a Hugging Face module reads (`before`) or writes."""
    kept = []

    def keep(module, args, output=None):
        x = args[0] if before else output
        kept.append(x[0] if isinstance(x, tuple) else x)

    module = huggingface.get_submodule(path)
    handle = (module.register_forward_pre_hook if before else module.register_forward_hook)(keep)
    try:
        with torch.no_grad():
            huggingface(ids)
    finally:
        handle.remove()
    return kept[0]


def norms_after(block):
    """Whether a Hugging Face layer has norms after its sublayers too, as Gemma 2 does."""
    return hasattr(block, "post_feedforward_layernorm")


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_sites_are_where_their_definitions_say(both, layer):
    """`mlp` is what is added to the residual, `attn` what W_O reads, `resid` what a layer gives."""
    bridge, plain = both
    model = splice(bridge, random_dictionaries())
    ids = model.tokens(TEXT)
    embedding, _, activations = model.activations(ids)
    block = f"model.layers.{layer}"
    last = "post_feedforward_layernorm" if norms_after(plain.model.layers[layer]) else "mlp"
    expected = {
        "attn": activation_by_hand(plain, ids, f"{block}.self_attn.o_proj", before=True),
        "mlp": activation_by_hand(plain, ids, f"{block}.{last}", before=False),
        "resid": activation_by_hand(plain, ids, block, before=False),
    }
    for kind, x in expected.items():
        assert torch.equal(activations[Site(layer, kind)], x)
    first = activation_by_hand(plain, ids, "model.layers.0.input_layernorm", before=True)
    assert torch.equal(embedding, first)


def test_a_direction_reaches_the_residual_by_the_models_own_weights(both):
    """A nudge at `attn` moves the residual along `to_residual`, up to a norm's scale."""
    bridge, _ = both
    huggingface = bridge.original_model
    family, site = family_of(huggingface), Site(1, "attn")
    width = family.widths(huggingface.config)["attn"]
    directions = torch.randn(5, width, generator=torch.Generator().manual_seed(0))
    block = huggingface.model.layers[1]
    written = block.self_attn.o_proj(directions.to(bridge.cfg.dtype))
    if norms_after(block):
        written = block.post_attention_layernorm(written)
    reached = family.to_residual(huggingface, site, directions)
    cosine = torch.cosine_similarity(written.float(), reached, dim=-1)
    torch.testing.assert_close(cosine, torch.ones(5), rtol=0, atol=1e-4)
    same = torch.randn(5, 32)
    assert family.to_residual(huggingface, Site(1, "resid"), same) is same


class TestTheEmbeddingSite:
    """A dictionary on the embedding reads what the token leaf gives."""

    @pytest.fixture
    def spliced(self, both):
        bridge, _ = both
        dictionaries = random_dictionaries()
        chosen = {Site(0, "embed"): dictionaries[Site(0, "resid")]}
        return splice(bridge, chosen | {Site(1, "mlp"): dictionaries[Site(1, "mlp")]})

    def test_it_changes_no_bit(self, both, spliced):
        ids = spliced.tokens(TEXT)
        with torch.no_grad():
            expected = both[1](ids).logits
        assert torch.equal(
            spliced.run(ids, dict.fromkeys(spliced.sites, keep), downstream="freeze"), expected
        )

    def test_its_hook_comes_after_the_leaf(self, spliced):
        ids = spliced.tokens(TEXT)
        leaf = torch.zeros(1, ids.shape[1], 32, dtype=spliced.dtype)
        seen = []
        spliced.forward(
            ids,
            {Site(0, "embed"): lambda x, _: (seen.append(x), x)[1]},
            embedding=lambda *_: leaf,
        )
        assert torch.equal(seen[0], leaf)


def test_a_transcoder_and_an_autoencoder_for_one_mlp(bridge, model):
    dictionary = model.dictionaries[Site(0, "mlp")]
    with pytest.raises(UserError, match=r"both transcoder\.0 and mlp\.0, which write the same"):
        splice(bridge, {Site(0, kind): dictionary for kind in ("transcoder", "mlp")})


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_transcoder_reads_the_mlps_input_before_the_gain(both, layer):
    """TransformerLens' `ln2.hook_normalized`, which no gradient needs, has the same values."""
    bridge, plain = both
    model = splice(bridge, random_transcoders())
    ids = model.tokens(TEXT)
    _, inputs, outputs = model.activations(ids)
    site = Site(layer, "transcoder")
    seen = {}
    hook = (f"blocks.{layer}.ln2.hook_normalized", lambda x, hook: seen.update(x=x))
    with torch.no_grad(), bridge.hooks(fwd_hooks=[hook]):
        bridge(ids)
    assert torch.equal(inputs[site], seen["x"].to(model.dtype))
    block = f"model.layers.{layer}"
    written = splice(bridge, random_dictionaries()).activations(ids)[2][Site(layer, "mlp")]
    assert torch.equal(outputs[site], written)
    norm = family_of(bridge.original_model).norms_of(bridge.original_model)[f"blocks.{layer}.ln2"]
    mlp_in = activation_by_hand(plain, ids, f"{block}.mlp", before=True)
    if model.dtype == torch.float32:
        gained = inputs[site] * model.family.gain(norm)
        torch.testing.assert_close(gained, mlp_in, rtol=1e-5, atol=1e-6)


def test_a_dictionary_of_another_width(llama_bridge, model):
    with pytest.raises(UserError, match=r"attn\.0 reads 32 .* model has 24"):
        splice(llama_bridge, {Site(0, "attn"): model.dictionaries[Site(0, "mlp")]})


class TestWithoutAPaddingToken:
    """TransformerLens pads a Llama with EOS, which in a chat is also a token like others."""

    def test_eos_inside_a_prompt_is_read(self, llama, llama_folder):
        plain = LlamaForCausalLM.from_pretrained(llama_folder, attn_implementation="eager")
        ids = torch.tensor([[BOS, 5, 6, EOS, 7, 8, EOS]])
        assert llama.reads(ids).tolist() == [[False, True, True, False, True, True, False]]
        with torch.no_grad():
            assert torch.equal(llama(ids), plain(ids).logits)

    def test_padding_on_the_right_does_not_change_a_prompt(self, llama):
        for row, text in zip(llama(TEXTS), TEXTS, strict=True):
            alone = llama(text)[0]
            torch.testing.assert_close(row[: len(alone)], alone, rtol=1e-5, atol=1e-5)

    def test_padding_on_the_left_is_masked(self, llama):
        ids = llama.tokens("w1 w2 w3")
        padded = torch.cat([torch.full((1, 3), EOS), ids], 1)
        torch.testing.assert_close(llama(padded)[:, 3:], llama(ids), rtol=1e-5, atol=1e-5)


def under(model, rows, downstream):
    """The metric under each of `rows` of changes, and which latents are on anywhere."""
    on = []

    def watched(edit):
        def hook(acts, error):
            on.append(acts > 0)
            return edit(acts, error) if edit else (acts, error)

        return hook

    ids = model.tokens(TEXT).expand(len(rows), -1)
    changes = edits(model, ids, rows)
    logits = model.run(ids, {s: watched(changes.get(s)) for s in SITES}, downstream=downstream)
    return bind(METRIC, model)(logits), torch.cat(on, -1)


@pytest.mark.parametrize("downstream", ["recompute", "freeze"])
@pytest.mark.parametrize("site", SITES, ids=str)
def test_a_total_effect_is_a_finite_difference(llama, site, downstream):
    """Frozen errors: where no latent crosses its threshold on the way; the metric jumps there.

    The step is the largest that crosses none: float32 rounds the metric of a small one.
    """
    effects = total_effects(llama, TEXT, METRIC, downstream=downstream)
    e = effects.sites[site]
    top = e.effect.abs().topk(8).indices
    nodes: list = [LatentNode(site, int(e.latent[i]), int(e.pos[i])) for i in top]
    nodes.append(ErrorNode(site, int(e.error_effect.abs().argmax())))
    steps = (4e-3, 2e-3, 1e-3)
    rows = [[scale(node, 1 + s)] for node in nodes for h in steps for s in (h, -h)]
    values, on = (x.unflatten(0, (len(nodes), -1, 2)) for x in under(llama, rows, downstream))
    tested = 0
    for n, node in enumerate(nodes):
        for h, (up, down), (on_up, on_down) in zip(steps, values[n].tolist(), on[n], strict=True):
            if downstream == "recompute" or torch.equal(on_up, on_down):
                assert (up - down) / (2 * h) == pytest.approx(effects.of(node), rel=2e-2, abs=2e-3)
                tested += 1
                break
    assert tested >= 3


def test_an_ablation_equals_the_same_edit_by_hand(llama, llama_folder):
    plain = LlamaForCausalLM.from_pretrained(llama_folder, attn_implementation="eager")
    ids = llama.tokens(TEXT)
    for site in SITES:
        t = llama.trace(TEXT).sites[site]
        best = int(t.acts.argmax())
        node = LatentNode(site, int(t.latent[best]), int(t.pos[best]))
        delta = -t.acts[best] * llama.dictionaries[site].W_dec[node.latent]
        at, source = t.pos[[best]], delta[None, None]
        edits = {site: partial(torch.index_add, dim=1, index=at, source=source)}
        with plain_hooks(plain, edits), torch.no_grad():
            expected = plain(ids).logits
        assert not torch.allclose(expected, llama(TEXT), atol=1e-4)
        torch.testing.assert_close(llama(TEXT, [zero(node)]), expected, rtol=1e-4, atol=1e-4)


def test_from_a_folder_to_a_labelled_graph(llama_folder, tmp_path, llama):
    suffix = {"attn": "att", "mlp": "mlp", "resid": "res"}
    for site, dictionary in llama.dictionaries.items():
        folder = tmp_path / f"own-{suffix[site.kind]}/layer_{site.layer}/width_96/average_l0_30"
        folder.mkdir(parents=True)
        save_npz(dictionary, folder / "params.npz")
    model = load(llama_folder, dictionaries=tmp_path, device="cpu")
    assert model.sites == llama.sites
    assert torch.equal(model(TEXT), llama(TEXT))
    prompt = Prompt(TEXT, target="w3", foil="w4")
    attribution = attribute(model, prompt, logit_diff(prompt), max_latents=50)
    graph = AttributionGraph.from_attribution(attribution)
    labelled = label_latents(model, graph, texts=TEXTS)
    assert all(labelled.digraph.nodes[node]["label"] for node in graph.latents())
    assert any(isinstance(node, TokenNode) for node in graph.digraph)


def test_promoted_words_are_what_the_latent_adds_to_the_logits(llama):
    """At the last residual, with the final norm's scale held, the approximation is exact."""
    site = Site(2, "resid")
    direction = llama.dictionaries[site].W_dec[7]
    huggingface = llama.bridge.original_model
    change = huggingface.lm_head(huggingface.model.norm.weight * direction)
    torch.testing.assert_close(promoted_logits(llama, site, [7])[0], change, rtol=1e-4, atol=1e-5)


@pytest.fixture
def mistral_file(tmp_path, monkeypatch):
    """One more file in the package, as a user would write it."""
    (tmp_path / "mistral.py").write_text(
        "import dataclasses\n"
        "from circuits.families import llama\n"
        'FAMILY = dataclasses.replace(llama.FAMILY, model_type="mistral", title="Mistral")\n'
    )
    package = [*circuits.families.__path__, str(tmp_path)]
    monkeypatch.setattr(circuits.families, "__path__", package)
    yield
    sys.modules.pop("circuits.families.mistral", None)


class TestAThirdFamily:
    @pytest.fixture
    def folder(self, tmp_path):
        folder = tmp_path / "model"
        return save_random_llama(folder, config_class=MistralConfig, model_class=MistralForCausalLM)

    def test_without_its_file_the_known_ones_are_named(self, folder):
        with pytest.raises(UserError, match="of type 'mistral'; give one of type gemma2, llama"):
            load_gemma(str(folder), device="cpu")

    @pytest.mark.usefixtures("mistral_file")
    def test_its_file_is_all_it_takes(self, folder):
        assert list(families()) == ["gemma2", "llama", "mistral"]
        model = splice(load_gemma(str(folder), device="cpu"), random_dictionaries())
        assert model.family.title == "Mistral"
        plain = MistralForCausalLM.from_pretrained(folder, attn_implementation="eager")
        ids = model.tokens(TEXT)
        frozen = model.forward(ids, {}, freeze=Freeze(attention=True, norms=True))
        with torch.no_grad():
            expected = plain(ids).logits
        assert torch.equal(model.run(ids, dict.fromkeys(SITES, keep)), expected)
        assert torch.equal(frozen, expected)
        assert attribute(model, TEXT, METRIC, max_latents=20).edges.nnz > 0


def test_no_family_is_named_outside_its_file():
    root = Path(circuits.families.__file__).parent.parent.parent
    for package in ("circuits", "attribution", "graphs"):
        for path in (root / package).rglob("*.py"):
            if path.parent.name != "families":
                named = [t for t in families() if json.dumps(t) in path.read_text()]
                assert not named, f"{path} names {named}"


def test_a_family_gives_every_kind_that_can_be_spliced(both):
    bridge, _ = both
    family = family_of(bridge.original_model)
    widths = family.widths(bridge.original_model.config)
    assert set(widths) == set(family.hook_points) == set(ALL_KINDS)
