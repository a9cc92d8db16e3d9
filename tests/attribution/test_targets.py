"""Targets besides logits: their values by hand, their effects by finite differences."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from transformers import Gemma2ForCausalLM, LlamaForCausalLM
from transformers.models.gemma2.modeling_gemma2 import apply_rotary_pos_emb

from attribution import (
    Targets,
    attention_score,
    attribute,
    direction,
    integrated_each,
    latent,
    logit,
    top_logits,
    total,
    total_effects,
)
from attribution.metrics import bind, bind_all
from circuits import (
    HookPoint,
    LatentNode,
    Prompt,
    Reference,
    Site,
    Trace,
    UserError,
    corrupted_reference,
    mixed_reference,
    scale,
    splice,
    zero_reference,
)
from circuits.interventions import edits
from experiments import ablate_each, faithfulness_curve
from tests.random_gemma import D_HEAD, D_MODEL, N_HEADS, TEXT, chosen_dictionaries

KINDS = ("attn", "transcoder", "mlp", "resid")
POS = 6
WORD: Any = "w3"  # where something else is expected


def vector(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def target_latent(model, kind):
    """A latent of the last layer whose pre-activation is above its threshold."""
    site = Site(2, kind)
    t = model.trace(TEXT).sites[site]
    return LatentNode(site, int(t.latent[t.pos == POS][0]), POS)


def off(model):
    """Two latents that are off on the prompt."""
    site = Site(2, "mlp")
    t = model.trace(TEXT).sites[site]
    on = t.latent[t.pos == POS].tolist()
    return [LatentNode(site, i, POS) for i in range(t.d_sae) if i not in on][:2]


TARGETS = {
    **{kind: lambda m, kind=kind: latent(target_latent(m, kind)) for kind in KINDS},
    "residual": lambda m: direction("blocks.1.hook_resid_post", vector(D_MODEL), POS),
    "heads": lambda m: direction("blocks.2.attn.hook_z", vector(N_HEADS, D_HEAD), POS),
    "attention": lambda m: attention_score(2, 3, POS, 4),
    "tokens": lambda m: top_logits(m, TEXT, at_most=3, pos=POS),
    "mixture": lambda m: Targets(
        (logit("w3"), logit("w4", pos=4), attention_score(1, 0, 5, 5)), (1.0, -0.5, 2.0)
    ),
}


@pytest.fixture(scope="module")
def transcoded(bridge):
    return splice(bridge, chosen_dictionaries(("attn", "transcoder", "resid")), name="random")


@pytest.fixture(params=TARGETS)
def asked(request, model, transcoded):
    """A model and a metric of it."""
    some = transcoded if request.param == "transcoder" else model
    return some, TARGETS[request.param](some)


def measure(model, metric, rows, downstream):
    """The metric row by row, and which latents are on in it."""
    on = []

    def watched(edit):
        def hook(acts, error):
            on.append((acts > 0).flatten(1))
            return edit(acts, error) if edit else (acts, error)

        return hook

    ids = model.tokens(TEXT).expand(len(rows), -1)
    changes = edits(model, ids, rows)
    score = bind(metric, model)
    hooks = {site: watched(changes.get(site)) for site in model.sites}
    return score(model.run(ids, hooks, downstream=downstream, output=score.output)), torch.cat(
        on, 1
    )


@pytest.mark.parametrize("downstream", ["recompute", "freeze"])
def test_an_effect_is_a_finite_difference(asked, downstream):
    """Scaling a node by 1 + h changes the target by h times its effect.

    With frozen errors, where no latent crosses its threshold on the way: the target jumps there.
    """
    model, metric = asked
    effects = total_effects(model, TEXT, metric, downstream=downstream)
    nodes = effects.strongest(8)
    tested = set()
    for h in (2e-3, 1e-3, 4e-4):
        rows = [[scale(node, 1 + s * h)] for node in nodes for s in (1, -1)]
        values, on = measure(model, metric, rows, downstream)
        slopes = (values[::2] - values[1::2]) / (2 * h)
        smooth = (on[::2] == on[1::2]).all(1) | (downstream == "recompute")
        for i in smooth.nonzero()[:, 0].tolist():
            if i not in tested:
                assert slopes[i].item() == pytest.approx(effects.of(nodes[i]), rel=2e-2, abs=2e-3)
                tested.add(i)
    assert len(tested) >= 4


@pytest.mark.parametrize("name", ["resid", "heads", "attention", "tokens"])
def test_a_small_ablation_is_what_was_attributed(model, name):
    """`ablate_each` towards a reference close by: to first order the same number."""
    metric = TARGETS[name](model)
    trace = model.trace(TEXT)
    h = 4e-3
    sites = {s: replace(t, acts=t.acts * (1 - h)) for s, t in trace.sites.items()}
    near = Reference("near", Trace(trace.ids, trace.embedding, sites))
    nodes = total_effects(model, TEXT, metric).strongest(5)
    for row in ablate_each(model, TEXT, metric, nodes, reference=near):
        assert row.measured == pytest.approx(row.attributed, rel=3e-2, abs=1e-5)
        assert row.measured != 0


@pytest.mark.parametrize("name", ["attn", "mlp", "resid", "residual", "heads", "attention"])
def test_nothing_downstream_of_a_target_bears_on_it(model, name):
    """Exactly nothing: neither later positions, nor what comes after what is read."""
    metric = TARGETS[name](model)
    effects = total_effects(model, TEXT, metric)
    trace = model.trace(TEXT)
    last = trace.sites[Site(2, "resid")]
    later = trace.sites[Site(0, "attn")]
    nodes = [
        LatentNode(Site(2, "resid"), int(last.latent[last.pos == POS][0]), POS),
        LatentNode(Site(0, "attn"), int(later.latent[later.pos > POS][0]), POS + 1),
    ]
    for node in nodes:  # one by one: batches round differently
        (row,) = ablate_each(model, TEXT, metric, [node])
        assert row.measured == row.attributed == effects.of(node) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_latents_own_ablation_does_not_change_its_pre_activation(model, transcoded, kind):
    some = transcoded if kind == "transcoder" else model
    node = target_latent(some, kind)
    value, _ = measure(some, latent(node), [[scale(node, 0)]], "recompute")
    x = some.activations(some.tokens(TEXT))[1][node.site]
    expected = some.dictionaries[node.site].pre_acts(x)[0, POS, node.latent]
    torch.testing.assert_close(value[0], expected, rtol=1e-5, atol=1e-5)
    t = some.trace(TEXT).sites[node.site]
    torch.testing.assert_close(value[0], t.dense()[POS, node.latent], rtol=1e-5, atol=1e-5)
    assert latent(node).name == str(node)
    effects = total_effects(some, TEXT, latent(node)).sites[node.site]
    assert effects.effect.abs().sum() == effects.error_effect.abs().sum() == 0


@pytest.mark.parametrize(
    ("family", "folder", "of"),
    [
        ("bridge", "gemma_folder", Gemma2ForCausalLM),
        ("llama_bridge", "llama_folder", LlamaForCausalLM),
    ],
)
def test_an_attention_score_is_the_products_by_hand(request, family, folder, of):
    model = splice(request.getfixturevalue(family), chosen_dictionaries(["resid"]))
    plain = of.from_pretrained(request.getfixturevalue(folder), attn_implementation="eager").eval()
    ids = model.tokens(TEXT)
    with torch.no_grad():
        states = plain.model(ids, output_hidden_states=True).hidden_states[1]
        layer = plain.model.layers[1]
        x = layer.input_layernorm(states)
        split = (*ids.shape, -1, D_HEAD)
        q, k = (
            project(x).view(split).transpose(1, 2)
            for project in (layer.self_attn.q_proj, layer.self_attn.k_proj)
        )
        cos, sin = plain.model.rotary_emb(x, torch.arange(ids.shape[1])[None])
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        k = k.repeat_interleave(N_HEADS // 2, 1)  # two heads share a key
        expected = q @ k.transpose(2, 3) * D_HEAD**-0.5
    capped = model.run(ids, output=HookPoint("blocks.1.attn.hook_attn_scores"))
    cap = getattr(model.config, "attn_logit_softcapping", None)
    for head, query, key in ((0, 6, 4), (1, -1, 0), (2, 3, 3), (3, 8, -9)):
        score = bind(attention_score(1, head, query, key), model)
        value = score(model.run(ids, output=score.output))
        torch.testing.assert_close(value, expected[:, head, query, key], rtol=1e-4, atol=1e-4)
        after = cap * (value / cap).tanh() if cap else value
        torch.testing.assert_close(after, capped[:, head, query, key], rtol=1e-4, atol=1e-4)
    assert attention_score(1, 3, 7, 4).name == "attention 1.3 7→4"


def test_the_most_likely_tokens(model):
    logits = model(TEXT)[0, POS]
    p, order = logits.softmax(-1).sort(descending=True)
    targets = top_logits(model, TEXT, share=0.6, at_most=40, pos=POS)
    n = len(targets.metrics)
    assert sum(targets.weights[:-1]) < 0.6 <= sum(targets.weights)
    torch.testing.assert_close(torch.tensor(targets.weights), p[:n])
    assert len(top_logits(model, TEXT, share=1.0, at_most=3).metrics) == 3
    cap = model.config.final_logit_softcapping
    before = cap * (logits / cap).atanh()
    scores, weights = bind_all(targets, model)
    read = model.run(model.tokens(TEXT), output=tuple(score.output for score in scores))
    values = torch.cat([score(x) for score, x in zip(scores, read, strict=True)])
    torch.testing.assert_close(values, (before - before.mean())[order[:n]], rtol=1e-4, atol=1e-4)
    words = model.words(order[:n])
    assert [m.name for m in targets.metrics] == [f"logit {w} - mean @{POS}" for w in words]
    summed = bind(total(targets), model)
    value = summed(model.run(model.tokens(TEXT), output=summed.output))
    torch.testing.assert_close(value[0], (values * torch.tensor(weights)).sum())


def test_effects_on_a_sum_are_the_sum_of_effects(model):
    targets = TARGETS["mixture"](model)
    together = total_effects(model, TEXT, targets)
    alone = [total_effects(model, TEXT, metric) for metric in targets.metrics]
    assert together.metric == total(targets).name
    for site in model.sites:
        parts = [w * e.sites[site].effect for w, e in zip(targets.weights, alone, strict=True)]
        torch.testing.assert_close(together.sites[site].effect, sum(parts), rtol=1e-4, atol=1e-5)


def test_integrated_gradients_of_a_target_are_its_ablations(model):
    metric = latent(target_latent(model, "mlp"))
    nodes = total_effects(model, TEXT, metric).strongest(3)
    effects = integrated_each(model, TEXT, metric, nodes, n=48, batch_size=144)
    for row, effect in zip(ablate_each(model, TEXT, metric, nodes), effects.tolist(), strict=True):
        assert effect == pytest.approx(row.measured, rel=1e-2, abs=1e-3)


def test_a_faithfulness_curve_of_an_attention_score(model):
    metric = TARGETS["attention"](model)
    score = bind(metric, model)
    curve = faithfulness_curve(model, TEXT, metric, [], sizes=[0], n_random=0)
    off = {site: lambda acts, error: (acts * 0, error) for site in model.sites}
    value = score(model.run(model.tokens(TEXT), off, output=score.output)).item()
    assert curve.empty == pytest.approx(value, rel=1e-4)


NODE = LatentNode(Site(1, "mlp"), 3, 4)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda m: latent(WORD), "is no latent"),
        (lambda m: latent(replace(NODE, pos=0)), "do not read BOS"),
        (lambda m: latent(replace(NODE, pos=11)), "no position 11; the prompt has 11 tokens"),
        (lambda m: latent(replace(NODE, latent=96)), r"no latent 96; mlp\.1 has 96"),
        (lambda m: latent(replace(NODE, site=Site(5, "mlp"))), r"no dictionary at mlp\.5"),
        (lambda m: direction("blocks.1.hook_resid", vector(D_MODEL)), "did you mean blocks"),
        (lambda m: direction("blocks.1.hook_resid_post", vector(5)), r"shape \[5\]; .* has \[32\]"),
        (lambda m: direction("blocks.1.attn.hook_pattern", vector(5)), "queries by keys"),
        (lambda m: direction("blocks.1.hook_resid_post", WORD), "floating-point numbers"),
        (lambda m: direction("blocks.1.hook_resid_post", vector(32), 11), "no position 11"),
        (lambda m: attention_score(3, 0, 4, 4), "no head 3.0; random has layers 0-2 of heads 0-3"),
        (lambda m: attention_score(0, 0, 4, 5), "does not see position 5; it sees"),
        (lambda m: attention_score(0, 0, 9, 1), "does not see position 1; it sees the last 4"),
        (lambda m: attention_score(0, 0, 12, 1), "no position 12"),
        (lambda m: Targets((), ()), "at least one metric"),
        (lambda m: Targets((logit("w3"),), (1.0, 2.0)), r"1 metrics and weights \[1.0, 2.0\]"),
        (lambda m: Targets((logit("w3"), logit("w3")), (1.0, 2.0)), "two targets are named"),
        (lambda m: Targets((WORD,), (1.0,)), "metrics with names"),
        (lambda m: top_logits(m, TEXT, share=0), "share above 0"),
        (lambda m: top_logits(m, WORD, pos=5), "no position 5; the prompt has 2 tokens"),
    ],
)
def test_bad_targets_get_one_sentence(model, metric, message):
    with pytest.raises(UserError, match=message):
        total_effects(model, TEXT, metric(model), reference=zero_reference(model, TEXT))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: Targets(cast(Any, logit("w1")), (1.0,)), "a tuple of metrics"),
        (lambda m: Targets((logit("w1"),), (WORD,)), "a finite number for each"),
        (lambda m: Targets((logit("w1"),), (float("nan"),)), "a finite number for each"),
        (lambda m: Targets((logit("w1"), logit("w2")), (0.0, 0.0)), "not all of them zero"),
        (lambda m: top_logits(m, TEXT, share=WORD), "a share above 0"),
        (
            lambda m: top_logits(m, TEXT, at_most=cast(Any, 2.5)),
            "at_most=2.5; give",
        ),
        (lambda m: direction(cast(Any, 3), vector(D_MODEL)), "a hook point is a name"),
        (lambda m: direction("blocks.1.hook_resid_post", torch.zeros(D_MODEL)), "32 zeros"),
        (lambda m: bind(attention_score(WORD, 1, 4, 2), m), "give their numbers"),
        (lambda m: attribute(WORD, TEXT, logit("w1")), r"give what load\(name\) returns"),
        (
            lambda m: attribute(m, TEXT, logit("w1"), max_latents=cast(Any, 2.5)),
            "give a whole number from 1 on, or None for all",
        ),
        (
            lambda m: attribute(m, TEXT, logit("w1"), latents=cast(Any, ["mlp.1/latent.3@2"])),
            "a str; give LatentNodes",
        ),
        (
            lambda m: attribute(m, TEXT, logit("w1"), latents=[LatentNode(Site(1, "mlp"), 999, 2)]),
            "no latent 999",
        ),
        (
            lambda m: attribute(m, TEXT, logit("w1"), latents=[LatentNode(Site(1, "mlp"), 3, 0)]),
            "do not read position 0",
        ),
        (lambda m: attribute(m, TEXT, logit("w1"), latents=[]), r"latents=\[\]; name at least one"),
        (lambda m: attribute(m, TEXT, logit("w1"), latents=off(m)), "none of the 2 latents named"),
        (
            lambda m: mixed_reference(latents=WORD, errors=WORD, tokens=WORD),
            "a reference is made by",
        ),
        (
            lambda m: mixed_reference(
                latents=zero_reference(m, TEXT),
                errors=zero_reference(m, TEXT),
                tokens=zero_reference(m, "w1"),
            ),
            "do not mix",
        ),
    ],
)
def test_mistakes_get_one_sentence(model, call, message):
    with pytest.raises(UserError, match=message):
        call(model)


def test_each_type_of_node_has_its_own_baseline(model):
    """Latents against one reference, errors and tokens against others, in one run."""
    prompts = [Prompt(TEXT, corrupted=TEXT.replace("w5", "w6"))]
    zero, corrupted = zero_reference(model, TEXT), corrupted_reference(model, prompts[0])
    mixed = mixed_reference(latents=corrupted, errors=zero, tokens=corrupted)
    of_zero, of_corrupted, of_mixed = (
        total_effects(model, TEXT, logit("w3"), reference=r) for r in (zero, corrupted, mixed)
    )
    torch.testing.assert_close(of_mixed.token_effect, of_corrupted.token_effect)
    for site, found in of_mixed.sites.items():
        torch.testing.assert_close(found.effect, of_corrupted.sites[site].effect)
        torch.testing.assert_close(found.error_effect, of_zero.sites[site].error_effect)
