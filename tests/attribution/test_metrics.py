"""Metrics are what their formulas say, at the position at which they are read."""

import re
from typing import Any

import pytest
import torch

from attribution import (
    Targets,
    attribute,
    attribute_dataset,
    direction,
    integrated_each,
    kl,
    log_prob,
    logit,
    logit_diff,
    prob,
    prob_diff,
    total_effects,
)
from attribution.metrics import bind
from circuits import (
    LatentNode,
    Logits,
    Prompt,
    Site,
    UserError,
    corrupted_reference,
    load_gemma,
    splice,
    zero,
    zero_reference,
)
from tests.random_gemma import TEXT, random_dictionaries

PROMPT = Prompt(TEXT, target="w3", foil="w4")
WORD: Any = "w3"  # where something else is expected


@pytest.fixture
def logits():
    return torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pos", [-1, 2, -4])
def test_formulas(model, logits, pos):
    last = logits[:, pos]
    p = last.softmax(-1)
    w3, w4, w5 = (model.token_id(w) for w in ("w3", "w4", "w5"))
    for metric, expected in [
        (logit_diff(PROMPT, pos=pos), last[:, w3] - last[:, w4]),
        (logit_diff("w3", "w4", pos=pos), last[:, w3] - last[:, w4]),
        (logit("w3", pos=pos), last[:, w3]),
        (log_prob(PROMPT, pos=pos), p[:, w3].log()),
        (prob("w3", pos=pos), p[:, w3]),
        (prob_diff(["w3", "w5"], ["w4"], pos=pos), p[:, w3] + p[:, w5] - p[:, w4]),
    ]:
        score = bind(metric, model)
        torch.testing.assert_close(score(logits), expected)
        torch.testing.assert_close(score(logits[:, pos][:, None]), expected)  # its own output
        assert score.output == Logits(pos)


def test_a_name_says_the_position_unless_it_is_the_last():
    assert [logit("w3").name, logit("w3", pos=7).name] == ["logit w3", "logit w3 @7"]
    assert [kl(TEXT).name, kl(TEXT, pos=-2).name] == ["KL from clean", "KL from clean @-2"]


def test_a_metric_in_the_middle_has_no_effects_after_it(model):
    effects = total_effects(model, TEXT, logit("w3", pos=4))
    there = model(TEXT)[0, 4, model.token_id("w3")].item()
    assert effects.value == pytest.approx(there, rel=1e-5)
    for site in effects.sites.values():
        assert site.effect[site.pos > 4].abs().sum() == 0
        assert site.error_effect[5:].abs().sum() == 0
    assert effects.token_effect[1:5].abs().min() > 0


def test_kl_is_zero_on_the_clean_run_and_positive_off_it(model):
    score = bind(kl(PROMPT), model)
    assert score(model(PROMPT)).abs().item() < 1e-6
    trace = model.trace(PROMPT).sites[Site(0, "resid")]
    node = LatentNode(Site(0, "resid"), int(trace.latent[-1]), int(trace.pos[-1]))
    changed = model(PROMPT, [zero(node)])
    p, q = model(PROMPT)[:, -1].softmax(-1), changed[:, -1].softmax(-1)
    expected = (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(score(changed), expected, rtol=1e-3, atol=1e-6)
    assert score(changed).item() > 0


def test_a_plain_function_is_a_metric(model):
    named = total_effects(model, TEXT, logit_diff("w3", "w4"))
    w3, w4 = model.token_id("w3"), model.token_id("w4")
    plain = total_effects(model, TEXT, lambda logits: logits[:, -1, w3] - logits[:, -1, w4])
    for site in named.sites:
        torch.testing.assert_close(named.sites[site].effect, plain.sites[site].effect)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: logit_diff(Prompt(TEXT, target="w3")), "needs a foil"),
        (lambda m: logit(Prompt(TEXT)), "has no target"),
        (lambda m: total_effects(m, TEXT, logit("two words")), "not one token"),
        (lambda m: total_effects(m, TEXT, lambda x: x.sum()), r"one number a row, \[1\]"),
        (lambda m: total_effects(m, TEXT, lambda x: x[:, -1, 0].detach()), "no gradient"),
        (lambda m: total_effects(m, TEXT, lambda x: x[:, -1, 0] / 0), "not finite"),
        (lambda m: total_effects(m, TEXT, logit("w3", pos=11)), "no position 11; .* 11 tokens"),
        (lambda m: total_effects(m, TEXT, logit("w3", pos=-12)), "no position -12; .* 11 tokens"),
        (lambda m: bind(kl(TEXT, pos=30), m), "no position 30; .* 11 tokens"),
        (lambda m: total_effects(m, TEXT, logit("w3"), downstream="drop"), "recompute and freeze"),
        (lambda m: attribute(m, TEXT, logit("w3"), attention="warm"), "choose frozen or live"),
        (
            lambda m: attribute(m, TEXT, logit("w3"), max_latents=0),
            "max_latents=0; give a whole number",
        ),
        (lambda m: attribute(m, TEXT, logit("w3"), memory="little"), "write for example '20GB'"),
        (lambda m: attribute(m, TEXT, logit("w3"), mlp="linear"), "choose jacobian, relp"),
        (lambda m: attribute(m, TEXT, kl(TEXT)), "no gradient on the clean run"),
        (lambda m: attribute(m, TEXT, WORD), "is no metric"),
        (lambda m: prob_diff("w3", ["w4"]), "lists of words"),
        (lambda m: prob_diff([], []), "is always 0"),
        (lambda m: prob_diff(["w3", "w4"], ["w4", "w3"]), "is always 0"),
        (lambda m: logit_diff("w3", "w3"), "is both target and foil"),
        (lambda m: logit_diff(Prompt(TEXT, target="w3", foil="w3")), "is both target and foil"),
        (lambda m: total_effects(m, TEXT, logit("w3"), reference=WORD), "a reference is made"),
        (
            lambda m: corrupted_reference(m, Prompt(TEXT, corrupted=f"{TEXT} ")),
            "is the prompt itself",
        ),
        (
            lambda m: total_effects(m, TEXT, logit("w3"), reference=zero_reference(m, "w1 w2")),
            "the reference has 3 tokens and the prompt 11",
        ),
        (
            lambda m: integrated_each(m, TEXT, logit("w3"), [LatentNode(Site(8, "mlp"), 0, 1)]),
            r"no dictionary at mlp\.8",
        ),
        (lambda m: attribute(m, m.tokens(TEXT), logit("w3")), "explains one prompt"),
    ],
)
def test_bad_input_gets_one_sentence(model, call, message):
    with pytest.raises(UserError, match=message):
        call(model)


def test_a_model_that_is_not_finite_is_told_from_a_metric(gemma_folder):
    """The first site after a weight that is NaN is named; of one after the last site, the output.

    A metric that is not finite itself is in `test_bad_input_gets_one_sentence`.
    """
    bridge = load_gemma(str(gemma_folder), device="cpu")
    broken = splice(bridge, random_dictionaries(), name="random")
    weights = dict(bridge.original_model.named_parameters())
    for name, where in (("model.norm", "the output"), ("layers.1.*down_proj", r"mlp\.1")):
        (weight,) = (w for key, w in weights.items() if re.search(name, key))
        with torch.no_grad():
            weight.fill_(float("nan"))
        with pytest.raises(UserError, match=f"the model itself computes is not finite at {where}"):
            attribute(broken, TEXT, logit("w3"))


def test_attribution_does_not_mind_no_grad(model):
    expected = attribute(model, TEXT, logit("w3"), max_latents=20).edges.toarray()
    with torch.no_grad():
        found = attribute(model, TEXT, logit("w3"), max_latents=20).edges.toarray()
    torch.testing.assert_close(found, expected)
    with torch.inference_mode(), pytest.raises(UserError, match="inference_mode"):
        attribute(model, TEXT, logit("w3"))


@pytest.mark.parametrize(
    "call",
    [total_effects, attribute, lambda m, text, of: attribute_dataset(m, [text], lambda prompt: of)],
)
def test_nothing_is_attributed_to_what_is_flat_on_the_clean_run(model, call):
    """Also where it is one of several targets: its part of the sum would be missing."""
    flat = kl(TEXT, pos=4)
    for metric in (flat, Targets((logit("w3"), flat), (1.0, 1.0))):
        with pytest.raises(UserError, match=r"^KL from clean @4 has no gradient on the clean run"):
            call(model, TEXT, metric)


def test_metrics_that_differ_have_names_that_differ():
    words = [f"w{i}" for i in range(1, 7)]
    swapped = [words[0], words[2], words[1], *words[3:]]
    other = [*words[:4], "w9", words[5]]
    a, b, c, d, e = map(logit, words[:5])
    third, fourth = (torch.arange(8).float() + n for n in (3, 4))
    place = "blocks.1.hook_resid_post"
    metrics = [
        *(Targets((a, b), weights) for weights in [(1, 1), (1, 2), (2, 1), (1, 1 / 3), (1, 0.333)]),
        Targets((a, c), (1, 1)),
        Targets((a, b, c, d), (1, 1, 1, 1)),
        Targets((a, b, e, d), (1, 1, 1, 1)),
        Targets((a, b, c, d), (1, 1, 1, 2)),
        Targets((a,), (1,)),
        Targets((a,), (2,)),
        *(prob_diff(some, ["w8"]) for some in (words, swapped, other, words[:3])),
        *(direction(place, vector) for vector in (third, fourth)),
        direction(place, third, 4),
    ]
    names = [metric.name for metric in metrics]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) < 60
    assert names[:2] == [
        "weighted sum of logit w1, logit w2",
        "weighted sum of logit w1, 2 logit w2",
    ]
    assert names[9] == "logit w1"
    again = direction(place, third.double().reshape(2, 4).requires_grad_())
    assert again.name == direction(place, third).name
    assert direction(place, third, name="probe").name == "probe"
