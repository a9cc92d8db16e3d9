"""A masked pass is an edit by hand, its gradient a difference quotient, and descent finds what was
planted."""

import numpy as np
import pytest
import torch

from attribution import logit_diff
from attribution.metrics import bind
from circuits import LatentNode, Prompt, Reference, Site, UserError, splice
from circuits.interventions import Intervention, edits
from experiments.circuit.cases import CircuitCases
from experiments.kinds import AblationKind, patch, resample, zero
from experiments.masks import START, MaskedPrompt, learn_masks
from experiments.planted import circuit_nodes, planted_model, question
from experiments.pooled import baseline, pooled_effects
from experiments.spans import SpanNode, aligned, whole
from tests.random_gemma import chosen_dictionaries

PROMPTS = [
    Prompt("w1 w5 w5 w30", target="w19", foil="w31", corrupted="w1 w20 w5 w30"),
    Prompt("w4 w8 w9 w30", target="w19", foil="w31", corrupted="w20 w8 w9 w30"),
]
CONVENTIONS = ("recompute", "freeze")


@pytest.fixture(scope="module")
def planted():
    return planted_model()


@pytest.fixture(scope="module")
def skipping(bridge):
    """With transcoders that have a skip connection, in place of autoencoders at MLPs."""
    return splice(bridge, chosen_dictionaries(["attn", "skip", "resid"]), name="skip")


def candidates(model, prompts, spans, kind):
    pooled = pooled_effects(model, prompts, spans, logit_diff, kind)
    return [node for node in pooled.nodes if node.latent is not None]


def masked(model, prompts, i, spans, nodes, kind, downstream):
    return MaskedPrompt.of(model, prompts[i], i, spans, logit_diff, nodes, kind, downstream)


def by_hand(model, prompts, i, spans, nodes, kind, downstream, mask):
    """The metric with an intervention on every latent there is: `mask x + (1 - mask) stand-in`."""
    ids, stand_in = model.tokens(prompts[i]), baseline(kind, model, prompts[i])
    trace = model.trace(ids)
    masks = {
        member: value
        for node, value in zip(nodes, mask, strict=True)
        for member in spans.nodes(node, i)
    }
    changes = []
    for site in model.sites:
        clean, other = trace.sites[site].dense().tolist(), stand_in.acts(site).tolist()
        for pos in range(1, ids.shape[1]):
            for latent, values in enumerate(zip(clean[pos], other[pos], strict=True)):
                node = LatentNode(site, latent, pos)
                kept = masks.get(node, 0.0) if any(values) else 0.0  # else no candidate
                changes.append(Intervention(node, kept, (1 - kept) * values[1]))
    score = bind(logit_diff(prompts[i]), model)
    changed = edits(model, ids, [changes])
    return score(model.run(ids, changed, downstream=downstream, output=score.output)).item()


# the masked pass


@pytest.mark.parametrize("downstream", CONVENTIONS)
@pytest.mark.parametrize(
    ("which", "spans_of", "kind"), [("model", aligned, patch()), ("skipping", whole, zero())]
)
def test_a_masked_pass_is_an_intervention_on_every_latent(
    request, which, spans_of, kind, downstream
):
    """Whatever the masks; at 1 it is the model, at 0 every latent has its reference value."""
    model = request.getfixturevalue(which)
    spans = spans_of(model, PROMPTS)
    nodes = candidates(model, PROMPTS, spans, kind)[::2]  # others are at their reference throughout
    one = masked(model, PROMPTS, 0, spans, nodes, kind, downstream)
    rng = np.random.default_rng(0)
    n = len(nodes)
    masks = [np.zeros(n), np.ones(n), (2 * rng.random(n) - 0.5).clip(0, 1)]  # half 0 or 1
    values = [one.run(torch.tensor(mask, dtype=torch.float32)).item() for mask in masks]
    expected = [by_hand(model, PROMPTS, 0, spans, nodes, kind, downstream, m) for m in masks]
    assert values == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert np.ptp([*values, one.full]) > 0.1


@pytest.mark.parametrize("downstream", CONVENTIONS)
@pytest.mark.parametrize("kind", [patch(), zero(), resample(PROMPTS)], ids=lambda kind: kind.name)
def test_with_every_mask_at_1_it_is_the_model(model, downstream, kind):
    spans = whole(model, PROMPTS)
    nodes = candidates(model, PROMPTS, spans, kind)
    for i, prompt in enumerate(PROMPTS):
        one = masked(model, PROMPTS, i, spans, nodes, kind, downstream)
        plain = bind(logit_diff(prompt), model)(model(prompt)).item()
        assert one.run(torch.ones(len(nodes))).item() == pytest.approx(plain, abs=1e-5)
        assert one.full == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize("downstream", CONVENTIONS)
def test_masks_of_0_and_1_are_the_circuits_of_the_other_studies(model, downstream):
    spans, kind = whole(model, PROMPTS), patch()
    how = {"errors": "kept", "downstream": downstream}
    cases = CircuitCases.of(model, PROMPTS, spans, logit_diff, kind, **how)
    nodes = [cases.space.node(code) for code in cases.codes.tolist()]
    kept = np.random.default_rng(0).random((3, len(nodes))) < [[0.1], [0.5], [0.9]]
    found = [
        [masked(model, PROMPTS, i, spans, nodes, kind, downstream).run(mask).item() for i in (0, 1)]
        for mask in torch.from_numpy(kept).float()
    ]
    np.testing.assert_allclose(found, cases.metrics(kept), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("downstream", CONVENTIONS)
def test_the_gradient_is_a_difference_quotient(planted, downstream):
    """With masks at 0.4 to 0.8 of the circuit's nodes: gates are half open, latents all on."""
    prompts = [question(0, 0)]
    spans = aligned(planted, prompts)
    nodes = planted_nodes(planted, prompts[0], "corrupted")
    one = masked(planted, prompts, 0, spans, nodes, patch(), downstream)
    at = torch.linspace(0.4, 0.8, len(nodes))
    mask = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(one.run(mask).sum(), mask)
    eps = 0.01
    moves = eps * torch.eye(len(nodes))
    quotients = [(one.run(at + m) - one.run(at - m)).item() / (2 * eps) for m in moves]
    assert gradient.tolist() == pytest.approx(quotients, rel=1e-2, abs=1e-3)
    assert gradient.abs().max() > 1


# descent


def planted_nodes(planted, prompt, reference):
    last = planted.tokens(prompt).shape[1] - 1
    found = circuit_nodes("singular", last, reference)
    return sorted((SpanNode(n.site, n.latent, str(n.pos)) for n in found), key=str)


def test_descent_is_adam_on_what_the_module_says(planted):
    """Three steps on two prompts, the gradients difference quotients."""
    prompts = [question(0, 0), question(1, 0)]
    spans, kind = aligned(planted, prompts), patch()
    nodes = planted_nodes(planted, prompts[0], "corrupted")
    passes = [masked(planted, prompts, i, spans, nodes, kind, "recompute") for i in (0, 1)]
    sparsity, lr, n_steps, eps = 0.5, 0.3, 3, 0.01
    found = learn_masks(
        planted, prompts, spans, logit_diff, nodes, kind,
        sparsity=sparsity, learning_rate=lr, n_steps=n_steps,
    )  # fmt: skip

    @torch.no_grad()
    def metrics(mask):
        mask = torch.from_numpy(mask).float()
        return np.array([one.run(mask).item() for one in passes])

    full, empty = metrics(np.ones(8)), metrics(np.zeros(8))
    gap = np.abs(full - empty).mean()

    def loss(theta):
        mask = 1 / (1 + np.exp(-theta))
        return (((metrics(mask) - full) / gap) ** 2).mean() + sparsity * mask.mean()

    theta, first, second = np.full(8, START), np.zeros(8), np.zeros(8)
    for step in range(1, n_steps + 1):
        moves = eps * np.eye(8)
        gradient = np.array([(loss(theta + m) - loss(theta - m)) / (2 * eps) for m in moves])
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        corrected = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        theta = theta - lr * first / (1 - 0.9**step) / corrected
    assert found == pytest.approx(theta, abs=0.01)


@pytest.mark.parametrize("downstream", CONVENTIONS)
def test_descent_keeps_the_planted_circuit_and_drops_every_decoy(planted, downstream):
    """Also the latents behind a shut gate, to which gradients at the clean prompt are blind."""
    prompts = [question(0, 0, 0, 1)]
    spans = aligned(planted, prompts)
    nodes = candidates(planted, prompts, spans, patch())
    theta = learn_masks(
        planted, prompts, spans, logit_diff, nodes, patch(),
        downstream=downstream, n_steps=40, learning_rate=0.25,
    )  # fmt: skip
    kept = {node for node, t in zip(nodes, theta, strict=True) if t > 0}
    assert kept == set(planted_nodes(planted, prompts[0], "corrupted"))
    others = [t for node, t in zip(nodes, theta, strict=True) if node not in kept]
    assert len(others) > 60
    assert max(others) < -2


def test_the_more_a_mask_costs_the_fewer_are_kept(planted):
    prompts = [question(0, 0)]
    spans = aligned(planted, prompts)
    nodes = candidates(planted, prompts, spans, patch())
    kept = [
        int((learn_masks(
            planted, prompts, spans, logit_diff, nodes, patch(),
            sparsity=sparsity, n_steps=30, learning_rate=0.25,
        ) > 0).sum())
        for sparsity in (0.01, 1, 1000)
    ]  # fmt: skip
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > kept[-1] == 0
    assert 8 in kept


def test_a_node_that_no_prompt_has_only_costs(model):
    """Adam goes down by the whole learning rate in each step."""
    spans = whole(model, PROMPTS)
    nodes = candidates(model, PROMPTS, spans, patch())
    site = model.sites[0]
    on = {node.latent for node in nodes if node.site == site}
    off = next(latent for latent in range(96) if latent not in on)
    theta = learn_masks(
        model, PROMPTS, spans, logit_diff, [*nodes, SpanNode(site, off, "all")], patch(), n_steps=3
    )
    assert theta[-1] == pytest.approx(START - 0.3, abs=1e-3)


# mistakes


def itself(model, prompt):
    """Nothing changes."""
    return (Reference("same", model.trace(prompt)),)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"nodes": []}, "give at least one, and no errors"),
        ({"nodes": [SpanNode(Site(0, "mlp"), None, "all")]}, "give at least one, and no errors"),
        ({"nodes": [SpanNode(Site(9, "mlp"), 1, "all")]}, "no dictionary at mlp.9"),
        ({"nodes": [SpanNode(Site(0, "mlp"), 96, "all")]}, "mlp.0 has 96"),
        ({"nodes": [SpanNode(Site(0, "mlp"), 1, "subject")]}, "no span 'subject'"),
        ({"prompts": []}, "0 prompts and spans of 2"),
        ({"prompts": PROMPTS[:1]}, "1 prompts and spans of 2"),
        ({"downstream": "drop"}, "downstream='drop'; attribution knows recompute and freeze"),
        ({"sparsity": -1.0}, "sparsity=-1.0"),
        ({"n_steps": 0}, "n_steps=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"kind": AblationKind("same", itself)}, "nothing to keep"),
    ],
)
def test_mistakes_are_told(model, changed, message):
    given = {
        "prompts": PROMPTS,
        "spans": whole(model, PROMPTS),
        "metric": logit_diff,
        "nodes": [SpanNode(Site(0, "mlp"), 1, "all")],
        "kind": patch(),
    }
    with pytest.raises(UserError, match=message):
        learn_masks(model, **(given | changed))


def test_cross_layer_transcoders_are_refused(bridge):
    model = splice(bridge, chosen_dictionaries(["cross"]), name="cross")
    node = SpanNode(model.sites[0], 1, "all")
    with pytest.raises(UserError, match="masks over cross-layer transcoders are not learned"):
        learn_masks(model, PROMPTS, whole(model, PROMPTS), logit_diff, [node], patch())
