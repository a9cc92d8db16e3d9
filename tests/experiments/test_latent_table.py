"""The table's numbers are those of single ablations, and its controls are what it says."""

import json

import numpy as np
import pytest

from attribution import logit_diff
from circuits import Prompt, UserError
from experiments.kinds import patch
from experiments.latents.table import ablation_table, screen
from experiments.pooled import measured_effects, pairs_of, pooled_effects
from experiments.records import record_of
from experiments.spans import aligned
from tests.experiments.test_pooled import PROMPTS, pair

HELDOUT = [pair("w3 w5 w9 w2 w8 w9 w30", 1), pair("w2 w6 w9 w2 w5 w9 w12", 2)]


@pytest.fixture(scope="module")
def table(model):
    return ablation_table(model, PROMPTS, heldout=HELDOUT, max_latents=12, n_controls=5)


def test_rows_are_single_ablations(model, table):
    spans = aligned(model, PROMPTS)
    found = measured_effects(model, PROMPTS, spans, logit_diff, table.nodes, patch())
    frame = table.frame()
    np.testing.assert_allclose(table.effects, found.effect, atol=2e-5)
    np.testing.assert_allclose(frame["mean"], found.effect.mean(0), atol=2e-5)
    mean, low, high = (np.asarray(frame[name]) for name in ("mean", "low", "high"))
    assert (np.diff(np.abs(mean)) <= 1e-12).all()  # strongest first
    assert (low <= mean).all()
    assert (mean <= high).all()
    again = measured_effects(
        model, HELDOUT, aligned(model, HELDOUT), logit_diff, table.nodes, patch()
    )
    np.testing.assert_allclose(frame["heldout_mean"], again.effect.mean(0), atol=2e-5)


def test_attributed_and_firing_are_means_over_prompts(model, table):
    pooled = pooled_effects(model, PROMPTS, aligned(model, PROMPTS), logit_diff, patch())
    places = [pooled.nodes.index(node) for node in table.nodes]
    frame = table.frame()
    np.testing.assert_allclose(frame["attributed"], pooled.effect.toarray().mean(0)[places])
    np.testing.assert_allclose(frame["firing"], pooled.active.toarray().mean(0)[places])


def test_shares_are_of_what_the_corrupted_prompt_loses(model, table):
    from attribution.metrics import bind

    gaps = []
    for prompt in PROMPTS:
        score = bind(logit_diff(prompt), model)
        texts = (prompt.text, prompt.corrupted)
        clean, corrupted = (score(model(text)[:, -1:]).item() for text in texts)
        gaps.append(clean - corrupted)
    frame = table.frame()
    np.testing.assert_allclose(frame["share"], frame["mean"] / np.mean(gaps), rtol=1e-3)
    assert (frame["share_low"] <= frame["share"]).all()
    assert (frame["share"] <= frame["share_high"]).all()
    assert set(frame["share_of"]) == {"clean - corrupted"}


def test_the_screen_sees_what_either_estimator_sees(model):
    pooled = pooled_effects(model, PROMPTS, aligned(model, PROMPTS), logit_diff, patch())
    order = screen(pooled, pooled)
    sizes = np.abs(pooled.effect.toarray()).mean(0)
    assert (np.diff(sizes[order]) <= 0).all()
    assert all(pooled.nodes[i].latent is not None for i in order)


def test_a_pair_and_its_reverse_are_one_cluster():
    a, b = Prompt("a", corrupted="b"), Prompt("b", corrupted="a")
    assert pairs_of([a, Prompt("c", corrupted="b"), b]).tolist() == [0, 1, 0]


def test_every_form_names_the_conventions(table, tmp_path):
    frame = table.frame()
    assert set(frame["reference"]) == {"patch"}
    assert set(frame["downstream"]) == {"recompute"}
    assert set(frame["estimator"]) == {"gradient x activation"}
    content = json.loads(table.save(tmp_path / "t.json").read_text())
    assert content["provenance"]["prompts"]["n"] == len(PROMPTS)
    assert content["provenance"]["settings"]["heldout"] == record_of(HELDOUT)
    assert len(content["rows"]) == 12
    assert "<svg" in table.plot(tmp_path / "t.svg").read_text()
    lines = table.text(top=3).splitlines()
    assert lines[0].split()[:2] == ["node", "mean"]
    assert lines[4] == "... and 9 more"
    assert lines[5:] == list(table.notes)


def test_held_out_prompts_are_other_prompts(model):
    with pytest.raises(UserError, match="1 of 1 held-out texts are among the prompts"):
        ablation_table(model, PROMPTS, heldout=PROMPTS[:1])
    with pytest.raises(UserError, match="at least one"):
        ablation_table(model, [])
