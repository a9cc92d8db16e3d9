"""Latents that only the reference switches on, and what becomes of edges in graphs and pools."""

from typing import Any

import numpy as np
import pytest

from attribution import attribute, attribute_dataset, logit_diff, total_effects
from circuits import LatentNode, corrupted_reference
from circuits.freeze import Freeze
from graphs import AttributionGraph, prune
from graphs.text import caption
from tests.attribution.random_shapes import METRIC, close
from tests.attribution.test_edge_references import PROMPT, TEXT


@pytest.fixture(scope="module")
def against_corrupted(model):
    reference = corrupted_reference(model, PROMPT)
    made = attribute(
        model, PROMPT, METRIC, max_latents=None, downstream="freeze", reference=reference
    )
    return made, reference


def off_latents(a):
    return {n for n, act in zip(a.nodes, a.acts, strict=True) if act == 0}


def test_latents_that_only_the_reference_switches_on_are_sources(model, against_corrupted):
    """With the edges of `(0 - reference) W_dec`, no incoming ones, and their total effects."""
    a, reference = against_corrupted
    off = off_latents(a)
    here, there = model.trace(TEXT), reference.trace
    expected = set()
    for site, other in there.sites.items():
        only = (here.sites[site].dense() == 0) & (other.dense() != 0)
        expected |= {LatentNode(site, i, pos) for pos, i in only.nonzero().tolist()}
    assert off == expected
    assert len(off) > 20
    at = [i for i, node in enumerate(a.nodes) if node in off]
    assert abs(a.edges[at]).nnz == 0
    assert abs(a.edges[:, at]).nnz > 0
    assert not a.target_grads[at].any()
    held = Freeze(attention=True, norms=True)
    effects = total_effects(
        model, PROMPT, METRIC, downstream="freeze", reference=reference, freeze=held
    )
    for i in at:
        assert a.effects[i].item() == effects.of(a.nodes[i])
    settings = a.provenance["settings"]
    n_latents = sum(isinstance(node, LatentNode) for node in a.nodes)
    assert settings["latents_chosen"] == settings["latents_active"] == n_latents
    assert settings["edge_reference"] == settings["reference"] == "corrupted"


@pytest.mark.parametrize("choice", ["effect", "influence", "given"])
def test_they_are_chosen_like_others(model, against_corrupted, choice):
    """By the size of their effect, by influence, and by name; edges do not depend on the others."""
    every, reference = against_corrupted
    off = sorted(off_latents(every), key=str)[:5]
    how: dict[str, Any] = {"choose": choice, "max_latents": 150}
    if choice == "given":
        how = {"latents": off}
    a = attribute(model, PROMPT, METRIC, reference=reference, **how)
    chosen = off_latents(a)
    assert chosen == set(off) if choice == "given" else chosen <= off_latents(every)
    assert chosen
    place = {node: i for i, node in enumerate(every.nodes)}
    for i, source in enumerate(a.nodes):
        if source in chosen:
            assert a.edges[-1, i] == pytest.approx(every.edges[-1, place[source]], rel=1e-4)


def test_graphs_weigh_prune_and_name_the_reference(against_corrupted, tmp_path):
    """What leaves a node is its total effect; pruning keeps sources that are off."""
    a, _ = against_corrupted
    graph = AttributionGraph.from_attribution(a)
    leaving = {
        node: sum(edge["contribution"] for *_, edge in graph.digraph.out_edges(node, data=True))
        for node in graph.digraph
    }
    found = np.array([leaving[node] for node in a.nodes[:-1]])
    close(found, a.effects.numpy()[:-1])
    small = prune(a, keep_influence=0.9)
    kept = off_latents(a) & set(small.digraph)
    assert kept
    assert all(small.digraph.out_degree(node) for node in kept)
    again = AttributionGraph.load(small.save(tmp_path / "g.json"))
    assert list(again.digraph.nodes(data=True)) == list(small.digraph.nodes(data=True))
    assert set(prune(again, keep_influence=1.0, keep_edges=1.0).digraph) == set(small.digraph)
    assert any("Edges: local Jacobian" in s and "reference corrupted" in s for s in caption(small))
    changes = dict(zip(a.nodes, a.changes.tolist(), strict=True))
    assert all(v["change"] == changes[node] for node, v in small.digraph.nodes(data=True))


def test_live_attention_splits_edges_against_the_reference_too(model):
    reference = corrupted_reference(model, PROMPT)
    live, frozen = (
        attribute(model, PROMPT, METRIC, max_latents=60, attention=word, reference=reference)
        for word in ("live", "frozen")
    )
    assert live.query_key is not None
    assert live.query_key.nnz > 0
    close((live.edges - live.query_key).toarray(), frozen.edges.toarray())


def test_many_prompts_pool_edges_against_their_references(model):
    """Of one prompt: its graph's contributions, also from latents that are off there."""
    pooled = attribute_dataset(
        model,
        [PROMPT],
        logit_diff,
        max_latents=40,
        n_bootstrap=100,
        reference=lambda p: corrupted_reference(model, p),
    )
    reference = corrupted_reference(model, PROMPT)
    one = attribute(model, PROMPT, logit_diff(PROMPT), max_latents=40, reference=reference)
    names = {str(node): i for i, node in enumerate(one.nodes)}
    assert off_latents(one)
    seen = 0.0
    for row in pooled.edges_table().to_dict("records"):
        s, t = (names.get(str(row[end]), len(one.nodes) - 1) for end in ("source", "target"))
        contribution = one.edges[t, s] * one.target_grads[t].item()
        assert row["mean"] == pytest.approx(contribution, rel=1e-4, abs=1e-6)
        seen += one.acts[s].item() == 0
    assert seen
    assert pooled.provenance["settings"]["edge_reference"] == "corrupted"
