"""Controls are what they say, and latents that are like their controls have uniform percentiles."""

from itertools import chain

import numpy as np
import pytest
from scipy import sparse

from attribution import integrated_effects, logit_diff, total_effects
from circuits import Site
from experiments.kinds import patch
from experiments.latents.controls import Controls, matched_controls
from experiments.latents.table import ablation_table, screen
from experiments.pooled import PooledEffects, measured_effects, pooled_effects
from experiments.spans import SpanNode, aligned, whole
from tests.experiments.test_pooled import PROMPTS


@pytest.fixture(scope="module")
def pooled(model):
    return pooled_effects(model, PROMPTS, aligned(model, PROMPTS), logit_diff, patch())


def listed(pooled, chosen, n, seed):
    """The slow twin: every node is looked at for every latent."""
    change = pooled.change.toarray().mean(0)
    rng, every = np.random.default_rng(seed), []
    for i in chosen:
        own = []
        for j, other in enumerate(pooled.nodes):
            node = pooled.nodes[i]
            if i < 0 or j == i or other.latent is None or change[j] == 0:
                continue
            if other.site == node.site and other.span == node.span:
                own.append(j)
        if len(own) > n:
            own.sort(key=lambda j: abs(np.log(change[j]) - np.log(change[i])))
            own = rng.choice(own[: 2 * n], size=n, replace=False)
        every.append(sorted(int(j) for j in own))
    return every


@pytest.mark.parametrize("n", [0, 5, 30])
def test_controls_have_the_site_the_span_and_about_the_change(pooled, n):
    """Against listing them one by one; some are themselves among the latents that are tested."""
    chosen = np.array([*screen(pooled, pooled)[:20], -1])
    found = matched_controls(pooled, chosen, n, seed=3)
    assert [own.tolist() for own in found] == listed(pooled, chosen, n, 3)
    assert len(found[-1]) == 0
    if n:
        assert set(np.concatenate(found)) & set(chosen)


def synthetic(rng: np.random.Generator) -> PooledEffects:
    """Latents of six places, 40 each, whose ablation changes more or less."""
    nodes = [
        SpanNode(Site(layer, "mlp"), latent, span)
        for layer in range(3)
        for span in ("a", "b")
        for latent in range(40)
    ]
    shape = 2, len(nodes)
    change = sparse.csr_array(rng.lognormal(size=shape))
    nothing = sparse.csr_array(shape)
    return PooledEffects(tuple(nodes), nothing, change, nothing, np.zeros(2), "", "", "")


@pytest.mark.parametrize("share_tested", [1.0, 0.3])
def test_percentiles_of_exchangeable_effects_are_uniform(share_tested):
    n, found = 9, []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        pooled = synthetic(rng)
        tested = np.flatnonzero(rng.random(len(pooled.nodes)) < share_tested)
        controls = Controls.matched(pooled, tested, n, seed)
        assert all(len(own) == n for own in controls.of)
        assert not set(controls.further) & {pooled.nodes[i] for i in tested}
        means = rng.standard_t(2, size=len(tested) + len(controls.further))
        found += controls.percentiles(means)
    counts = np.bincount(np.round(np.array(found) * n).astype(int), minlength=n + 1)
    expected = len(found) / (n + 1)
    assert len(found) > 2000
    # latents share controls: counts spread more than those of independent draws, 3 % here
    np.testing.assert_allclose(counts, expected, rtol=0.2)
    assert np.mean(found) == pytest.approx(0.5, abs=0.015)


def test_where_all_latents_are_tested_they_are_each_other_s_controls(model):
    """Percentiles against a loop over the controls of each, listed one by one."""
    prompts, spans = PROMPTS[:2], whole(model, PROMPTS[:2])
    table = ablation_table(
        model, prompts, spans=spans, max_latents=None, n_controls=5, n_bootstrap=100,
        n_permutations=100,
    )  # fmt: skip
    frame = table.frame()
    assert set(frame["n_controls"]) == {5}
    assert np.mean(frame["percentile"]) == pytest.approx(0.5, abs=0.1)
    how = model, prompts, spans, logit_diff
    gradient, integrated = (
        pooled_effects(*how, patch(), estimator=estimator)
        for estimator in (total_effects, integrated_effects)
    )
    chosen = screen(gradient, integrated)
    of = {
        gradient.nodes[i]: [gradient.nodes[j] for j in own]
        for i, own in zip(chosen, listed(gradient, chosen, 5, 0), strict=True)
    }
    size = dict(zip(table.nodes, frame["mean"].abs().tolist(), strict=True))
    # latents to which nothing is attributed are not tested, but as good controls as others
    nothing = [node for node in dict.fromkeys(chain(*of.values())) if node not in size]
    measured = measured_effects(*how, nothing, patch()).effect.mean(0)
    size |= dict(zip(nothing, np.abs(measured).tolist(), strict=True))
    for node, percentile in zip(table.nodes, frame["percentile"], strict=True):
        below = sum(size[own] < size[node] for own in of[node])
        ties = sum(size[own] == size[node] for own in of[node])
        assert percentile == pytest.approx((below + ties / 2) / 5)
