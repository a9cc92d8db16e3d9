"""A total effect is the derivative of the measured effect; integrated gradients conserve."""

from dataclasses import replace

import pytest
import torch

from attribution import integrated_each, integrated_effects, logit_diff, total_effects
from attribution.gradients import gradients
from attribution.metrics import bind
from circuits import (
    KINDS,
    ErrorNode,
    LatentNode,
    Prompt,
    Reference,
    Site,
    TokenNode,
    UserError,
    corrupted_reference,
    load_gemma,
    mean_reference,
    scale,
    splice,
    zero,
    zero_reference,
)
from circuits.interventions import edits
from circuits.outputs import LAST_LOGITS
from tests.random_gemma import TEXT, chosen_dictionaries, random_dictionaries

METRIC = logit_diff("w3", "w4")
OTHER = TEXT.replace("w5", "w6")
PROMPT = Prompt(TEXT, corrupted=OTHER)
SITES = [Site(layer, kind) for layer in range(3) for kind in KINDS]
TRANSCODERS = [Site(layer, "transcoder") for layer in range(3)]
CHOICES = [KINDS, ("attn", "transcoder", "resid"), ("attn", "skip", "resid"), ("skip",)]


@pytest.fixture(scope="module", params=["bridge", "llama_bridge"], ids=["gemma2", "llama"])
def some_bridge(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module", params=CHOICES, ids="+".join)
def some(request, some_bridge):
    """A model with some kinds of site spliced."""
    return splice(some_bridge, chosen_dictionaries(request.param), name="random")


@pytest.fixture(scope="module", params=CHOICES[1:], ids="+".join)
def transcoded(request, some_bridge):
    """A model with transcoders spliced."""
    return splice(some_bridge, chosen_dictionaries(request.param), name="random")


@pytest.fixture(scope="module")
def crossed(bridge):
    """A model with a cross-layer transcoder spliced, which reads the residual stream."""
    return splice(bridge, chosen_dictionaries(["cross residual"]), name="random")


def measure(model, interventions, downstream):
    """The metric, and which latents are on anywhere."""
    on = []

    def watched(edit):
        def hook(acts, error):
            on.append(acts > 0)
            return edit(acts, error) if edit else (acts, error)

        return hook

    ids = model.tokens(TEXT)
    changes = edits(model, ids, [interventions])
    hooks = {site: watched(changes.get(site)) for site in model.sites}
    logits = model.run(ids, hooks, downstream=downstream)
    return bind(METRIC, model)(logits).item(), torch.cat(on, -1)


@pytest.mark.parametrize("downstream", ["recompute", "freeze"])
@pytest.mark.parametrize("site", SITES, ids=str)
def test_an_effect_is_a_finite_difference(model, site, downstream):
    """Scaling a node by 1 + h changes the metric by h times its effect.

    With frozen errors this holds where no latent crosses its threshold on the way: the metric
    jumps there. The step is the largest that crosses none: float32 rounds the metric of a small
    one.
    """
    check_finite_differences(model, site, downstream)


@pytest.mark.parametrize("downstream", ["recompute", "freeze"])
@pytest.mark.parametrize("site", TRANSCODERS, ids=str)
def test_an_effect_of_a_transcoder_is_a_finite_difference(transcoded, site, downstream):
    check_finite_differences(transcoded, site, downstream)


@pytest.mark.parametrize("downstream", ["recompute", "freeze"])
def test_an_effect_of_a_cross_layer_transcoder_is_a_finite_difference(crossed, downstream):
    check_finite_differences(crossed, Site(0, "transcoder"), downstream)


def check_finite_differences(model, site, downstream):
    effects = total_effects(model, TEXT, METRIC, downstream=downstream)
    e = effects.sites[site]
    top = e.effect.abs().topk(6).indices
    nodes: list = [LatentNode(site, int(e.latent[i]), int(e.pos[i])) for i in top]
    nodes.append(ErrorNode(site, int(e.error_effect.abs().argmax())))
    tested = 0
    for node in nodes:
        for h in (2e-3, 1e-3, 4e-4):
            (up, on_up), (down, on_down) = (
                measure(model, [scale(node, 1 + s)], downstream) for s in (h, -h)
            )
            if downstream == "recompute" or torch.equal(on_up, on_down):
                assert (up - down) / (2 * h) == pytest.approx(effects.of(node), rel=2e-2, abs=2e-3)
                tested += 1
                break
    assert tested >= 3


def test_token_effects_are_finite_differences(model):
    effects = total_effects(model, TEXT, METRIC)
    ids = model.tokens(TEXT)
    h = 2e-3
    for pos in (1, 4, 10):
        values = []
        for s in (h, -h):

            def nudge(x, _, pos=pos, s=s):
                x = x.clone()
                x[:, pos] *= 1 + s
                return x

            with torch.no_grad():
                values.append(bind(METRIC, model)(model.forward(ids, {}, embedding=nudge)).item())
        measured = (values[0] - values[1]) / (2 * h)
        assert measured == pytest.approx(effects.of(TokenNode(pos)), rel=2e-2, abs=2e-3)


def test_the_effects_of_a_site_are_those_of_what_it_writes(some):
    """Latents, error, bias and skip connection together are gradient . x: nothing is lost."""
    effects = total_effects(some, TEXT, METRIC)
    ids = some.tokens(TEXT)
    _, inputs, outputs = some.activations(ids)
    for site, e in effects.sites.items():
        total = e.effect.sum() + e.error_effect.sum() + e.bias_effect
        if some.dictionaries[site].W_skip is not None:
            skip = some.dictionaries[site].skip(inputs[site]) * some.reads(ids)[..., None]
            total += (e.grad_output * skip[0]).sum()
        expected = (e.grad_output * outputs[site][0]).sum()
        torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("downstream", ["recompute", "freeze"])
def test_attribution_does_not_change_the_metric(some, downstream):
    value = bind(METRIC, some)(some.run(some.tokens(TEXT), output=LAST_LOGITS)).item()
    assert value == pytest.approx(bind(METRIC, some)(some(TEXT)).item(), rel=1e-6)
    assert total_effects(some, TEXT, METRIC, downstream=downstream).value == value


def test_the_baseline_is_subtracted(model):
    """Latents that only the corrupted prompt switches on have an effect too."""
    reference = corrupted_reference(model, PROMPT)
    effects = total_effects(model, PROMPT, METRIC, reference=reference)
    plain = total_effects(model, PROMPT, METRIC)
    corrupted = model.trace(OTHER)
    seen_off = 0
    for site, e in effects.sites.items():
        base = corrupted.sites[site].dense()[e.pos, e.latent]
        torch.testing.assert_close(e.effect, e.grad * (e.acts - base))
        seen_off += int(((e.acts == 0) & (base != 0)).sum())
        error = model.trace(TEXT).sites[site].error
        expected = (plain.sites[site].grad_output * (error - corrupted.sites[site].error)).sum(-1)
        torch.testing.assert_close(e.error_effect, expected, rtol=1e-4, atol=1e-5)
    assert seen_off > 0
    assert effects.token_effect[0] == 0
    assert effects.token_effect[2] != 0


def test_what_latents_of_all_layers_write_somewhere_has_its_effects(crossed):
    """Gradient . x there is that of the error, the bias and a part of each latent below."""
    effects = total_effects(crossed, TEXT, METRIC)
    outputs = crossed.activations(crossed.tokens(TEXT))[2]
    for there in TRANSCODERS:
        e = effects.sites[there]
        total = e.error_effect.sum() + e.bias_effect
        for site in TRANSCODERS[: there.layer + 1]:
            total += effects.sites[site].by_layer[there.layer - site.layer].sum()
        expected = (e.grad_output * outputs[there][0]).sum()
        torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(e.by_layer.sum(0), e.effect)


def test_errors_carry_what_latents_that_are_no_nodes_write_there(crossed):
    """Also where those are of a lower layer: an error is gradient . what the nodes leave."""
    effects = total_effects(crossed, TEXT, METRIC)
    kept = {site: torch.arange(len(e.pos)) % 3 == 0 for site, e in effects.sites.items()}
    carried = effects.left_out(kept)
    for there in TRANSCODERS:
        error = crossed.trace(TEXT).sites[there].error.clone()
        for site in TRANSCODERS[: there.layer + 1]:
            e, decoders = effects.sites[site], crossed.dictionaries[site].decoders
            out = ~kept[site]
            written = decoders[there.layer - site.layer][e.latent[out]] * e.acts[out, None]
            error.index_add_(0, e.pos[out], written)
        expected = (effects.sites[there].grad_output * error).sum(-1)
        torch.testing.assert_close(carried[there], expected, rtol=1e-4, atol=1e-4)


def strongest(model, site, top=3):
    effects = total_effects(model, TEXT, METRIC)
    return [node for node in effects.strongest() if node.site == site][:top]


@pytest.mark.parametrize(
    ("site", "which"),
    [(site, which) for site in SITES[::2] for which in ("mean", "corrupted")]
    # a norm reads `attn` and `resid` alone, and is singular at zero: no fixed n converges there
    + [(Site(layer, "mlp"), "zero") for layer in range(3)],
    ids=str,
)
def test_joint_integrated_gradients_conserve(model, site, which):
    """A site's effects sum to the metric's loss when the whole site goes to the baseline."""
    check_conservation(model, site, which)


@pytest.mark.parametrize("which", ["zero", "corrupted"])
@pytest.mark.parametrize("site", TRANSCODERS, ids=str)
def test_joint_integrated_gradients_of_a_transcoder_conserve(transcoded, site, which):
    check_conservation(transcoded, site, which)


def test_joint_integrated_gradients_of_a_cross_layer_transcoder_conserve(crossed):
    check_conservation(crossed, Site(0, "transcoder"), "corrupted", n=32)


def check_conservation(model, site, which, n=256):
    reference = {
        "zero": lambda: zero_reference(model, PROMPT),
        "mean": lambda: mean_reference(model, [TEXT, OTHER, TEXT.replace("w9", "w8")]),
        "corrupted": lambda: corrupted_reference(model, PROMPT),
    }[which]()
    e = integrated_effects(model, PROMPT, METRIC, n=n, reference=reference).sites[site]
    ids = model.tokens(TEXT)

    def to_reference(acts, error):
        return reference.acts(site).expand_as(acts), reference.error(site).expand_as(error)

    score = bind(METRIC, model)
    lost = score(model.run(ids)) - score(model.run(ids, {site: to_reference}))
    total = e.effect.sum() + e.error_effect.sum()
    assert total.item() == pytest.approx(lost.item(), rel=1e-2, abs=1e-2)


@pytest.mark.parametrize("site", SITES[::2], ids=str)
def test_integrated_gradients_of_one_latent_are_its_ablation(model, site):
    check_ablation(model, site)


def test_integrated_gradients_of_one_latent_of_a_transcoder_are_its_ablation(transcoded):
    check_ablation(transcoded, Site(1, "transcoder"))


def test_integrated_gradients_of_one_latent_of_a_cross_layer_transcoder(crossed):
    check_ablation(crossed, Site(0, "transcoder"), n=64)


def check_ablation(model, site, n=256):
    nodes = [*strongest(model, site), ErrorNode(site, 4)]
    effects = integrated_each(model, TEXT, METRIC, nodes, n=n, batch_size=256)
    clean = measure(model, [], "recompute")[0]
    for node, effect in zip(nodes, effects.tolist(), strict=True):
        measured = clean - measure(model, [zero(node)], "recompute")[0]
        assert effect == pytest.approx(measured, rel=1e-2, abs=1e-3)


def test_batches_do_not_change_integrated_gradients(model):
    nodes = strongest(model, Site(1, "mlp"), top=7)
    one, many = (integrated_each(model, TEXT, METRIC, nodes, batch_size=b) for b in (10, 64))
    torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-5)


def test_joint_and_single_differ_and_carry_their_names(model):
    joint = integrated_effects(model, TEXT, METRIC)
    single = total_effects(model, TEXT, METRIC)
    assert joint.estimator == "joint integrated gradients (n=10)"
    assert single.estimator == "gradient x activation"
    with pytest.raises(UserError, match="n=0; give a whole number"):
        integrated_effects(model, TEXT, METRIC, n=0)


def test_the_clean_prompt_as_reference_has_no_effects(model):
    reference = Reference("itself", model.trace(TEXT))
    effects = total_effects(model, TEXT, METRIC, reference=reference)
    assert all(e.effect.abs().max() == 0 for e in effects.sites.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_its_own_errors_held_a_pass_is_the_clean_pass(gemma_folder, dtype):
    """Errors and reconstructions are summed in float32, so that rounding to bfloat16 undoes it."""
    dictionaries = {s: d.to(dtype=dtype) for s, d in random_dictionaries().items()}
    model = splice(load_gemma(str(gemma_folder), device="cpu", dtype=dtype), dictionaries)
    ids = model.tokens(TEXT)
    score = bind(METRIC, model)
    clean = gradients(model, ids, score)
    for errors in (model.errors(ids), {s: t.error for s, t in model.trace(ids).sites.items()}):
        held = gradients(model, ids, score, downstream="freeze", clean_errors=errors)
        torch.testing.assert_close(held.score, clean.score, rtol=1e-6, atol=1e-6)


def test_a_reference_of_other_dictionaries_is_refused(model, bridge):
    narrow = {
        site: replace(
            d, W_enc=d.W_enc[:, :50], b_enc=d.b_enc[:50], threshold=d.threshold[:50],
            W_dec=d.W_dec[:50],
        )
        for site, d in random_dictionaries().items()
    }  # fmt: skip
    reference = zero_reference(splice(bridge, narrow), TEXT)
    with pytest.raises(UserError, match=r"the reference is of 50 latents at attn\.0"):
        total_effects(model, TEXT, METRIC, reference=reference)


def test_a_list_of_prompts_is_refused(model):
    with pytest.raises(UserError, match="a reference is of one prompt; got 2"):
        total_effects(model, [TEXT, TEXT], METRIC)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("n", [2.5, 2.0, 0])
def test_points_on_the_way_are_a_whole_number(model, n):
    message = f"n={n}; give a whole number from 1 on"
    with pytest.raises(UserError, match=message):
        integrated_effects(model, TEXT, METRIC, n=n)
    with pytest.raises(UserError, match=message):
        integrated_each(model, TEXT, METRIC, [ErrorNode(SITES[0], 4)], n=n)
