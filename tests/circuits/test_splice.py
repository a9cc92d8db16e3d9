"""Spliced and plain logits agree bit for bit; an intervention is the same edit made by hand."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from transformers import Gemma2ForCausalLM

from circuits import (
    KINDS,
    BiasNode,
    ErrorNode,
    HookPoint,
    LatentNode,
    Logits,
    Prompt,
    Reference,
    Site,
    SiteInput,
    UserError,
    corrupted_reference,
    edits,
    load_gemma,
    mean,
    mean_reference,
    scale,
    set_to,
    splice,
    zero,
    zero_reference,
)
from circuits.families.gemma2 import FAMILY as GEMMA2
from circuits.freeze import Freeze
from circuits.reference import check_reference
from tests.plain_hooks import plain_hooks
from tests.random_gemma import (
    TEXT,
    chosen_dictionaries,
    random_dictionaries,
    random_transcoders,
)

TEXTS = ["w1 w2 w3", TEXT, "w4 w4 w20 w21 w22 w4"]


def keep(acts, error):
    """The edit that changes nothing: it makes the site compute its formula."""
    return acts, error


def choices_of_sites():
    kinds = [c for n in (1, 2, 3) for c in combinations(KINDS, n)]
    kinds += [("transcoder",), ("skip",), ("attn", "transcoder"), ("attn", "skip", "resid")]
    kinds += [("cross",), ("attn", "cross residual", "resid")]
    choices = [chosen_dictionaries(some) for some in kinds]
    plain, transcoders = random_dictionaries(), random_transcoders(skip=True)
    return [
        *choices,
        {Site(1, "resid"): plain[Site(1, "resid")]},
        {site: plain[site] for site in (Site(0, "attn"), Site(2, "mlp"))},
        {
            Site(0, "mlp"): plain[Site(0, "mlp")],
            Site(1, "transcoder"): transcoders[Site(1, "transcoder")],
        },
    ]


def names(dictionaries):
    skips = any(d.W_skip is not None for d in dictionaries.values())
    later = any(d.n_later for d in dictionaries.values())
    return "+".join(map(str, dictionaries)) + "+skips" * skips + "+later" * later


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def both(request, gemma_folder):
    """A bridge and the plain Hugging Face model, from the same folder."""
    plain = Gemma2ForCausalLM.from_pretrained(
        gemma_folder, dtype=request.param, attn_implementation="eager"
    )
    return load_gemma(str(gemma_folder), device="cpu", dtype=request.param), plain.eval()


def test_float32_dictionaries_fit_a_bfloat16_model(gemma_folder):
    bridge = load_gemma(str(gemma_folder), device="cpu", dtype=torch.bfloat16)
    model = splice(bridge, random_dictionaries())
    ids = model.tokens(TEXTS)
    with torch.no_grad():
        plain = bridge(ids, attention_mask=(ids != 0).long())
    for downstream in ("recompute", "freeze"):
        spliced = model.run(ids, dict.fromkeys(model.sites, keep), downstream=downstream)
        assert spliced.dtype == torch.bfloat16
        assert torch.equal(spliced, plain)
    assert all(t.acts.dtype == torch.float32 for t in model.trace(TEXT).sites.values())


@pytest.mark.parametrize("dictionaries", choices_of_sites(), ids=names)
@pytest.mark.parametrize("downstream", ["recompute", "freeze"])
def test_spliced_and_plain_logits_agree_bit_for_bit(both, dictionaries, downstream):
    bridge, plain = both
    dtype = next(plain.parameters()).dtype
    model = splice(bridge, {site: d.to(dtype=dtype) for site, d in dictionaries.items()})
    ids = model.tokens(TEXTS)
    with torch.no_grad():
        expected = plain(ids, attention_mask=(ids != 0).long()).logits
    spliced = model.run(ids, dict.fromkeys(model.sites, keep), downstream=downstream)
    assert torch.equal(spliced, expected)
    assert torch.equal(model(TEXTS), expected)


def test_padding_does_not_change_a_prompt(model):
    padded = model(TEXTS)
    for row, text in zip(padded, TEXTS, strict=True):
        alone = model(text)[0]
        torch.testing.assert_close(row[: len(alone)], alone, rtol=1e-5, atol=1e-5)


def test_left_padding_is_masked_too(model):
    ids = model.tokens("w1 w2 w3")
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    torch.testing.assert_close(model(padded)[:, 3:], model(ids), rtol=1e-5, atol=1e-5)


def test_dictionaries_do_not_read_bos_eos_and_padding(model):
    ids = torch.tensor([[2, 5, 6, 1, 0]])
    assert model.reads(ids).tolist() == [[False, True, True, False, False]]
    trace = model.trace(ids)
    activations = model.activations(ids)[1]
    for site, t in trace.sites.items():
        assert set(t.pos.tolist()) == {1, 2}
        for pos in (0, 3, 4):
            assert torch.equal(t.error[pos], activations[site][0, pos])


@pytest.fixture(scope="module", params=[KINDS, ("attn", "transcoder", "resid"), ("skip",)])
def some(request, bridge):
    """A model with some kinds of site spliced, float32."""
    return splice(bridge, chosen_dictionaries(request.param), name="random")


def test_a_trace_reconstructs_what_a_site_writes(some):
    _, inputs, outputs = some.activations(some.tokens(TEXT))
    for site, t in some.trace(TEXT).sites.items():
        decoded = some.dictionaries[site].decode(t.dense(), inputs[site][0])
        decoded[0] = 0  # BOS
        torch.testing.assert_close(decoded + t.error, outputs[site][0], rtol=1e-5, atol=1e-5)


def strongest(model, site, pos=4):
    t = model.trace(TEXT).sites[site]
    here = (t.pos == pos).nonzero()[:, 0]
    best = here[t.acts[here].argmax()]
    return LatentNode(site, int(t.latent[best]), pos), t.acts[best]


def by_hand(model, site, pos, delta):
    """Plain PyTorch: add `delta` to what the Hugging Face module at `site` gives."""
    huggingface = model.bridge.original_model
    at = torch.tensor([pos])
    edits = {site: lambda x: x.index_add(1, at, delta.expand(1, 1, -1))}
    with plain_hooks(huggingface, edits), torch.no_grad():
        return huggingface(model.tokens(TEXT)).logits


@pytest.mark.parametrize("kind", [*KINDS, "transcoder", "skip"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_an_ablation_equals_the_same_edit_by_hand(bridge, layer, kind):
    model = splice(bridge, chosen_dictionaries([kind]))
    site = Site(layer, "transcoder" if kind == "skip" else kind)
    node, act = strongest(model, site)
    direction = model.dictionaries[site].W_dec[node.latent]
    error = model.trace(TEXT).sites[site].error[3]
    cases = [
        (zero(node), -act * direction),
        (scale(node, 2.5), 1.5 * act * direction),
        (set_to(node, 7.0), (7.0 - act) * direction),
    ]
    for intervention, delta in cases:
        expected = by_hand(model, site, node.pos, delta)
        assert not torch.allclose(expected, model(TEXT), atol=1e-4)
        torch.testing.assert_close(model(TEXT, [intervention]), expected, rtol=1e-4, atol=1e-4)
    expected = by_hand(model, site, 3, -error)
    ablated = model(TEXT, [zero(ErrorNode(site, 3))])
    torch.testing.assert_close(ablated, expected, rtol=1e-4, atol=1e-4)


def test_the_mean_is_the_mean_of_the_values(model):
    texts = [TEXT, TEXT.replace("w5", "w6"), TEXT.replace("w9", "w12")]
    site = Site(1, "mlp")
    node, _ = strongest(model, site)
    reference = mean_reference(model, texts)
    values = [model.trace(t).sites[site].dense()[node.pos, node.latent] for t in texts]
    torch.testing.assert_close(reference.value(node), torch.stack(values).mean())
    errors = torch.stack([model.trace(t).sites[site].error[4] for t in texts])
    torch.testing.assert_close(reference.value(ErrorNode(site, 4)), errors.mean(0))
    expected = model(TEXT, [set_to(node, float(torch.stack(values).mean()))])
    torch.testing.assert_close(model(TEXT, [mean(node, reference)]), expected)


def test_freeze_is_reconstructions_plus_clean_errors(some):
    """By hand: the changed site, and downstream of it `decode(encode(x)) + clean error`."""
    model = some
    node, act = strongest(model, model.sites[1])
    ids = model.tokens(TEXT)
    reads, errors = model.reads(ids), model.errors(ids)

    def by_hand(site):
        def hook(read, _):
            out = model.split(site, read, reads)[1] + errors[site]
            if site == node.site:
                out[:, node.pos] -= act * model.dictionaries[site].W_dec[node.latent]
            return out

        return hook

    with torch.no_grad():
        expected = model.forward(ids, {site: by_hand(site) for site in model.sites})
    frozen = model(TEXT, [zero(node)], downstream="freeze")
    torch.testing.assert_close(frozen, expected, rtol=1e-4, atol=1e-4)
    followed = model(TEXT, [zero(node)], downstream="recompute")
    assert not torch.allclose(frozen, followed, atol=1e-3)


def test_drop_is_the_model_made_of_reconstructions(some):
    model = some
    ids = model.tokens(TEXT)
    reads = model.reads(ids)

    def reconstruct(site):
        def hook(read, written):
            return torch.where(reads[..., None], model.split(site, read, reads)[1], written)

        return hook

    expected = model.forward(ids, {site: reconstruct(site) for site in model.sites})
    dropped = model.run(ids, downstream="drop")
    torch.testing.assert_close(dropped, expected, rtol=1e-4, atol=1e-4)


def test_the_corrupted_reference_is_the_other_prompts_trace(model):
    prompt = Prompt(TEXT, corrupted=TEXT.replace("w5", "w6"))
    node, _ = strongest(model, Site(1, "resid"))
    value = corrupted_reference(model, prompt).value(node)
    assert value == model.trace(prompt.corrupted).sites[node.site].dense()[node.pos, node.latent]
    assert zero_reference(model, prompt).value(node) == 0


def test_a_model_looks_up_its_family_once(bridge, monkeypatch):
    asked = []
    monkeypatch.setattr("circuits.model.family_of", lambda model: asked.append(1) or GEMMA2)
    model = splice(bridge, chosen_dictionaries(["transcoder"]))
    model.trace(TEXT)
    model.trace(TEXT)
    assert len(asked) == 1


class TestOutputs:
    """What a pass gives back is what the whole pass computes there."""

    def test_logits_at_a_position_are_those_of_the_whole(self, model):
        ids = model.tokens(TEXTS)  # of three lengths: padded
        whole = model.run(ids)
        for pos in (0, 3, 10, -1, -4):
            alone = model.run(ids, output=Logits(pos))
            torch.testing.assert_close(alone, whole[:, pos][:, None], rtol=1e-5, atol=1e-5)
        several = model.run(ids, output=(Logits(-1), (Logits(2), Logits(0))))
        for found, pos in ((several[0], -1), (several[1][0], 2), (several[1][1], 0)):
            torch.testing.assert_close(found, whole[:, pos][:, None], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("pos", [None, 4])
    def test_before_the_soft_cap(self, model, pos):
        cap = model.config.final_logit_softcapping
        before, after = model.run(
            model.tokens(TEXTS), output=(Logits(pos, soft_capped=False), Logits(pos))
        )
        torch.testing.assert_close(before, cap * (after / cap).atanh(), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(before, after, atol=1e-3)

    def test_what_a_site_reads(self, some):
        ids = some.tokens(TEXTS)
        inputs = some.activations(ids)[1]
        found = some.run(ids, output=tuple(SiteInput(site) for site in some.sites))
        for site, x in zip(some.sites, found, strict=True):
            assert torch.equal(x, inputs[site])

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_a_hook_point_gives_is_not_yet_edited(self, model, kind):
        site = Site(1, kind)
        ids, name = model.tokens(TEXT), model.family.hook_point(site)
        edit = {site: lambda acts, error: (acts * 0, error * 0)}
        assert torch.equal(
            model.run(ids, edit, output=SiteInput(site)), model.activations(ids)[1][site]
        )
        here, later = model.run(ids, edit, output=(HookPoint(name), SiteInput(Site(2, kind))))
        assert torch.equal(here.flatten(2), model.activations(ids)[1][site])
        assert not torch.allclose(later, model.activations(ids)[1][Site(2, kind)], atol=1e-2)

    def test_watching_changes_nothing(self, model):
        ids = model.tokens(TEXT)
        names = [f"blocks.1.{name}" for name in (
            "ln1.hook_in", "attn.hook_pattern", "mlp.gate.hook_out", "mlp.in.hook_out",
        )]  # fmt: skip
        seen = {}
        watch = {name: lambda x, name=name: seen.__setitem__(name, x) for name in names}
        logits = model.forward(ids, {}, watch=watch)
        assert torch.equal(logits, model(TEXT))
        found = model.run(ids, output=tuple(HookPoint(name) for name in names))
        for name, x in zip(names, found, strict=True):
            assert torch.equal(seen[name], x)

    @pytest.mark.parametrize("norms", [True, False])
    def test_the_gradient_of_what_a_transcoder_reads_obeys_the_norms(self, bridge, norms):
        """Euler: linear in its input where the scale is held, of degree 0 where it is live."""
        model = splice(bridge, chosen_dictionaries(["transcoder"]))

        def start(x, _):
            return x.detach().requires_grad_()

        normalized, x = model.forward(
            model.tokens(TEXT),
            {},
            freeze=Freeze(norms=norms),
            embedding=start,
            output=(SiteInput(Site(1, "transcoder")), HookPoint("blocks.1.ln2.hook_in")),
        )
        along = normalized[0, :, 3]  # one coordinate, at every position
        (grad,) = torch.autograd.grad(along.sum(), x)
        expected = along if norms else torch.zeros_like(along)
        torch.testing.assert_close((grad * x).sum(-1)[0], expected, rtol=1e-4, atol=1e-4)

    def test_the_unembedding_is_not_given_a_slice(self, model):
        """On a CPU in bfloat16 the logits of a slice take hundreds of times as long."""
        seen = []
        unembed = model.bridge.unembed.original_component
        handle = unembed.register_forward_pre_hook(
            lambda module, args: seen.append(args[0].is_contiguous())
        )
        model.run(model.tokens([TEXT, TEXT]), output=Logits(-1))
        handle.remove()
        assert seen == [True]

    @pytest.mark.parametrize(
        ("output", "message"),
        [
            (HookPoint("blocks.1.attn.hook_patern"), r"did you mean blocks\.1\.attn\.hook_pattern"),
            (HookPoint("blocks.1.hook_mlp_in"), "cannot be watched"),
            (HookPoint("blocks.1.attn.hook_hidden_states"), "does not go through"),
            (SiteInput(Site(7, "mlp")), "no layer 7; random has layers 0-2"),
            (Logits(11), "no position 11; the prompt has 11 tokens"),
            ("logits", "is no output"),
        ],
    )
    def test_bad_outputs_get_one_sentence(self, model, output, message):
        ids = model.tokens(TEXT)
        with pytest.raises(UserError, match=message):
            model.run(ids, output=output)
        assert torch.equal(model.run(ids), model(TEXT))  # no hook was left behind


class TestBadInput:
    """One sentence each: what came, what was expected, what to try."""

    @pytest.mark.parametrize("text", ["", "   "])
    def test_an_empty_prompt(self, model, text):
        with pytest.raises(UserError, match="prompt is empty"):
            model(text)

    def test_no_prompt(self, model):
        with pytest.raises(UserError, match="no prompt given"):
            model([])

    def test_a_prompt_longer_than_the_context(self, model):
        with pytest.raises(UserError, match="41 tokens with BOS; random reads at most 32"):
            model("w1 " * 40)

    def test_a_word_outside_the_vocabulary(self, model):
        with pytest.raises(UserError, match="does not know 'Mary'"):
            model("w1 Mary w2")

    @pytest.mark.parametrize("text", ["w1 w2", "Mary", ""])
    def test_a_target_that_is_not_one_token(self, model, text):
        with pytest.raises(UserError, match="is not one token of random"):
            model.token_id(text)

    def test_tokens_that_are_no_integers(self, model):
        with pytest.raises(UserError, match="token ids are integers"):
            model(torch.zeros(3))

    def test_a_corrupted_prompt_of_another_length(self, model):
        with pytest.raises(UserError, match="clean prompt has 11 tokens and the corrupted one 4"):
            corrupted_reference(model, Prompt(TEXT, corrupted="w1 w2 w3"))

    def test_a_mean_over_prompts_of_different_length(self, model):
        with pytest.raises(UserError, match="prompts of one length"):
            mean_reference(model, TEXTS)

    @pytest.mark.parametrize("prompt", [TEXT, Prompt(TEXT)])
    def test_a_mean_over_one_prompt(self, model, prompt):
        with pytest.raises(UserError, match="over several prompts; give a list"):
            mean_reference(model, prompt)

    def test_a_reference_of_dictionaries_that_write_another_size(self, model):
        site, reference = Site(1, "mlp"), zero_reference(model, TEXT)
        wider = replace(reference.trace.sites[site], error=torch.zeros(11, 33))
        trace = replace(reference.trace, sites={**reference.trace.sites, site: wider})
        with pytest.raises(UserError, match=r"96 latents at mlp.1 that write 33 .* write 32; make"):
            check_reference(model, Reference("zero", trace), model.tokens(TEXT))

    @pytest.mark.parametrize(
        ("node", "message"),
        [
            (LatentNode(Site(9, "mlp"), 0, 1), "no dictionary at mlp.9; random has layers 0-2"),
            (LatentNode(Site(1, "mlp"), 96, 1), "no latent 96; mlp.1 has 96"),
            (LatentNode(Site(1, "mlp"), 0, 11), "no position 11; the prompt has 11 tokens"),
            (LatentNode(Site(1, "mlp"), 0, 0), "do not read position 0"),
            (BiasNode(Site(1, "mlp")), "only on latents and errors"),
        ],
    )
    def test_a_node_that_cannot_be_intervened_on(self, model, node, message):
        with pytest.raises(UserError, match=message):
            model(TEXT, [zero(node)])

    @pytest.mark.parametrize(
        ("tokens", "message"),
        [
            (torch.zeros(1, 0, dtype=torch.long), "at least one"),
            (torch.full((1, 33), 5), "33 token ids; random reads at most 32"),
            (torch.tensor([2, 40]), "random has 0 to 39"),
            (torch.tensor([True, False]), "token ids are integers"),
            ([2, 3], "a prompt is a text or a Prompt; got int 2"),
        ],
    )
    def test_token_ids_that_cannot_be_read(self, model, tokens, message):
        with pytest.raises(UserError, match=message):
            model(tokens)

    def test_values_of_the_wrong_kind_or_size(self, model):
        latent, error = LatentNode(Site(1, "mlp"), 0, 1), ErrorNode(Site(1, "mlp"), 1)
        with pytest.raises(UserError, match="is no value"):
            set_to(latent, "3")  # pyright: ignore[reportArgumentType]
        with pytest.raises(UserError, match="is no factor"):
            scale(latent, "2")  # pyright: ignore[reportArgumentType]
        with pytest.raises(UserError, match="an activation is one number; got 5"):
            set_to(latent, torch.zeros(5))
        with pytest.raises(UserError, match="an error has 32 numbers"):
            model(TEXT, [set_to(error, torch.zeros(5))])
        with pytest.raises(UserError, match="give a list of interventions"):
            model(TEXT, zero(latent))

    def test_a_reference_without_the_node(self, model):
        reference = zero_reference(model, "w1 w2")
        with pytest.raises(UserError, match="there are 3 positions"):
            mean(LatentNode(Site(1, "mlp"), 0, 5), reference)

    def test_a_node_named_twice(self, model):
        node = LatentNode(Site(1, "mlp"), 0, 1)
        with pytest.raises(UserError, match="intervened on twice"):
            model(TEXT, [zero(node), scale(node, 2.0)])

    def test_a_run_without_token_ids_or_edits(self, model):
        ids, node = model.tokens(TEXT), LatentNode(Site(1, "mlp"), 0, 1)
        for wrong in ([zero(node)], {node.site: zero(node)}, zero(node)):
            with pytest.raises(
                UserError, match=r"edits\(model, ids, \[\[zero\(a\), zero\(b\)\]\]\)"
            ):
                model.run(ids, wrong)
        for pass_over in (model.run, lambda text: edits(model, text, [[zero(node)]])):
            with pytest.raises(UserError, match=r"got str; give model\.tokens\(text\)"):
                pass_over(TEXT)
        with pytest.raises(UserError, match="2 lists of interventions for 1 rows of token ids"):
            edits(model, ids, [[zero(node)], []])

    def test_an_unknown_convention(self, model):
        with pytest.raises(UserError, match="choose recompute, freeze, drop"):
            model(TEXT, downstream="forget")

    def test_a_dictionary_of_another_width_or_layer(self, bridge, model):
        dictionary = model.dictionaries[Site(0, "mlp")]
        with pytest.raises(UserError, match="no layer 7"):
            splice(bridge, {Site(7, "mlp"): dictionary})
        with pytest.raises(UserError, match=r"attn\.0 reads 32 .* random has 24|model has 24"):
            splice(bridge, {Site(0, "attn"): dictionary})
        with pytest.raises(UserError, match="no dictionaries"):
            splice(bridge, {})
