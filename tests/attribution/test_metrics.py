"""Metrics are what their formulas say, at the position at which they are read."""

from typing import Any

import pytest
import torch

from attribution import (
    attribute,
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
from circuits import LatentNode, Logits, Prompt, Site, UserError, zero, zero_reference
from tests.random_gemma import TEXT

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
        (lambda m: attribute(m, TEXT, logit("w3"), max_latents=0), "at least one latent"),
        (lambda m: attribute(m, TEXT, logit("w3"), memory="little"), "write for example '20GB'"),
        (lambda m: attribute(m, TEXT, logit("w3"), mlp="linear"), "choose jacobian, relp"),
        (lambda m: attribute(m, TEXT, kl(TEXT)), "no gradient on the clean run"),
        (lambda m: attribute(m, TEXT, WORD), "is no metric"),
        (lambda m: prob_diff("w3", ["w4"]), "lists of words"),
        (lambda m: total_effects(m, TEXT, logit("w3"), reference=WORD), "a reference is made"),
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


def test_attribution_does_not_mind_no_grad(model):
    expected = attribute(model, TEXT, logit("w3"), max_latents=20).edges.toarray()
    with torch.no_grad():
        found = attribute(model, TEXT, logit("w3"), max_latents=20).edges.toarray()
    torch.testing.assert_close(found, expected)
    with torch.inference_mode(), pytest.raises(UserError, match="inference_mode"):
        attribute(model, TEXT, logit("w3"))
