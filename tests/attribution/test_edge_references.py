"""Edges against a reference: what a source adds on the prompt less what it adds there."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from attribution import attribute
from attribution.baseline import integrated_from
from attribution.edges.local_pass import local_pass
from attribution.metrics import bind
from circuits import (
    BiasNode,
    LatentNode,
    LogitNode,
    Prompt,
    Reference,
    Site,
    TokenNode,
    UserError,
    corrupted_reference,
    mean_reference,
    mixed_reference,
    splice,
    zero_reference,
)
from circuits.freeze import Freeze
from tests.attribution.random_shapes import (
    CROSSED,
    CROSSED_ALONE,
    METRIC,
    build,
    close,
    few,
    freezes,
    missed,
    shapes,
)
from tests.attribution.test_edges import clean_values, held
from tests.random_gemma import TEXT, chosen_dictionaries

OTHER = "w9 w2 w11 w4 w13 w6 w5 w8 w7 w10"
PROMPT = Prompt(TEXT, target="w3", foil="w4", corrupted=OTHER)
WORDS = {True: "frozen", False: "live"}


fewer = settings(few, max_examples=10)


def options(freeze):
    words = {"attention": WORDS[freeze.attention], "norms": WORDS[freeze.norms]}
    return {**words, "mlp": freeze.mlp}


def donors(shape, n):
    """Other texts, as long as the prompt of `shape`, that differ from it in every word."""
    generator = torch.Generator().manual_seed(shape.seed + 1)
    words = torch.randint(0, 20, (n, shape.n_tokens), generator=generator).tolist()
    return [" ".join(f"w{word}" for word in row) for row in words]


def references(model, text, others):
    """One of each kind."""
    corrupted = corrupted_reference(model, Prompt(text, corrupted=others[0]))
    mean, zero = mean_reference(model, others), zero_reference(model, text)
    mixed = mixed_reference(latents=mean, errors=zero, tokens=corrupted)
    return {"corrupted": corrupted, "mean": mean, "mixed": mixed}


@fewer
@example(CROSSED, Freeze(attention=True, norms=True), 1)
@example(CROSSED_ALONE, Freeze(attention=True), 2)
@given(shape=shapes(), freeze=freezes, n=st.sampled_from([1, 3]))
def test_edges_are_gradients_times_differences_of_real_passes(folders, shape, freeze, n):
    """The definition, node by node; the reference is read from passes over the other prompts."""
    model, text = build(shape, folders())
    others = donors(shape, n)
    reference = mean_reference(model, others)
    a = attribute(model, text, METRIC, max_latents=12, reference=reference, **options(freeze))
    freeze = integrated_from(model, model.tokens(text), reference, freeze)
    expected = slow_edges(model, a, text, others, freeze)
    close(a.edges.toarray(), expected, missed(shape.dtype))
    for node, act, change in zip(a.nodes, a.acts.tolist(), a.changes.tolist(), strict=True):
        value = reference.value(node).item() if isinstance(node, LatentNode) else 0.0
        assert change == pytest.approx(act - value, rel=1e-5, abs=1e-6)


def slow_edges(model, a, text, others, freeze):
    cut = local_pass(model, model.tokens(text), [bind(METRIC, model)], freeze)
    here = added(model, a.nodes, text)
    there = [added(model, a.nodes, other) for other in others]
    place = {node: i for i, node in enumerate(a.nodes)}
    edges = torch.zeros(len(a.nodes), len(a.nodes))
    for t, target in enumerate(a.nodes):
        if isinstance(target, LogitNode):
            value = cut.scores.sum()
        elif isinstance(target, LatentNode) and a.acts[t] != 0:
            encoder = model.dictionaries[target.site].W_enc[:, target.latent]
            value = cut.inputs[target.site][0, target.pos] @ encoder
        else:
            continue
        if not value.requires_grad:  # nothing reaches it
            continue
        leaves = list(cut.leaves.values())
        grads = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
        by_leaf = dict(zip(cut.leaves, grads, strict=True))
        for (node, leaf), vector in here.items():
            if by_leaf[leaf] is not None:
                change = vector - sum(one[node, leaf] for one in there) / len(there)
                edges[t, place[node]] += (by_leaf[leaf][0, node.pos] * change).sum()
    return edges.detach().numpy()


def added(model, nodes, text) -> dict[Any, Tensor]:
    """What every node but a bias adds on a text: by node and leaf, `[d]`; nothing of a trace."""
    ids = model.tokens(text)
    reads = model.reads(ids)[0]
    embedding, inputs, outputs = model.activations(ids)
    vectors: dict[Any, Tensor] = {
        (n, None): embedding[0, n.pos] for n in nodes if isinstance(n, TokenNode)
    }
    left = {site: outputs[site][0].clone() for site in model.sites}
    acts = {}
    for site, read in inputs.items():
        d = model.dictionaries[site]
        acts[site] = d.encode(read[0]) * reads[:, None]
        left[site] -= d.b_dec * reads[:, None]
        if d.W_skip is not None:
            left[site] -= read[0] @ d.W_skip * reads[:, None]
    for node in nodes:
        if not isinstance(node, LatentNode):
            continue
        decoders = model.dictionaries[node.site].decoders
        for leaf, W_dec in zip(model.writes_to(node.site), decoders, strict=True):
            vector = acts[node.site][node.pos, node.latent] * W_dec[node.latent]
            vectors[node, leaf] = vector
            left[leaf][node.pos] -= vector
    for node in nodes:
        if not isinstance(node, LatentNode | TokenNode | BiasNode | LogitNode):
            vectors[node, node.site] = left[node.site][node.pos]
    return vectors


@fewer
@example(CROSSED, Freeze(attention=True, norms=True), "corrupted")
@example(CROSSED_ALONE, Freeze(mlp="integrated"), "mean")
@given(
    shape=shapes(), freeze=freezes, against=st.sampled_from(["corrupted", "mean", "mixed", "zero"])
)
def test_all_paths_sum_to_the_frozen_total_effect_against_the_reference(
    folders, shape, freeze, against
):
    """The Neumann series against autograd, in every mode; and its first step alone."""
    model, text = build(shape, folders())
    made = {"zero": None, **references(model, text, donors(shape, 2))}[against]
    how = {"downstream": "freeze", "reference": made, **options(freeze)}
    a = attribute(model, text, METRIC, max_latents=None, **how)
    edges, changes = a.edges.toarray().astype(float), a.changes.double().numpy()
    effects = a.effects.double().numpy()[:-1]
    on = np.array([isinstance(n, LatentNode) for n in a.nodes]) & (a.acts.numpy() != 0)
    arriving = np.zeros(len(a.nodes))
    arriving[-1] = 1.0
    total = np.zeros_like(arriving)
    for _ in range(len(model.sites) + 2):
        step = arriving @ edges
        total += step
        arriving = np.divide(step, changes, out=np.zeros_like(step), where=on & (changes != 0))
    assert np.abs(arriving).max() == 0
    # one whose value is that of the reference has no edges to divide, though paths pass it
    if (changes[on] != 0).all():
        close(total[:-1], effects, missed(shape.dtype))
    close((a.target_grads.double().numpy() @ edges)[:-1], effects, missed(shape.dtype))


SITES = [("attn", "mlp", "resid"), ("attn", "mlp"), ("resid",), ("attn", "skip"), ("cross",)]
SITES += [("skip", "resid")]  # of which one transcoder and the last residual site are left


@pytest.mark.parametrize("rule", ["integrated", "jacobian"])
@pytest.mark.parametrize("kinds", SITES, ids="+".join)
def test_edges_sum_to_what_the_pre_activation_changes(bridge, kinds, rule):
    """Norms and patterns held: exactly where no MLP lies between, and by integrated MLPs anywhere.

    The other value is read from a pass that holds the prompt's patterns and scales by hooks, while
    every site writes what it writes on the corrupted prompt.
    """
    chosen = chosen_dictionaries(kinds)
    if kinds == ("skip", "resid"):  # MLPs lie above the skip connection
        chosen = {site: chosen[site] for site in (Site(0, "transcoder"), Site(2, "resid"))}
    model = splice(bridge, chosen, name="random")
    reference = corrupted_reference(model, PROMPT)
    how = {"reference": reference, "mlp": rule, "points": 30}
    a = attribute(model, PROMPT, METRIC, max_latents=150, **how)
    clean, there = pre_activations(model, TEXT), pre_activations(model, TEXT, OTHER)
    sums = np.asarray(a.edges.sum(axis=1))
    tested = 0
    for i, node in enumerate(a.nodes):
        if not isinstance(node, LatentNode):
            continue
        if a.acts[i] == 0:
            assert sums[i] == 0
            continue
        through_mlp = node.site.kind == "mlp" or (kinds[-1] == "resid" and len(kinds) < 3)
        if rule == "jacobian" and through_mlp:
            continue
        place = node.site, node.pos, node.latent
        before, after = (v[place[0]][place[1], place[2]].item() for v in (clean, there))
        assert sums[i] == pytest.approx(before - after, rel=1e-4, abs=2e-5)
        tested += abs(before - after) > 1e-3
    assert tested > 20 or (rule == "jacobian" and kinds[-1] == "resid" and len(kinds) < 3)


def pre_activations(model, text, other=None):
    """By site, `[pos, d_sae]`; with another text's outputs at every site if one is given."""
    ids = model.tokens(text)
    kept = clean_values(model, ids, Freeze(attention=True, norms=True))
    embedding, inputs, outputs = model.activations(model.tokens(other or text))
    reads = model.reads(ids)[..., None]
    seen, normalized = {}, {}

    def hold(site):
        def hook(read, _):
            if site.kind == "transcoder":
                read = normalized.get(f"blocks.{site.layer}.ln2", read)
            seen[site] = read
            W_skip = model.dictionaries[site].W_skip
            passed = 0.0 if W_skip is None else (read - inputs[site]) @ W_skip * reads
            return outputs[site] + passed

        return hook

    hooks = {site: hold(site) for site in model.sites}
    with torch.no_grad(), held(model, kept, normalized):
        model.forward(ids, hooks, embedding=lambda *_: embedding)
    return {site: model.dictionaries[site].pre_acts(read)[0] for site, read in seen.items()}


def test_biases_count_against_zero_alone(model):
    """A constant has no difference; what is zero is so by its values, whatever its name."""
    zero = zero_reference(model, PROMPT)
    nothing = mixed_reference(latents=zero, errors=zero, tokens=zero)
    plain, named = (
        attribute(model, PROMPT, METRIC, max_latents=60, downstream="freeze", reference=reference)
        for reference in (None, nothing)
    )
    np.testing.assert_array_equal(plain.edges.toarray(), named.edges.toarray())
    assert torch.equal(plain.effects, named.effects)
    assert torch.equal(plain.changes, plain.acts)
    against = corrupted_reference(model, PROMPT)
    other = attribute(model, PROMPT, METRIC, max_latents=60, reference=against)
    for a, counts in ((plain, True), (other, False)):
        biases = [i for i, node in enumerate(a.nodes) if isinstance(node, BiasNode)]
        assert bool(abs(a.edges[:, biases]).sum()) == counts
        assert bool(a.effects[biases].abs().sum()) == counts


def test_against_the_prompt_itself_there_is_nothing(model):
    """Every change, effect and edge is zero up to rounding; integrated MLPs start at the prompt."""
    itself = Reference("itself", model.trace(TEXT))
    a = attribute(model, TEXT, METRIC, max_latents=80, reference=itself, mlp="integrated")
    plain = attribute(model, TEXT, METRIC, max_latents=80)
    assert a.changes[[isinstance(n, LatentNode) for n in a.nodes]].abs().max() < 1e-6
    assert abs(a.edges).max() < 1e-5 * abs(plain.edges).max()
    assert a.effects[:-1].abs().max() < 1e-5 * plain.effects[:-1].abs().max()
    freeze = integrated_from(model, model.tokens(TEXT), itself, Freeze(mlp="integrated"))
    seen = {}
    points = [f"blocks.{n}.mlp.{p}.hook_out" for n in range(model.n_layers) for p in ("gate", "in")]
    watch = {name: lambda x, name=name: seen.update({name: x[0]}) for name in points}
    with torch.no_grad():
        model.forward(model.tokens(TEXT), {}, watch=watch)
    found = [part for start in freeze.start.values() for part in start]
    for name, part in zip(points, found, strict=True):
        torch.testing.assert_close(part, seen[name], rtol=1e-4, atol=1e-5)


def test_a_reference_of_another_length_is_refused(model):
    reference = zero_reference(model, "w1 w2")
    with pytest.raises(UserError, match="equally long"):
        attribute(model, TEXT, METRIC, reference=reference)
