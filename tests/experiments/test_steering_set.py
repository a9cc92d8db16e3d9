"""Setting latents is `set_to`, and the same edit by hand on the Hugging Face model."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from attribution import logit_diff, total_effects
from circuits import LatentNode, Site, UserError, load_gemma, set_to, splice
from circuits.outputs import LAST_LOGITS
from experiments.commands.steer import steer as command
from experiments.spans import aligned
from experiments.steering.dose_response import steer
from experiments.steering.generation import generate
from experiments.steering.modes import steer_rows
from experiments.steering.vectors import positions, random_directions, steered_nodes
from tests.experiments.test_pooled import PROMPTS
from tests.experiments.test_steering import NEUTRAL, NODES, by_hand, by_hooks, difference
from tests.random_gemma import TEXT, chosen_dictionaries, random_dictionaries

DOSES = (-1.0, 0.0, 0.5, 2.0)


@pytest.fixture(scope="module")
def curve(model):
    how = {"doses": DOSES, "neutral": NEUTRAL, "n_random": 2, "seed": 5}
    return steer(model, PROMPTS, NODES, mode="set", **how)


def acts_of(d, x):
    """Of all latents on `x [..., d_in]`, by the definition."""
    pre = x @ d.W_enc + d.b_enc
    return pre.relu() * (pre > d.threshold)


def setters(model, amounts, seen=None):
    """By site, from what is there to what setting `{SpanNode: amount}` adds; kept in `seen`."""
    by_site = {}
    for node, amount in amounts.items():
        by_site.setdefault(node.site, []).append((node.latent, amount))

    def setter(site, items):
        d = model.dictionaries[site]

        def change(x):
            acts = acts_of(d, x)
            found = sum((value - acts[..., [i]]) * d.W_dec[i] for i, value in items)
            if seen is not None:
                seen[site] = found
            return found

        return change

    return {site: setter(site, items) for site, items in by_site.items()}


def test_responses_are_those_of_latents_set_by_hand(model, plain, curve):
    assert curve.table["dose"].tolist() == list(DOSES)
    for i, prompt in enumerate(PROMPTS):
        ids = model.tokens(prompt)
        assert curve.clean[i] == pytest.approx(
            difference(by_hand(plain, ids, {}), prompt, model), abs=2e-4
        )
        for k, dose in enumerate(DOSES):
            logits = by_hand(plain, ids, setters(model, curve.amounts(dose)))
            assert curve.responses[i, k] == pytest.approx(
                difference(logits, prompt, model), abs=2e-4
            )
    assert set(curve.frame()["mode"]) == {"set"}


def test_random_directions_are_as_large_as_what_setting_changes(model, plain, curve):
    """At each site and position, where latents set below have changed it already."""
    draws = random_directions(model, curve.nodes, 2, seed=5)
    for i, prompt in enumerate(PROMPTS):
        ids = model.tokens(prompt)
        for k, dose in enumerate(DOSES):
            changes = {}
            by_hand(plain, ids, setters(model, curve.amounts(dose), changes))
            for way, directions in enumerate(draws):
                vectors = {
                    s: x.norm(dim=-1, keepdim=True) * directions[s] for s, x in changes.items()
                }
                assert all(vector.norm() > 0 for vector in vectors.values())
                logits = by_hand(plain, ids, vectors)
                assert curve.random_responses[way, i, k] == pytest.approx(
                    difference(logits, prompt, model), abs=2e-4
                )


def test_kl_is_that_of_latents_set_by_hand_in_neutral_texts(model, plain, curve):
    for k, dose in enumerate(DOSES):
        found = []
        for text in NEUTRAL:
            ids = model.tokens(text)
            clean, steered = (
                by_hand(plain, ids, vectors)[0, 1:].double().log_softmax(-1)
                for vectors in ({}, setters(model, curve.amounts(dose)))
            )
            found += (clean.exp() * (clean - steered)).sum(-1).tolist()
        assert curve.table["kl"][k] == pytest.approx(np.mean(found), rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("downstream", ["recompute", "freeze"])
@pytest.mark.parametrize("kind", ["attn", "mlp", "resid", "transcoder", "skip", "cross"])
def test_setting_is_the_intervention_that_sets_the_latent(bridge, kind, downstream):
    model = splice(bridge, chosen_dictionaries([kind]), name=kind)
    ids = model.tokens(PROMPTS[0])
    sites, values = model.sites, (3.5, 0.0, -1.5)
    names = [f"{sites[0]}/latent.4", f"{sites[0]}/latent.50", f"{sites[-1]}/latent.7"]
    nodes = steered_nodes(model, names)
    places = positions(model, ids, nodes)
    edits, changed = steer_rows(model, ids, nodes, [values, (1.0, 1.0, 1.0)], places, "set")
    steered = model.run(ids.expand(2, -1), edits, downstream=downstream)
    setting = [
        set_to(LatentNode(node.site, node.latent or 0, pos), value)
        for node, value in zip(nodes, values, strict=True)
        for pos in range(1, ids.shape[1])
    ]
    expected = model(ids, setting, downstream=downstream)
    torch.testing.assert_close(steered[:1], expected, atol=2e-4, rtol=1e-4)
    # below all others only the clean value is replaced
    clean = model.trace(PROMPTS[0]).sites[sites[0]].dense()
    rows = [node.latent for node in nodes[:2]]
    now = torch.tensor(values[:2]) - clean[:, rows]
    now[0] = 0  # BOS
    told = now @ model.dictionaries[sites[0]].W_dec[rows]
    torch.testing.assert_close(changed()[sites[0]][0], told, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("downstream", ["recompute", "freeze"])
def test_the_clean_value_at_one_position_changes_nothing(model, downstream):
    """Bit for bit; and along random directions nothing moves either."""
    prompt = PROMPTS[0]
    ids = model.tokens(prompt)
    last = ids.shape[1] - 1
    for site in model.sites:
        dense = model.trace(prompt).sites[site].dense()[last]
        for latent in (int(dense.argmax()), int(dense.argmin())):  # on, and off
            value = dense[latent].item()
            nodes = steered_nodes(model, [f"{site}/latent.{latent}@end"])
            places = torch.zeros(1, last + 1, dtype=torch.bool)
            places[0, last] = True
            edits, changed = steer_rows(model, ids, nodes, [[value]], places, "set")
            same = model.run(ids, edits, downstream=downstream, output=LAST_LOGITS)
            assert torch.equal(same, model.run(ids, output=LAST_LOGITS))
            assert not changed()[site].any()
    on = int(dense.argmax())
    curve = steer(
        model, [prompt], [f"{site}/latent.{on}@end"], mode="set", scales=[dense[on].item()],
        doses=[1, 2], neutral=NEUTRAL[:1], n_random=2, downstream=downstream,
    )  # fmt: skip
    assert curve.responses[0, 1] == pytest.approx(curve.clean[0], abs=2e-6)
    assert curve.random_responses[:, 0, 1] == pytest.approx(curve.clean[0], abs=2e-6)
    assert abs(curve.responses[0, [0, 2]] - curve.clean[0]).min() > 1e-3


def test_where_a_latent_is_off_setting_is_adding(model):
    prompts, spans = PROMPTS[:3], aligned(model, PROMPTS[:3])
    site = Site(1, "mlp")
    at = torch.stack([model.trace(prompt).sites[site].dense()[5] for prompt in prompts])
    latent = int((at == 0).all(0).nonzero()[0])
    how = {"doses": [-1, 1, 3], "scales": [4.0], "spans": spans, "neutral": NEUTRAL[:1],
           "n_random": 1}  # fmt: skip
    added, replaced = (
        steer(model, prompts, [f"{site}/latent.{latent}@5"], mode=mode, **how)
        for mode in ("add", "set")
    )
    for name in ("responses", "random_responses", "foretold", "slopes", "attributed_slopes"):
        one, other = getattr(added, name), getattr(replaced, name)
        np.testing.assert_allclose(one, other, atol=2e-5, err_msg=name)
    assert np.abs(added.responses - added.clean[:, None]).max() > 1e-2


def test_taking_latents_out_is_foretold_by_their_attributed_effects(model):
    """At dose 0: the clean metric less gradient x activation, summed over positions."""
    name = "mlp.0/latent.30"
    (node,) = steered_nodes(model, [name])
    prompts = PROMPTS[:3]
    curve = steer(model, prompts, [name], mode="set", doses=[1], neutral=NEUTRAL[:1], n_random=0)
    for i, prompt in enumerate(prompts):
        effects = total_effects(model, prompt, logit_diff(prompt)).sites[node.site]
        lost = effects.effect[effects.latent == node.latent].sum().item()
        assert curve.clean[i] - curve.foretold[i, 0] == pytest.approx(lost, rel=1e-4, abs=1e-5)
    assert curve.table["kl"].tolist()[0] > 0
    np.testing.assert_allclose(curve.slopes, curve.responses[:, 1] - curve.responses[:, 0])
    chord = curve.foretold[:, 1] - curve.foretold[:, 0]
    np.testing.assert_allclose(curve.attributed_slopes, chord)


# where errors are held, latents that a larger dose switches make the response jump
@pytest.mark.parametrize(("downstream", "tiny"), [("recompute", 1e-2), ("freeze", 1e-3)])
def test_near_the_clean_value_the_gradient_foretells_the_response(gemma_folder, downstream, tiny):
    """Of a latent alone, and of one with another above it, which is set and does not follow."""
    bridge = load_gemma(str(gemma_folder), device="cpu", dtype=torch.float64)
    exact = splice(bridge, random_dictionaries(dtype=torch.float64), name="exact")
    prompt = PROMPTS[0]

    def metric(prompt):  # of the logits as they are: `logit_diff` rounds them to float32
        right, wrong = exact.token_id(prompt.target), exact.token_id(prompt.foil)
        return lambda logits: logits[:, -1, right] - logits[:, -1, wrong]

    sites = exact.trace(prompt).sites
    top = {site: sites[site].dense()[-1].max(0) for site in (Site(0, "resid"), Site(1, "resid"))}
    names = {f"{site}/latent.{int(at.indices)}@end": at.values.item() for site, at in top.items()}
    for chosen in ([*names][:1], [*names]):
        curve = steer(
            exact, [prompt], chosen, metric, mode="set", doses=(1 - tiny, 1, 1 + tiny),
            scales=[names[name] for name in chosen], neutral=NEUTRAL[:1], n_random=0,
            downstream=downstream,
        )  # fmt: skip
        measured = curve.responses[0, 3] - curve.responses[0, 1]
        foretold = curve.foretold[0, 3] - curve.foretold[0, 1]
        # Gemma's norms compute in float32 whatever the model's dtype
        assert abs(foretold) > tiny
        assert measured == pytest.approx(foretold, rel=2e-3)


@pytest.mark.parametrize("cached", [True, False])
def test_a_continuation_is_that_of_latents_set_by_hand_in_every_step(model, plain, cached):
    """With a cache each step has the new position alone, and there the latents are set."""
    amounts = dict(zip(steered_nodes(model, NODES), (0.0, 0.0, 0.0, 20.0), strict=True))
    changes, ids, past = setters(model, amounts), model.tokens(TEXT), None
    n_given, generator = ids.shape[1], torch.Generator().manual_seed(3)
    for _ in range(12):
        given = ids if past is None else ids[:, -1:]
        text = slice(1 if past is None else 0, None)  # BOS is left alone
        with by_hooks(plain, changes, at=text), torch.no_grad():
            out = plain(given, past_key_values=past, use_cache=cached)
        past = out.past_key_values if cached else None
        p = (out.logits[0, -1].double() / 2).softmax(-1)
        token = torch.multinomial(p, 1, generator=generator)
        ids = torch.cat([ids, token[None]], 1)
    how = {"max_new_tokens": 12, "temperature": 2.0, "seed": 3}
    found = generate(model, TEXT, steer=amounts, mode="set", **how)
    assert list(found.ids) == ids[0, n_given:].tolist()
    assert len(set(found.ids)) > 3
    assert found.ids != generate(model, TEXT, steer=amounts, **how).ids
    assert found.ids != generate(model, TEXT, **how).ids


@pytest.mark.parametrize("mode", ["add", "set"])
def test_a_latent_is_steered_at_one_span(model, mode):
    """In neutral texts, which have no spans, it would be steered twice."""
    for nodes in (["mlp.0/latent.3@3", "mlp.0/latent.3@5"], ["mlp.0/latent.3", "mlp.0/latent.3@5"]):
        with pytest.raises(UserError, match=r"mlp\.0/latent\.3@5 is steered twice; give each"):
            steer(model, PROMPTS, nodes, mode=mode, spans=aligned(model, PROMPTS), neutral=NEUTRAL)


def test_an_unknown_mode_is_refused(model):
    with pytest.raises(UserError, match="mode='clamp'; choose add"):
        steer(model, PROMPTS, ["mlp.0/latent.30"], mode="clamp", neutral=NEUTRAL)
    with pytest.raises(UserError, match="mode='clamp'; choose add, to raise"):
        generate(model, TEXT, mode="clamp")


def test_the_command_sets(tmp_path):
    table = tmp_path / "set.csv"
    arguments = ["--task", "agreement_simple", "--latent", "resid.2/latent.722", "--prompts", "4",
                 "--mode", "set", "--dose", "1", "--random", "1", "--device", "cpu", "--generate",
                 "the kind man", "--tokens", "3", "--out", str(table)]  # fmt: skip
    neutral = tmp_path / "neutral.txt"
    neutral.write_text("the store\nthe garden\n")
    result = CliRunner().invoke(
        command, [*arguments, "--neutral", str(neutral)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    assert "mode set" in result.output
    continued = [line for line in result.output.splitlines() if "  the kind man " in line]
    assert [line.split()[0] for line in continued] == ["+0", "+1"]
    assert len({line.split(maxsplit=1)[1] for line in continued}) == 2
    head, *rows = table.read_text().splitlines()
    assert "mode" in head.split(",")
    assert len(rows) == 2
    wrong = CliRunner().invoke(command, ["--task", "ioi", "--latent", "x", "--mode", "clamp"])
    assert wrong.exit_code == 2
    assert "'clamp' is not one of 'add', 'set'" in wrong.output
