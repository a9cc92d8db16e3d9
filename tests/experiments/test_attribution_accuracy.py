"""The pairs are single and joint ablations, and the numbers what agreement says of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import attribution.integrated as integrated
from attribution import integrated_effects, logit_diff, total_effects
from attribution.metrics import bind
from circuits import (
    ErrorNode,
    LatentNode,
    Reference,
    UserError,
    corrupted_reference,
    parse_node,
    set_to,
    splice,
)
from circuits.interventions import edits
from experiments.accuracy.pairs import Case, transitions
from experiments.accuracy.report import attribution_report
from experiments.kinds import patch, zero
from experiments.pooled import baseline
from experiments.statistics import agreement
from tests.experiments.test_pooled import PROMPTS


@pytest.fixture(scope="module")
def report(model):
    return attribution_report(
        model, PROMPTS[:2], n_nodes=12, n_errors=3, n_points=3, shares=[0.3, 1]
    )


@pytest.mark.parametrize("question", ["single", "single random"])
def test_single_pairs_are_one_ablation_and_one_effect(model, report, question):
    pairs = report.pairs
    single = pairs[(pairs["question"] == question) & (pairs["prompt"] == 1)]
    prompt = PROMPTS[1]
    reference = corrupted_reference(model, prompt)
    score, ids = bind(logit_diff(prompt), model), model.tokens(prompt)
    clean = score(model.run(ids, output=score.output)).item()
    by_estimator = {
        "gradient x activation": total_effects,
        "joint integrated gradients (n=3)": lambda *a, **k: integrated_effects(*a, n=3, **k),
    }
    for name, estimator in by_estimator.items():
        effects = estimator(model, prompt, logit_diff(prompt), reference=reference)
        own = single[single["estimator"] == name]
        assert len(own) == 15
        for row in own.itertuples():
            node = parse_node(str(row.node))
            assert isinstance(node, LatentNode | ErrorNode)
            change = edits(model, ids, [[set_to(node, reference.value(node))]])
            ablated = score(model.run(ids, change, output=score.output)).item()
            assert row.attributed == pytest.approx(effects.of(node), abs=1e-6)
            assert row.measured == pytest.approx(clean - ablated, abs=2e-5)


def nodes_of(report, question, prompt=0):
    pairs = report.pairs
    own = pairs[(pairs["question"] == question) & (pairs["prompt"] == prompt)]
    return list(dict.fromkeys(own["node"]))


def test_random_nodes_are_as_many_others_that_an_ablation_changes(model, report):
    for prompt in range(2):
        strongest, others = (nodes_of(report, q, prompt) for q in ("single", "single random"))
        assert len(set(others)) == len(strongest) == 15
        assert sum("error" in name for name in others) == 3
        assert not set(strongest) & set(others)
        reference = corrupted_reference(model, PROMPTS[prompt])
        clean = Reference("clean", model.trace(PROMPTS[prompt]))
        nodes = [parse_node(name) for name in others]
        assert all(not reference.value(node).equal(clean.value(node)) for node in nodes)
    pairs = report.pairs.assign(size=report.pairs["attributed"].abs())
    by_either = pairs[~pairs["estimator"].str.startswith("per-latent")]
    sizes = by_either.groupby(["prompt", "error", "question", "node"])["size"].max()
    for prompt, error in ((0, False), (1, False), (0, True), (1, True)):
        first, rest = (np.asarray(sizes[prompt, error, q]) for q in ("single", "single random"))
        assert first.min() >= rest.max()


def test_a_seed_draws_the_random_nodes(model, report):
    how = {"n_nodes": 12, "n_errors": 3, "n_points": 3, "shares": [1]}
    again, other = (attribution_report(model, PROMPTS[:1], seed=seed, **how) for seed in (0, 1))
    assert nodes_of(again, "single random") == nodes_of(report, "single random")
    assert nodes_of(other, "single random") != nodes_of(report, "single random")
    assert nodes_of(other, "single") == nodes_of(report, "single")


def test_what_attribution_overlooks_shows_among_the_random_nodes(model, monkeypatch):
    """An estimator that is blind to every second latent is right about all that it ranks high."""

    def blind(estimator):
        def half(*args, **options):
            effects = estimator(*args, **options)
            sites = {
                site: replace(e, effect=torch.where(e.latent % 2 == 1, 0.0, e.effect))
                for site, e in effects.sites.items()
            }
            return replace(effects, sites=sites)

        return half

    for estimator in (total_effects, integrated_effects):
        name = f"experiments.accuracy.pairs.{estimator.__name__}"
        monkeypatch.setattr(name, blind(estimator))
    report = attribution_report(
        model, PROMPTS[:1], n_nodes=30, n_errors=0, n_points=2, shares=[1.0]
    )
    frame = report.frame()
    own = frame[
        (frame["estimator"] == "gradient x activation")
        & (frame["over"] == "pooled")
        & (frame["group"] == "all")
    ]
    own = dict(zip(own["question"], own["sign_agreement"], strict=True))
    assert own["single"] > 0.9
    assert own["single random"] < 0.7


@pytest.mark.parametrize("kind", [zero(), patch()], ids=lambda kind: kind.name)
def test_no_node_is_where_dictionaries_do_not_read(model, kind):
    """At BOS the error is the whole activation; it is left out of every question alike."""
    how = {"kind": kind, "n_nodes": 2, "n_points": 2, "shares": [1.0]}
    report = attribution_report(model, PROMPTS[:1], n_errors=1000, **how)
    singles = nodes_of(report, "single") + nodes_of(report, "single random")
    assert sum("error" in name for name in singles) >= len(model.sites)
    assert not any(name.endswith("@0") for name in singles)
    reference = baseline(kind, model, PROMPTS[0])
    effects = total_effects(model, PROMPTS[0], logit_diff(PROMPTS[0]), reference=reference)
    joint = report.pairs[
        (report.pairs["question"] == "joint 100 %")
        & (report.pairs["estimator"] == "gradient x activation")
    ]
    joint = dict(zip(joint["node"], joint["attributed"], strict=True))
    for site, e in effects.sites.items():
        expected = (e.effect.sum() + e.error_effect[1:].sum()).item()
        assert joint[str(site)] == pytest.approx(expected, abs=1e-5)


def test_the_record_says_how_many_points(report):
    assert report.provenance["settings"]["n_points"] == 3


def test_passes_of_every_estimator_obey_the_batch_size(model, monkeypatch):
    rows, real = [], integrated.gradients

    def counted(model, ids, *args, **options):
        rows.append(len(ids))
        return real(model, ids, *args, **options)

    monkeypatch.setattr(integrated, "gradients", counted)
    how = {"n_nodes": 3, "n_errors": 0, "shares": [1.0], "n_points": 2}
    attribution_report(model, PROMPTS[:1], batch_size=3, **how)
    assert max(rows) == 3
    rows.clear()
    attribution_report(model, PROMPTS[:1], memory="1kB", **{**how, "n_nodes": 2})
    assert rows.count(1) >= 8  # two points of four nodes


def test_a_whole_site_at_once_is_what_joint_integrated_gradients_sum_to(model):
    """With many points; the sum of a site's effects is what the metric loses without it."""
    sites = {s: d for s, d in model.dictionaries.items() if s.kind == "mlp"}
    report = attribution_report(
        splice(model.bridge, sites), PROMPTS[:1], n_nodes=2, n_errors=0, shares=[1.0], n_points=60
    )
    joint = report.pairs[report.pairs["question"] == "joint 100 %"]
    own = joint[joint["estimator"] == "joint integrated gradients (n=60)"]
    np.testing.assert_allclose(own["attributed"], own["measured"], rtol=0.02, atol=2e-4)


def test_numbers_are_those_of_agreement(report):
    frame, pairs = report.frame(), report.pairs
    for row in frame[(frame["over"] == "pooled") & (frame["group"] == "all")].itertuples():
        mask = (pairs["question"] == row.question) & (pairs["estimator"] == row.estimator)
        found = agreement(pairs[mask]["attributed"], pairs[mask]["measured"])
        assert (row.n, row.pearson, row.relative_l1) == (found.n, found.pearson, found.relative_l1)
    of_prompts = frame[(frame["over"] == "prompts") & (frame["question"] == "single")].iloc[0]
    mask = (pairs["question"] == "single") & (pairs["estimator"] == of_prompts["estimator"])
    each = [
        agreement(p["attributed"], p["measured"]).pearson for _, p in pairs[mask].groupby("prompt")
    ]
    assert of_prompts["pearson"] == pytest.approx(np.mean(each))


def test_groups_part_the_nodes(model, report):
    frame = report.frame()
    own = frame[
        (frame["question"] == "single")
        & (frame["over"] == "pooled")
        & (frame["estimator"] == "gradient x activation")
    ].set_index("group")["n"]
    kinds = [group for group in own.index if group.startswith("latents at")]
    transitions = [group for group in own.index if "->" in group]
    assert own["all"] == own[kinds].sum() + own["errors"]
    assert own[transitions].sum() == own[kinds].sum()
    joint = frame[frame["question"] == "joint 30 %"]["group"]
    kinds = {site.kind for site in model.sites}
    assert set(joint) == {"all", *(f"latents and errors at {kind}" for kind in kinds)}


def test_every_form_names_the_conventions(report, tmp_path):
    assert set(report.frame()["reference"]) == {"patch"}
    assert set(report.frame()["downstream"]) == {"recompute"}
    assert "<svg" in report.plot(tmp_path / "r.svg").read_text()
    assert report.save(tmp_path / "r.csv").exists()
    assert "per-latent integrated gradients (n=3)" in report.text()


def test_shares_are_shares(model):
    with pytest.raises(UserError, match="shares of a site above 0"):
        attribution_report(model, PROMPTS, shares=[2.0], kind=patch())


def test_shares_that_are_nearly_alike_are_questions_of_their_own(model):
    shares = [0.1, 0.101, 0.07, 1 / 3, 1]
    report = attribution_report(
        model, PROMPTS[:1], n_nodes=0, n_errors=0, n_points=2, shares=shares
    )
    frame = report.frame()
    asked = [f"joint {share} %" for share in ("10", "10.1", "7", "33.3333", "100")]
    assert list(dict.fromkeys(frame["question"])) == asked  # and no single node
    pairs = frame[frame["over"] == "prompts"]
    assert pairs["n"].tolist() == [len(model.sites)] * 2 * len(shares)


def test_there_are_no_fewer_than_no_nodes(model):
    with pytest.raises(UserError, match="n_errors=-1; give a whole number from 0 on"):
        attribution_report(model, PROMPTS, n_nodes=3, n_errors=-1, n_points=2)


@pytest.mark.parametrize("kind", [patch(), zero()], ids=str)
def test_transitions_are_those_of_values_looked_up_one_by_one(model, kind, monkeypatch):
    """Here by a pass over the sites, whatever the number of nodes."""
    case = Case.of(model, PROMPTS[0], logit_diff, kind, "recompute", 2)
    changed = [bool(row) for row in case.changes([[i] for i in range(len(case.nodes))])]
    nodes = [node for node, change in zip(case.nodes, changed, strict=True) if change][::-1]
    names = {(True, True): "on -> on", (True, False): "on -> off", (False, True): "off -> on"}
    expected = [
        names[bool(case.clean.value(node) != 0), bool(case.reference.value(node) != 0)]
        if isinstance(node, LatentNode)
        else ""
        for node in nodes
    ]
    assert len(set(expected)) == (4 if kind.name == "patch" else 2)
    monkeypatch.setattr(Reference, "value", lambda *_: pytest.fail("looked up alone"))
    assert transitions(case, nodes) == expected
