"""The pairs are single and joint ablations, and the numbers what agreement says of them."""

import numpy as np
import pytest

from attribution import integrated_effects, logit_diff, total_effects
from attribution.metrics import bind
from circuits import (
    ErrorNode,
    LatentNode,
    UserError,
    corrupted_reference,
    parse_node,
    set_to,
    splice,
)
from circuits.interventions import edits
from experiments.attribution_accuracy import attribution_report
from experiments.kinds import patch
from experiments.statistics import agreement
from tests.experiments.test_pooled import PROMPTS


@pytest.fixture(scope="module")
def report(model):
    return attribution_report(model, PROMPTS[:2], n_nodes=12, n_errors=3, n_points=3)


def test_single_pairs_are_one_ablation_and_one_effect(model, report):
    pairs = report.pairs
    single = pairs[(pairs["question"] == "single") & (pairs["prompt"] == 1)]
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


def test_groups_part_the_nodes(report):
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


def test_every_form_names_the_conventions(report, tmp_path):
    assert set(report.frame()["reference"]) == {"patch"}
    assert set(report.frame()["downstream"]) == {"recompute"}
    assert "<svg" in report.plot(tmp_path / "r.svg").read_text()
    assert report.save(tmp_path / "r.csv").exists()
    assert "per-latent integrated gradients (n=3)" in report.text()


def test_shares_are_shares(model):
    with pytest.raises(UserError, match="shares of a site above 0"):
        attribution_report(model, PROMPTS, shares=[2.0], kind=patch())
