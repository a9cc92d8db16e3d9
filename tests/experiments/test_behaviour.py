"""A share has an interval, and is missing where there is nothing to be a share of."""

import numpy as np
import pytest

from attribution import logit
from circuits import Prompt, UserError
from experiments.circuit.question import Gains, check_gap, enough
from experiments.latents.behaviour import Behaviour
from experiments.latents.table import ablation_table
from tests.experiments.test_pooled import PROMPTS

DRAWS = {"n_bootstrap": 400, "seed": 0}


def behaviour(at_stake, clean):
    return Behaviour("clean - corrupted", np.asarray(at_stake, float), np.asarray(clean, float))


def test_an_effect_in_proportion_has_no_interval():
    """c of what is at stake on every prompt is the share c, however much that varies."""
    rng = np.random.default_rng(0)
    at_stake = rng.lognormal(size=12)
    effects = at_stake[:, None] * [0.25, -2, 0]
    shares, notes = behaviour(at_stake, at_stake).shares(effects, np.arange(12) // 2, **DRAWS)
    assert notes == []
    for name in ("share", "share_low", "share_high"):
        np.testing.assert_allclose(shares[name], [0.25, -2, 0], atol=1e-12)


def test_intervals_hold_the_share_at_their_rate():
    """Where prompts differ in what is at stake, and a pair's two prompts go together."""
    held, n = 0, 300
    for seed in range(n):
        rng = np.random.default_rng(seed)
        pair = np.repeat(rng.normal(size=20), 2)
        at_stake = 3 + pair + 0.3 * rng.normal(size=40)
        effects = 0.4 * at_stake + 0.5 * np.repeat(rng.normal(size=20), 2)
        shares, _ = behaviour(at_stake, at_stake).shares(
            effects[:, None], np.arange(40) // 2, **DRAWS
        )
        held += int(shares["share_low"][0] <= 0.4 <= shares["share_high"][0])
    assert held / n == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize(
    ("at_stake", "clean", "says"),
    [
        ([1.0] * 6, [9.9] * 6, None),
        ([1.0] * 6, [10.1] * 6, "is 1, less than 10% of the metric on clean prompts, 10.1"),
        ([-1.0] * 6, [-10.1] * 6, "is -1, less than 10%"),
        ([-1.0, 3, -2, 4, -3, 3], [1.0] * 6, "cannot be told from zero on these prompts"),
        ([0.0] * 6, [0.0] * 6, "is 0, less than 10%"),
        ([5.0], [5.0], None),  # one pair has no interval to tell by
    ],
)
def test_nothing_is_a_share_of_next_to_nothing(at_stake, clean, says):
    effects = np.ones((len(at_stake), 2))
    found = behaviour(at_stake, clean)
    shares, notes = found.shares(effects, np.arange(len(at_stake)), **DRAWS)
    if says is None:
        assert notes == []
        np.testing.assert_allclose(shares["share"], 1 / np.mean(at_stake))
    else:
        (note,) = notes
        assert note.startswith("share is missing: clean - corrupted ")
        assert says in note
        assert all(np.isnan(column).all() for column in shares.values())


@pytest.mark.parametrize("whole", [10.0, -10.0, 0.0, np.nan])
@pytest.mark.parametrize("gap", [0.99, -0.99, 1.0, 1.01, -1.01, 0.0, np.nan])
def test_shares_and_circuits_ask_for_the_same_behaviour(gap, whole):
    """More than a tenth of the metric: for a share, for F, and for the F of one prompt."""
    says = abs(gap) > 1 or (whole == 0 and abs(gap) > 0)
    says = says and not np.isnan(whole)
    assert bool(enough(gap, whole)) == says
    full, clean = np.full(3, whole), np.full(3, whole)
    _, notes = behaviour([gap] * 3, clean).shares(np.ones((3, 1)), np.arange(3), **DRAWS)
    assert (notes == []) == says
    gains = Gains(full, full - gap, np.zeros((1, 3)))
    assert gains.usable.tolist() == [says] * 3
    if says:
        check_gap(full, full - gap, "zero")
    else:
        with pytest.raises(UserError, match="less than 10% of change"):
            check_gap(full, full - gap, "zero")


def test_the_table_says_why_a_share_is_missing(model):
    def before_anything_differs(prompt: Prompt):
        return logit(prompt, pos=0)

    table = ablation_table(
        model, PROMPTS, before_anything_differs, max_latents=3, n_controls=0, n_bootstrap=100
    )
    (note,) = table.notes
    assert np.isnan(table.frame()["share"].tolist()).all()
    assert table.text().splitlines()[-1] == note
    assert table.provenance["settings"]["notes"] == [note]
    assert "share" not in table.text().splitlines()[0].split()
