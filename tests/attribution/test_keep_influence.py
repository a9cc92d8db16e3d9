"""Edges of what carries little are counted and let go; the rest is as if all were there."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from attribution import attribute, forecast, logit_diff, top_logits
from attribution.edges.direct import Stretches
from attribution.edges.influences import node_influences
from attribution.edges.local_pass import local_pass
from attribution.influence import least_kept, solve_influence
from attribution.metrics import bind
from circuits import (
    LogitNode,
    Prompt,
    TokenNode,
    UserError,
    corrupted_reference,
    load_gemma,
    splice,
)
from circuits.freeze import Freeze
from graphs import AttributionGraph, completeness_score, influence, prune, replacement_score
from tests.attribution.random_shapes import (
    CROSSED,
    CROSSED_ALONE,
    METRIC,
    build,
    close,
    every_latent,
    few,
    freezes,
    missed,
    shapes,
)
from tests.random_gemma import random_dictionaries

TEXT = "when Mary and John went to the store , John gave a drink to"


@few
@example(CROSSED, Freeze(attention=True), 0.5, 20_000)
@example(CROSSED_ALONE, Freeze(attention=True), 0.5, 2**28)
@given(
    shape=shapes(),
    freeze=freezes,
    share=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    memory=st.sampled_from([1, 20_000, 2**28]),
)
def test_counted_edges_say_what_stored_ones_do(folders, shape, freeze, share, memory):
    """Whatever the shape, the sites, what is frozen, the rule for MLPs and the batches: influences
    are those of all edges, and the edges that stay are those of all.
    """
    model, text = build(shape, folders())
    ids = model.tokens(text)
    table = every_latent(model, ids)
    cut = local_pass(model, ids, [bind(METRIC, model)], freeze)
    stretches = Stretches.of(model, table, cut, memory)
    every, outputs = stretches.edges(), table.outputs([1.0])

    counted = node_influences(stretches, outputs)
    close(counted, solve_influence(every, outputs), missed(shape.dtype))  # other batches

    kept = counted >= least_kept(counted, share)
    kept[: table.n_pos] = kept[table.logits_at.start :] = True
    some = stretches.among(kept).edges()
    assert some.has_canonical_format
    close(some.toarray(), every.toarray() * np.outer(kept, kept), missed(shape.dtype))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention": "live", "norms": "live"},
        {"mlp": "integrated", "points": 3},
        {"choose": "influence", "max_latents": 60},
        {"reference": "corrupted"},
    ],
    ids=lambda options: ", ".join(options) or "defaults",
)
@pytest.mark.parametrize("share", [0.8, 0.4])
def test_pruning_gives_what_it_gives_of_all_edges(tiny, options, share):
    prompt = Prompt(TEXT, corrupted="when Mary and John went to the store , Mary gave a drink to")
    metric, options = top_logits(tiny, prompt), {"max_latents": 200, **options}
    if "reference" in options:
        options["reference"] = corrupted_reference(tiny, prompt)
    every = attribute(tiny, prompt, metric, **options)
    some = attribute(tiny, prompt, metric, keep_influence=0.8, **options)
    assert some.edges.nnz < every.edges.nnz / 2
    assert (every.influences, some.nodes) == (None, every.nodes)
    assert influence(some) == pytest.approx(influence(every), rel=1e-9)
    assert replacement_score(some) == pytest.approx(replacement_score(every), rel=1e-9)
    assert completeness_score(some) == pytest.approx(completeness_score(every), rel=1e-9)

    whole = prune(AttributionGraph.from_attribution(every), keep_influence=share)
    part = prune(some, keep_influence=share)
    assert list(part.digraph) == list(whole.digraph)
    assert set(part.digraph.edges) == set(whole.digraph.edges)
    rounding = 1e-5 * max(abs(w) for _, _, w in whole.digraph.edges(data="weight"))
    for name in ("weight", "contribution", "query_key"):
        for (s, t, mine), (_, _, theirs) in zip(
            part.digraph.edges(data=name), whole.digraph.edges(data=name), strict=True
        ):
            assert mine == (theirs and pytest.approx(theirs, rel=1e-3, abs=rounding)), (name, s, t)
    for name in ("act", "change", "effect", "grad", "influence"):
        mine, theirs = (dict(graph.digraph.nodes(data=name)) for graph in (part, whole))
        assert mine == pytest.approx(theirs, rel=1e-6)


def test_no_edge_is_stored_that_is_not_between_carriers(tiny):
    a = attribute(tiny, TEXT, logit_diff("Mary", "John"), max_latents=200, keep_influence=0.6)
    assert a.influences is not None
    influences = a.influences.numpy()
    targets, sources = a.edges.nonzero()
    carry = influences >= least_kept(influences, 0.6)
    always = np.array([isinstance(node, TokenNode | LogitNode) for node in a.nodes])
    assert (carry | always)[targets].all()
    assert (carry | always)[sources].all()
    assert not carry.all()
    assert a.provenance["settings"]["keep_influence"] == 0.6


def test_what_was_let_go_is_not_asked_for_again(tiny):
    metric = logit_diff("Mary", "John")
    a = attribute(tiny, TEXT, metric, max_latents=50, keep_influence=0.5)
    with pytest.raises(UserError, match=r"carry 0\.5 of the influence; give no more"):
        prune(a)
    with pytest.raises(UserError, match="has not all edges"):
        AttributionGraph.from_attribution(a)
    for ask in (attribute, forecast):
        with pytest.raises(UserError, match="keep_influence is 80; it is a share"):
            ask(tiny, TEXT, metric, keep_influence=80)


def test_edges_that_are_no_numbers_are_refused(gemma_folder):
    model = splice(load_gemma(str(gemma_folder), device="cpu"), random_dictionaries())
    site = model.sites[0]
    model.dictionaries[site].b_dec[0] = torch.inf
    with pytest.raises(UserError, match="hold a NaN or an infinity"):
        attribute(model, "w1 w5 w9", logit_diff("w1", "w2"), keep_influence=0.8)


def test_the_forecast_counts_no_room_for_what_is_let_go(tiny):
    metric = logit_diff("Mary", "John")
    stored, counted = (
        forecast(tiny, TEXT, metric, max_latents=300, memory="10MB", keep_influence=share)
        for share in (None, 0.8)
    )
    assert stored.n_bytes > counted.n_bytes == 10_000_000


def test_rows_of_targets_without_influence_are_not_computed(tiny, monkeypatch):
    """Of the last site only the latents at the position that is explained reach the output."""
    computed, pieces = [], Stretches.pieces

    def watched(self, site, chosen):
        latents = self.table.sites[site].latents
        computed.extend((site, pos) for pos in latents.pos[chosen].tolist())
        return pieces(self, site, chosen)

    monkeypatch.setattr(Stretches, "pieces", watched)
    a = attribute(tiny, TEXT, logit_diff("Mary", "John"), max_latents=None, keep_influence=0.0)
    assert {pos for site, pos in computed if site == tiny.sites[-1]} == {len(a.words) - 1}
    assert {site for site, _ in computed} == set(tiny.sites)
