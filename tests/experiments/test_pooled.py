"""Effects of many prompts are those of each prompt, summed over the positions of a span."""

import json
from dataclasses import replace
from weakref import ref

import numpy as np
import pytest

from attribution import integrated_effects, logit_diff, total_effects
from attribution.metrics import bind
from circuits import (
    ErrorNode,
    LatentNode,
    Prompt,
    UserError,
    corrupted_reference,
    mean_reference,
    set_to,
    splice,
)
from circuits.interventions import edits
from experiments.kinds import (
    checked_kind,
    kind_named,
    mean_of,
    patch,
    resample,
    set_value,
    zero,
)
from experiments.pooled import baseline, measured_effects, metric_of_name, pooled_effects
from experiments.spans import SpanNode, aligned, whole
from experiments.tasks import TASKS
from experiments.traced import traced_once

TEXTS = ("w1 w5 w9 w2 w5 w9 w30", "w4 w5 w6 w2 w8 w9 w30", "w7 w5 w3 w2 w11 w9 w12")


def pair(text: str, n: int) -> Prompt:
    words = text.split()
    words[n] = "w20"
    return Prompt(text, target="w19", foil="w31", corrupted=" ".join(words))


PROMPTS = [pair(text, n) for n, text in enumerate(TEXTS, start=1)]


def one_pass(model, prompt, interventions, downstream="recompute"):
    ids, score = model.tokens(prompt), bind(logit_diff(prompt), model)
    changed = edits(model, ids, [interventions])
    return score(model.run(ids, changed, downstream=downstream, output=score.output)).item()


@pytest.mark.parametrize("spans", [aligned, whole])
@pytest.mark.parametrize("estimator", [total_effects, integrated_effects])
def test_attributed_effects_are_those_of_each_prompt(model, spans, estimator):
    places = spans(model, PROMPTS)
    pooled = pooled_effects(model, PROMPTS, places, logit_diff, patch(), estimator=estimator)
    dense = pooled.effect.toarray()
    for i, prompt in enumerate(PROMPTS):
        reference = corrupted_reference(model, prompt)
        effects = estimator(model, prompt, logit_diff(prompt), reference=reference)
        rng = np.random.default_rng(i)
        for column in rng.choice(len(pooled.nodes), 40, replace=False):
            members = places.nodes(pooled.nodes[column], i)
            expected = sum(effects.of(node) for node in members)
            assert dense[i, column] == pytest.approx(expected, abs=1e-6)
        every = sum(float(e.effect.sum()) for e in effects.sites.values())
        latents = [n.latent is not None for n in pooled.nodes]
        assert dense[i, latents].sum() == pytest.approx(every, abs=1e-3)


@pytest.mark.parametrize("downstream", ["recompute", "freeze"])
def test_measured_effects_set_all_positions_of_a_span_at_once(model, downstream):
    places = whole(model, PROMPTS)
    pooled = pooled_effects(model, PROMPTS, places, logit_diff, patch())
    order = np.argsort(-np.abs(np.asarray(pooled.effect.mean(0))))[:6]
    nodes = [pooled.nodes[i] for i in order]
    site = nodes[0].site
    nodes.append(SpanNode(site, None, "all"))
    found = measured_effects(
        model, PROMPTS, places, logit_diff, nodes, patch(), downstream=downstream
    )
    for i, prompt in enumerate(PROMPTS):
        reference = corrupted_reference(model, prompt)
        clean = one_pass(model, prompt, [], downstream)
        for column, node in enumerate(nodes):
            positions = range(1, 8)
            members = [
                ErrorNode(node.site, pos)
                if node.latent is None
                else LatentNode(node.site, node.latent, pos)
                for pos in positions
            ]
            changes = [set_to(member, reference.value(member)) for member in members]
            expected = clean - one_pass(model, prompt, changes, downstream)
            assert found.effect[i, column] == pytest.approx(expected, abs=2e-5)
    assert np.isnan(found.donor_variance).all()


def test_errors_count_where_dictionaries_read_alone(model):
    """At EOS an error is all that is written; circuits leave it alone, and so do effects."""
    prompts = [pair(text.replace("w9", "<eos>", 1), n) for n, text in enumerate(TEXTS, start=1)]
    (reads,) = model.reads(model.tokens(prompts[0]))
    eos = [str(pos) for pos in (~reads).nonzero()[1:, 0].tolist()]  # but for BOS
    places = aligned(model, prompts[:1])
    pooled = pooled_effects(model, prompts[:1], places, logit_diff, zero())
    assert eos
    assert {node.span for node in pooled.nodes} == set(places.names) - set(eos)
    nodes = [SpanNode(site, None, eos[0]) for site in model.sites]
    found = measured_effects(model, prompts[:1], places, logit_diff, nodes, zero())
    assert not found.effect.any()


def test_a_change_is_a_distance_at_the_site(model):
    places = aligned(model, PROMPTS)
    pooled = pooled_effects(model, PROMPTS, places, logit_diff, patch())
    clean, other = model.trace(PROMPTS[0]), model.trace(PROMPTS[0].corrupted)
    change = pooled.change.toarray()[0]
    for column in np.flatnonzero(change)[::97]:
        node = pooled.nodes[column]
        (member,) = places.nodes(node, 0)
        here, there = clean.sites[node.site], other.sites[node.site]
        if node.latent is None:
            expected = (here.error[member.pos] - there.error[member.pos]).norm().item()
        else:
            moved = here.dense() - there.dense()
            size = model.dictionaries[node.site].W_dec[node.latent].norm()
            expected = (moved[member.pos, node.latent].abs() * size).item()
        assert change[column] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_donors_are_averaged_and_their_variance_told(model):
    donors = [Prompt(f"w{i} w{i + 1} w9 w2 w{i} w9 w30") for i in range(3, 9)]
    kind = resample(donors, n=4, seed=1)
    places = aligned(model, PROMPTS[:1])
    nodes = list(pooled_effects(model, PROMPTS[:1], places, logit_diff, kind).nodes)[:200:9]
    found = measured_effects(model, PROMPTS[:1], places, logit_diff, nodes, kind)
    references = kind.references(model, PROMPTS[0])
    assert len(references) == 4
    clean = one_pass(model, PROMPTS[0], [])
    for column, node in enumerate(nodes):
        (member,) = places.nodes(node, 0)
        each = [
            clean - one_pass(model, PROMPTS[0], [set_to(member, r.value(member))])
            for r in references
        ]
        assert found.effect[0, column] == pytest.approx(np.mean(each), abs=2e-5)
        assert found.donor_variance[0, column] == pytest.approx(np.var(each, ddof=1), abs=1e-5)


def test_kinds_give_the_values_that_they_name(model):
    prompt = PROMPTS[0]
    assert baseline(zero(), model, prompt).name == "zero"
    others = [*PROMPTS[1:], Prompt("w1 w2")]  # of another length: it does not count
    site = model.sites[0]
    mean, expected = baseline(mean_of(others), model, prompt), mean_reference(model, PROMPTS[1:])
    assert mean.acts(site).equal(expected.acts(site))
    held = baseline(set_value(2.5), model, prompt)
    clean = model.trace(prompt).sites[site]
    assert (held.acts(site)[clean.pos, clean.latent] == 2.5).all()
    assert held.error(site).equal(clean.error)
    assert held.acts(site).count_nonzero() == len(clean.pos)
    names = ("patch", "mean", "resample", "zero", "set to 2.5")
    assert [kind_named(name, PROMPTS).name for name in names] == list(names)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (mean_of(TEXTS), mean_of(TEXTS[:2])),
        (mean_of(TEXTS), mean_of(PROMPTS)),
        (resample(TEXTS), resample(TEXTS[::-1])),
        (resample(TEXTS), resample(TEXTS, n=2)),
        (resample(TEXTS), resample(TEXTS, seed=1)),
        (set_value(1.0), set_value(1 + 1e-9)),
    ],
)
def test_kinds_of_one_name_say_in_what_they_differ(one, other):
    assert one.name == other.name
    assert one.settings != other.settings
    assert json.loads(json.dumps(one.settings)) == traced_once(one).settings


def test_a_mean_is_of_the_model_that_is_asked(model):
    """Also of one that stands where another stood, which is gone."""
    kind, site = mean_of(PROMPTS), model.sites[0]
    halves = {s: replace(d, W_enc=d.W_enc / 2, b_enc=d.b_enc / 2) for s, d in
              dict(model.dictionaries).items()}  # fmt: skip
    first, second = replace(model), splice(model.bridge, halves)
    expected = kind.references(first, PROMPTS[0])[0].acts(site)
    assert kind.references(first, PROMPTS[1])[0].acts(site).equal(expected)
    place, gone = id(first), ref(first)
    del first
    assert gone() is None  # kept by nothing
    others = [replace(second)]
    while id(others[-1]) != place and len(others) < 1000:
        others.append(replace(second))
    mean = kind.references(others[-1], PROMPTS[0])[0].acts(site)
    assert mean.equal(mean_reference(second, PROMPTS).acts(site))
    assert not mean.equal(expected)


def test_a_prompt_is_not_its_own_donor(model):
    references = resample(PROMPTS, n=8).references(model, PROMPTS[0])
    own = model.tokens(PROMPTS[0])[0]
    assert len(references) == 2
    assert not any(reference.trace.ids.equal(own) for reference in references)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: kind_named("median", PROMPTS), "no kind of ablation 'median'"),
        (lambda model: mean_of([]), "at least one"),
        (lambda model: resample(PROMPTS, n=0), "n=0; give a whole number"),
        (
            lambda model: mean_of([Prompt("w1 w2")]).references(model, PROMPTS[0]),
            "none of the 1 prompts whose values stand in has 8 tokens",
        ),
    ],
)
def test_what_is_no_kind_is_refused(model, make, message):
    with pytest.raises(UserError, match=message):
        make(model)


@pytest.mark.parametrize("check", [checked_kind, traced_once])
@pytest.mark.parametrize("kind", ["patch", zero], ids=["a name", "a function"])
def test_a_name_or_a_function_is_no_kind(check, kind):
    assert check(zero()) == zero()
    with pytest.raises(UserError, match=r"is no kind of ablation; give patch\(\), "):
        check(kind)


def test_a_metric_of_a_task_is_named_after_it():
    assert metric_of_name(logit_diff) == "logit_diff"
    assert metric_of_name(TASKS["ioi"].metric) == "ioi metric"
