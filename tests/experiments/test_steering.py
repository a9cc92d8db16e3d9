"""Steering adds decoder rows to the model: a plain hook on the Hugging Face model does the same."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from attribution import logit_diff, total_effects
from circuits import Intervention, LatentNode, Site, UserError, load_gemma, splice
from experiments.commands.steer import steer as command
from experiments.pooled import pairs_of
from experiments.spans import SpanNode, aligned
from experiments.statistics import cluster_interval
from experiments.steering.dose_response import steer
from experiments.steering.modes import steer_rows
from experiments.steering.vectors import (
    as_large,
    checked_numbers,
    positions,
    random_directions,
    shifts,
    steered_nodes,
    steering_edits,
)
from tests.experiments.test_pooled import PROMPTS
from tests.plain_hooks import plain_hooks
from tests.random_gemma import chosen_dictionaries, random_dictionaries

NEUTRAL = ["w3 w8 w2 w2", "w10 w4 w4 w17 w25 w6", "w5 w1"]
NODES = ("attn.1/latent.7", "mlp.0/latent.30", "mlp.0/latent.31", "resid.1/latent.12")


@pytest.fixture(scope="module")
def curve(model):
    doses = (2, -1, 0.5, 1)  # 0 is always among them
    return steer(model, PROMPTS, NODES, doses=doses, neutral=NEUTRAL, n_random=3, seed=5)


def by_hand(plain, ids, vectors, at=slice(1, None)):
    """Logits with `vectors {Site: [d]}` added."""
    with by_hooks(plain, vectors, at), torch.no_grad():
        return plain(ids).logits


def by_hooks(plain, vectors, at):
    """`vectors {Site: [d]}` are added at positions `at` by hooks on Hugging Face's modules.

    A vector may also be a function of what is there, `[batch, n, d]`.
    """

    def add(vector, x):
        changed = x.clone()
        changed[:, at] += vector(x[:, at]) if callable(vector) else vector
        return changed

    return plain_hooks(plain, {site: partial(add, vector) for site, vector in vectors.items()})


def vectors_of(model, amounts):
    """The sum of what each latent's amount adds, `{Site: [d]}`, by the definition."""
    sums = {}
    for name, amount in amounts.items():
        node = SpanNode.parse(f"{name}@all") if isinstance(name, str) else name
        row = amount * model.dictionaries[node.site].W_dec[node.latent]
        sums[node.site] = sums.get(node.site, 0) + row
    return sums


def difference(logits, prompt, model):
    last = logits[:, -1]
    return (last[:, model.token_id(prompt.target)] - last[:, model.token_id(prompt.foil)]).item()


@pytest.mark.parametrize("downstream", ["recompute", "freeze"])
@pytest.mark.parametrize("name", NODES)
def test_a_dose_of_nothing_is_the_clean_model_bit_for_bit(model, name, downstream):
    ids = model.tokens(PROMPTS[0])
    nodes = steered_nodes(model, [name])

    def run(amount):
        raised = amount * positions(model, ids, nodes)[None]
        return model.run(ids, steering_edits(shifts(model, nodes, raised)), downstream=downstream)

    assert torch.equal(run(0.0), model.run(ids))
    assert not torch.equal(run(1.0), model.run(ids))


def test_responses_are_those_of_vectors_added_by_hand(model, plain, curve):
    assert curve.table["dose"].tolist() == [-1, 0, 0.5, 1, 2]
    for i, prompt in enumerate(PROMPTS):
        for k, dose in enumerate(curve.table["dose"]):
            logits = by_hand(plain, model.tokens(prompt), vectors_of(model, curve.amounts(dose)))
            assert curve.responses[i, k] == pytest.approx(
                difference(logits, prompt, model), abs=2e-4
            )


def test_random_directions_are_added_by_hand_too(model, plain, curve):
    nodes = steered_nodes(model, NODES)
    norms = {site: v.norm() for site, v in vectors_of(model, curve.amounts(1)).items()}
    for way, directions in enumerate(random_directions(model, nodes, 3, seed=5)):
        assert directions.keys() == norms.keys()
        vectors = {site: 2 * norms[site] * directions[site] for site in norms}
        for i, prompt in enumerate(PROMPTS):
            logits = by_hand(plain, model.tokens(prompt), vectors)
            assert curve.random_responses[way, i, -1] == pytest.approx(
                difference(logits, prompt, model), abs=2e-4
            )


def test_the_scale_is_the_largest_activation(model, curve):
    for node, scale in zip(curve.nodes, curve.scales, strict=True):
        traces = [model.trace(prompt).sites[node.site] for prompt in PROMPTS]
        assert scale == pytest.approx(max(t.dense()[:, node.latent].max().item() for t in traces))


def test_kl_is_that_of_distributions_worked_out_by_hand(model, plain, curve):
    for k, dose in enumerate(curve.table["dose"]):
        total, n = 0.0, 0
        for text in NEUTRAL:
            ids = model.tokens(text)
            clean, steered = (
                by_hand(plain, ids, vectors)[0, 1:].double().softmax(-1)
                for vectors in ({}, vectors_of(model, curve.amounts(dose)))
            )
            total += (clean * (clean / steered).log()).sum().item()
            n += len(clean)
        assert curve.table["kl"][k] == pytest.approx(total / n, rel=1e-3, abs=1e-9)
    still = curve.table[curve.table["dose"] == 0]
    for name in ("kl", "kl_low", "kl_high", "random_kl", "random_kl_max"):
        assert still[name].tolist() == [0]


# where errors are held, latents that a larger dose switches make the response jump
@pytest.mark.parametrize(("downstream", "tiny"), [("recompute", 1e-2), ("freeze", 1e-3)])
def test_the_slope_of_tiny_doses_is_the_attributed_one(gemma_folder, downstream, tiny):
    bridge = load_gemma(str(gemma_folder), device="cpu", dtype=torch.float64)
    exact = splice(bridge, random_dictionaries(dtype=torch.float64), name="exact")
    prompts = PROMPTS[:3]

    def metric(prompt):  # of the logits as they are: `logit_diff` rounds them to float32
        right, wrong = exact.token_id(prompt.target), exact.token_id(prompt.foil)
        return lambda logits: logits[:, -1, right] - logits[:, -1, wrong]

    for nodes in ([name] for name in NODES):
        curve = steer(
            exact,
            prompts,
            nodes,
            metric,
            doses=(-tiny, tiny),
            neutral=NEUTRAL[:1],
            n_random=0,
            downstream=downstream,
        )
        (node,), (scale,) = curve.nodes, curve.scales
        row = scale * exact.dictionaries[node.site].W_dec[node.latent]
        for i, prompt in enumerate(prompts):
            effects = total_effects(exact, prompt, logit_diff(prompt), downstream=downstream)
            told = effects.sites[node.site].grad_output[1:].sum(0) @ row.float()
            assert curve.attributed_slopes[i] == pytest.approx(told.item(), rel=1e-4, abs=1e-5)
        # Gemma's norms compute in float32 whatever the model's dtype
        known = 5e-7 / tiny
        np.testing.assert_allclose(curve.slopes, curve.attributed_slopes, rtol=1e-3, atol=known)
        assert curve.ratio == pytest.approx(1, abs=1e-3 + known / abs(curve.attributed))
        assert curve.table["step"][0] == tiny


@pytest.mark.parametrize("downstream", ["recompute", "freeze"])
@pytest.mark.parametrize("kind", ["attn", "mlp", "resid", "transcoder", "skip", "cross"])
def test_steering_is_the_intervention_that_raises_the_latent(bridge, kind, downstream):
    model = splice(bridge, chosen_dictionaries([kind]), name=kind)
    ids = model.tokens(PROMPTS[0])
    site, raised = model.sites[0], {4: 2.5, 50: -1.5}
    nodes = steered_nodes(model, [f"{site}/latent.{latent}" for latent in raised])
    edits, changed = steer_rows(
        model, ids, nodes, [list(raised.values())], positions(model, ids, nodes), "add"
    )
    assert len(changed()) == (3 if kind == "cross" else 1)
    steered = model.run(ids, edits, downstream=downstream)
    expected = model(
        ids,
        [
            Intervention(LatentNode(site, latent, pos), 1.0, amount)
            for latent, amount in raised.items()
            for pos in range(1, ids.shape[1])
        ],
        downstream=downstream,
    )
    torch.testing.assert_close(steered, expected, atol=2e-4, rtol=1e-4)


def test_random_directions_have_the_norm_at_every_site_and_position(bridge):
    model = splice(bridge, chosen_dictionaries(["cross", "resid"]), name="both")
    ids, spans = model.tokens(PROMPTS[0]), aligned(model, PROMPTS)
    nodes = steered_nodes(
        model, ["transcoder.0/latent.3@2", "transcoder.0/latent.4", "resid.1/latent.5@6"]
    )
    places = positions(model, ids, nodes, spans)
    added = shifts(model, nodes, torch.tensor([[1.0, 2.0, -3.0]])[..., None] * places)
    assert set(added) == {
        Site(0, "transcoder"),
        Site(1, "transcoder"),
        Site(2, "transcoder"),
        Site(1, "resid"),
    }
    draws = random_directions(model, nodes, 4, seed=1)
    for directions in draws:
        control = as_large(added, directions)
        for site, shift in added.items():
            torch.testing.assert_close(control[site].norm(dim=-1), shift.norm(dim=-1))
            assert not shift[0, 0].any()
            assert shift.norm() > 0
    again, other = (random_directions(model, nodes, 4, seed=seed) for seed in (1, 2))
    for site in added:
        stacked = [torch.stack([d[site] for d in some]) for some in (draws, again, other)]
        assert torch.equal(stacked[0], stacked[1])
        assert not torch.isclose(stacked[0], stacked[2]).all()
        overlap = stacked[0] @ stacked[0].T
        assert (overlap - torch.eye(4)).abs().max() < 0.9  # four directions, not one four times


def test_a_span_is_steered_alone_and_neutral_texts_everywhere(model, plain):
    spans = aligned(model, PROMPTS)
    curve = steer(
        model, PROMPTS, ["mlp.0/latent.30@4"], doses=[1], spans=spans, neutral=NEUTRAL, n_random=0
    )
    everywhere = steer(
        model, PROMPTS, ["mlp.0/latent.30"], doses=[1], spans=spans, neutral=NEUTRAL, n_random=0
    )
    for i, prompt in enumerate(PROMPTS):
        vectors = vectors_of(model, curve.amounts(1))
        logits = by_hand(plain, model.tokens(prompt), vectors, at=slice(4, 5))
        assert curve.responses[i, 1] == pytest.approx(difference(logits, prompt, model), abs=2e-4)
    assert not np.allclose(curve.responses, everywhere.responses)
    assert curve.table["kl"].tolist() == everywhere.table["kl"].tolist()


def test_the_last_position_needs_no_spans(model, plain):
    prompts = [PROMPTS[0], "w3 w8 w2 w2"]  # of different lengths
    curve = steer(
        model,
        prompts,
        ["mlp.0/latent.30@end", "resid.1/latent.12"],
        lambda prompt: logit_diff("w4", "w6"),
        doses=[1],
        neutral=NEUTRAL[:1],
        n_random=0,
    )
    at_end, anywhere = (vectors_of(model, {n: a}) for n, a in curve.amounts(1).items())
    right, wrong = model.token_id("w4"), model.token_id("w6")
    for i, prompt in enumerate(prompts):
        ids = model.tokens(prompt)
        with by_hooks(plain, at_end, at=slice(-1, None)):
            last = by_hand(plain, ids, anywhere)[0, -1]
        assert curve.responses[i, 1] == pytest.approx((last[right] - last[wrong]).item(), abs=2e-4)


def test_the_table_holds_means_with_intervals_and_conventions(model, curve, tmp_path):
    frame = curve.frame()
    low, high = cluster_interval(curve.responses, pairs_of(PROMPTS), seed=5)
    np.testing.assert_array_equal(frame["response"], curve.responses.mean(0))
    np.testing.assert_array_equal(np.stack([frame["low"], frame["high"]]), [low, high])
    by_way = curve.random_responses.mean(1)
    np.testing.assert_array_equal(frame["random_min"], by_way.min(0))
    np.testing.assert_array_equal(frame["random_max"], by_way.max(0))
    mean = np.asarray(frame["response"])
    assert curve.slope == pytest.approx((mean[3] - mean[0]) / 2)  # of doses -1 and 1
    measured, told = np.asarray(frame["slope"]), np.asarray(frame["attributed"])
    np.testing.assert_allclose(frame["ratio"], measured / told)
    assert f"ratio {frame['ratio'][0]:.3g};" in repr(curve)
    for name, value in {
        "metric": "logit_diff",
        "unit": "largest activation",
        "downstream": "recompute",
        "estimator": "gradient x change",
        "nodes": ", ".join(f"{name}@all" for name in NODES),
    }.items():
        assert set(frame[name]) == {value}
    saved = json.loads(curve.save(tmp_path / "curve.json").read_text())
    assert str(saved).count("mlp.0/latent.30@all") >= 1
    assert curve.plot(tmp_path / "curve.png").stat().st_size > 10_000


def test_seeds_and_batches(model):
    def run(**how):
        how |= {"neutral": NEUTRAL[:2], "n_random": 2}
        made = steer(model, PROMPTS[:2], NODES[:1], doses=(-1, 1), **how)
        return made.table.to_dict("list")

    assert run(seed=3) == run(seed=3)
    assert run(seed=3)["random"] != run(seed=4)["random"]
    small, large = run(batch_size=3), run()
    for name in ("response", "random", "kl", "random_kl"):
        np.testing.assert_allclose(small[name], large[name], atol=1e-4)


@pytest.mark.parametrize(
    ("doses", "low", "high", "sides"),
    [([1, 3], 0, 1, 1), ([-2, -0.5], 0, -0.5, 1), ([-2, -0.5, 1, 2], -2, 2, 2)],
)
def test_without_doses_of_both_signs_slopes_are_one_sided(model, doses, low, high, sides):
    curve = steer(model, PROMPTS, NODES[:1], doses=doses, neutral=NEUTRAL[:1], n_random=0)
    at = dict(zip(curve.table["dose"], curve.table["response"], strict=True))
    told = dict(zip(curve.table["dose"], curve.table["foretold"], strict=True))
    assert curve.slope == pytest.approx((at[high] - at[low]) / (high - low))
    assert curve.attributed == pytest.approx((told[high] - told[low]) / (high - low))
    assert set(curve.table["step"]) == {high}
    assert set(curve.table["slope_sides"]) == {sides}


def test_given_scales_and_no_random_directions(model):
    curve = steer(model, PROMPTS, NODES[:1], doses=[1], neutral=NEUTRAL, n_random=0, scales=[2.0])
    assert np.isnan(np.asarray(curve.table["random"])).all()
    assert curve.amounts(3) == {SpanNode(Site(1, "attn"), 7, "all"): 6.0}
    assert set(curve.frame()["unit"]) == {"given scale"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prompts": []}, "give a list of prompts"),
        ({"prompts": PROMPTS[0]}, "give a list of prompts"),
        ({"nodes": "mlp.0/latent.30"}, "give a list of latents to steer"),
        ({"nodes": ["mlp.0/30"]}, "names look like mlp.3/latent.901"),
        ({"nodes": [7]}, "7 names no latent"),
        ({"nodes": ["mlp.0/error"]}, "is an error; steering raises latents"),
        ({"nodes": ["mlp.9/latent.1"]}, "no dictionary at mlp.9"),
        ({"nodes": ["mlp.0/latent.96"]}, "no latent 96; mlp.0 has 96"),
        ({"nodes": ["mlp.0/latent.3"] * 2}, "is steered twice"),
        ({"nodes": None}, "give a list of latents to steer"),
        ({"nodes": ["mlp.0/latent.3@subject"]}, "no spans were given"),
        ({"nodes": ["mlp.0/latent.3@2"]}, "spans=aligned(model, prompts)"),
        ({"doses": []}, "at least one that is not 0"),
        ({"doses": [1, 1]}, "give each once"),
        ({"doses": [float("nan")]}, "a dose of nan; give finite numbers"),
        ({"doses": 2.0}, "a dose of 2.0; give a list of finite numbers"),
        ({"scales": 2.0}, "a scale of 2.0; give a list of finite numbers"),
        ({"scales": [1.0, 2.0]}, "scales [1.0, 2.0] for 1 latents"),
        ({"neutral": None}, "no neutral texts to measure the KL on (random brings none)"),
        ({"neutral": []}, "no neutral texts"),
        ({"n_random": -1}, "n_random=-1"),
        ({"downstream": "drop"}, "downstream='drop'"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_input_is_told_in_a_sentence(model, change, told):
    given = {"prompts": PROMPTS, "nodes": ["mlp.0/latent.30"], "neutral": NEUTRAL, **change}
    with pytest.raises(UserError) as error:
        steer(model, **given)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_numbers_may_be_numpy_s():
    given = [np.arange(1, 4), [np.int64(1), np.float32(2), 3], (1.0, 2.0, 3.0)]
    for numbers in given:
        assert checked_numbers(numbers, "a dose of") == (1.0, 2.0, 3.0)


def test_a_latent_that_is_on_nowhere_has_no_scale(tiny):
    with pytest.raises(UserError, match=r"mlp\.3/latent\.901@all is on nowhere on the 1 prompts"):
        steer(tiny, ["the kind man"], ["mlp.3/latent.901"], logit_diff)


def test_the_command(tmp_path):
    table, plot = tmp_path / "steer.csv", tmp_path / "steer.svg"
    arguments = ["--task", "agreement_simple", "--latent", "resid.2/latent.722", "--prompts", "4",
                 "--dose", "-1", "--dose", "0", "--dose", "1", "--random", "1", "--device", "cpu",
                 "--generate", "the kind man", "--tokens", "3", "--out", table,
                 "--out", plot]  # fmt: skip
    neutral = tmp_path / "neutral.txt"
    neutral.write_text("the store\n\nthe garden\n")
    arguments += ["--neutral", neutral]
    result = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "SteeringCurve(resid.2/latent.722@all on 4 prompts; slope " in result.output
    continued = [line for line in result.output.splitlines() if "  the kind man " in line]
    assert [line.split()[0] for line in continued] == ["-1", "+0", "+1"]
    assert len(set(continued)) == 3
    assert table.read_text().count("\n") == 4
    assert plot.stat().st_size > 5000


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--latent", "resid.2/latent.722@nowhere"], "no span 'nowhere'"),
        (["--latent", "resid.2/latent.722", "--generate", "the blorp"], "does not know 'blorp'"),
        (["--latent", "resid.2/latent.722@end", "--generate", "the man"], "leave @end out"),
        (["--latent", "resid.2/latent.722", "--generate", "the man", "--tokens", "500"], "at most"),
        (["--latent", "mlp.3/latent.901"], "is on nowhere on the 2 prompts"),
        (["--latent", "mlp.3/latent.901", "--scale", "1", "--scale", "2"], "for 1 latents"),
    ],
)
def test_the_command_tells_mistakes_before_it_prints(change, told):
    arguments = ["--task", "agreement_simple", "--prompts", "2", "--device", "cpu", *change]
    result = CliRunner().invoke(command, arguments)
    assert isinstance(result.exception, UserError)
    assert told in str(result.exception)
    assert not result.output
