"""Kinds of ablation side by side are each alone, and the record says how they were drawn."""

import numpy as np
import pytest
from click.testing import CliRunner

from attribution import logit_diff
from circuits import SplicedModel, UserError
from experiments.commands.kinds import kinds as kinds_command
from experiments.kinds import mean_of, patch, resample, set_value, zero
from experiments.latents.kinds_compared import compare_kinds
from experiments.latents.table import screen
from experiments.pooled import measured_effects, pooled_effects
from experiments.spans import aligned
from tests.experiments.test_pooled import PROMPTS, pair

OTHERS = [pair("w3 w5 w9 w2 w8 w9 w30", 1), pair("w2 w6 w9 w2 w5 w9 w12", 2)]


@pytest.fixture(scope="module")
def nodes(model):
    pooled = pooled_effects(model, PROMPTS, aligned(model, PROMPTS), logit_diff, patch())
    return [pooled.nodes[i] for i in screen(pooled, pooled)[:6]]


def test_kinds_beside_each_other(model, nodes, tmp_path):
    kinds = [patch(), zero(), mean_of(OTHERS), resample(OTHERS, n=2)]
    result = compare_kinds(model, PROMPTS, nodes, kinds=kinds, n_permutations=100)
    spans = aligned(model, PROMPTS)
    for kind, mean in zip(kinds, result.means, strict=True):
        found = measured_effects(model, PROMPTS, spans, logit_diff, nodes, kind)
        np.testing.assert_allclose(mean, found.effect.mean(0), atol=2e-5)
    pairs = result.correlations()
    assert len(pairs) == 6
    ranks = [np.argsort(np.argsort(mean)) for mean in result.means]
    assert pairs["spearman"].tolist()[0] == pytest.approx(np.corrcoef(ranks[0], ranks[1])[0, 1])
    assert "<svg" in result.plot(tmp_path / "k.svg").read_text()
    assert set(result.frame()["metric"]) == {"logit_diff"}


def test_a_latent_flips_where_no_interval_leaves_its_sign_open(model):
    """The sign of one latent's effect turns with what it is set to: too small, or too large."""
    pooled = pooled_effects(model, PROMPTS, aligned(model, PROMPTS), logit_diff, zero())
    everywhere = (pooled.active.mean(0) == 1) & [n.latent is not None for n in pooled.nodes]
    nodes = [pooled.nodes[i] for i in np.flatnonzero(everywhere)[:40]]
    kinds = [zero(), set_value(100.0), patch()]
    result = compare_kinds(model, PROMPTS, nodes, kinds=kinds, n_bootstrap=100)
    pairs, frame = result.correlations(), result.frame()

    def flips(row, one, other):
        """By hand: both intervals on one side of zero, and not on the same one."""
        ends = [(row[f"{name}_low"], row[f"{name}_high"]) for name in (one, other)]
        (low, high), (other_low, other_high) = ends
        return (high < 0 < other_low) or (other_high < 0 < low)

    expected = np.array(
        [
            [flips(row, pair["kind"], pair["other"]) for row in frame.to_dict("records")]
            for pair in pairs.to_dict("records")
        ]
    )
    assert pairs["sign_flips"].tolist() == expected.sum(1).tolist()
    assert frame["sign_flips"].tolist() == expected.sum(0).tolist()
    opposite = np.sign(result.means[0]) != np.sign(result.means[1])
    assert 0 < expected[0].sum() < opposite.sum()  # some means that differ in sign are not clear


def test_the_record_says_how_intervals_and_p_were_drawn(model, nodes):
    kinds = [patch(), mean_of(OTHERS)]
    result = compare_kinds(
        model, PROMPTS, nodes[:2], kinds=kinds, n_bootstrap=100, n_permutations=7
    )
    settings = result.provenance["settings"]
    assert (settings["n_bootstrap"], settings["n_permutations"]) == (100, 7)
    assert settings["kinds"] == {kind.name: kind.settings for kind in kinds}
    assert set(result.frame()["n_prompts"]) == {len(PROMPTS)}


def test_the_command_says_it_and_makes_the_references_that_it_screens_by_once(monkeypatch):
    texts, real = [], SplicedModel.trace

    def counted(self, prompt):
        texts.append(getattr(prompt, "text", prompt))
        return real(self, prompt)

    monkeypatch.setattr(SplicedModel, "trace", counted)
    asked = ["--task", "agreement_simple", "--prompts", "2", "--top", "3", "--device", "cpu"]
    result = CliRunner().invoke(kinds_command, [*asked, "--kinds", "patch,zero"])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-2].split() == ["kind", "other", "spearman", "sign", "flips"]
    assert len(texts) == 2 * 2  # of each pair both texts, once


def test_one_kind_is_nothing_to_compare(model, nodes):
    with pytest.raises(UserError, match="two or more, each once"):
        compare_kinds(model, PROMPTS, nodes, kinds=[patch()])
    with pytest.raises(UserError, match="no latents"):
        compare_kinds(model, PROMPTS, [], kinds=[patch(), zero()])
