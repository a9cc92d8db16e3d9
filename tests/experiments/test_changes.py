"""Values looked up together are those looked up one by one, and each prompt is traced once."""

import pytest
import torch

from circuits import ErrorNode, LatentNode, Reference, Site, UserError
from circuits.model import SplicedModel
from experiments.changes import changes_to
from experiments.circuit.pooled_circuit import dataset_circuit
from experiments.kinds import mean_of, patch, resample, set_value, zero
from experiments.latents.kinds_compared import compare_kinds
from experiments.pooled import measured_by_kind, measured_effects
from experiments.spans import SpanNode, whole
from experiments.traced import traced_once
from tests.experiments.test_pooled import PROMPTS

KINDS = [patch(), zero(), mean_of(PROMPTS[1:]), resample(PROMPTS, n=2), set_value(2.5)]


def one_by_one(clean, reference, nodes):
    """The definition: the nodes whose value differs, with the value they get."""
    values = ((node, reference.value(node)) for node in nodes)
    return [(n, v) for n, v in values if not torch.equal(v.float(), clean.value(n).float())]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_values_looked_up_together_are_those_looked_up_one_by_one(model, kind):
    clean = Reference("clean", model.trace(PROMPTS[0]))
    rng = torch.Generator().manual_seed(0)
    draws = torch.randint(0, 96, (12, 6), generator=rng).tolist()
    groups = [
        [LatentNode(site, latent, pos) for pos, latent in enumerate(row, 1)]
        + [ErrorNode(site, pos) for pos in (0, row[0] % 8)]
        for site, row in zip(model.sites * 2, draws, strict=False)
    ]
    on = model.trace(PROMPTS[0]).sites[model.sites[3]]  # most random latents are off
    pairs = zip(on.latent.tolist(), on.pos.tolist(), strict=True)
    groups.append([LatentNode(model.sites[3], *pair) for pair in pairs])
    groups.append([])
    for reference in kind.references(model, PROMPTS[0]):
        found = changes_to(clean, reference, groups)
        for changes, group in zip(found, groups, strict=True):
            expected = one_by_one(clean, reference, group)
            assert [change.node for change in changes] == [node for node, _ in expected]
            for change, (_, value) in zip(changes, expected, strict=True):
                assert change.scale == 0
                assert torch.equal(torch.as_tensor(change.shift), value)


def test_a_latent_that_no_dictionary_has_is_off(model):
    """Its number is not taken for a latent of the next position."""
    site = model.sites[0]
    trace = model.trace(PROMPTS[0]).sites[site]
    pos, latent = trace.pos[-1:], trace.latent[-1:]
    assert trace.at(pos, latent).equal(trace.acts[-1:])
    assert trace.at(pos - 1, latent + trace.d_sae).item() == 0


def test_nodes_are_not_looked_up_one_by_one(model, monkeypatch):
    def refuse(*_):
        raise AssertionError("one by one")

    monkeypatch.setattr(Reference, "value", refuse)
    nodes = [SpanNode(site, latent, "all") for site in model.sites for latent in (None, 1, 2)]
    metric = constant_metric
    measured_effects(model, PROMPTS, whole(model, PROMPTS), metric, nodes, patch())


def constant_metric(_):
    return lambda logits: logits[:, -1, 0]


@pytest.mark.parametrize(
    "node", [LatentNode(Site(7, "mlp"), 0, 1), ErrorNode(Site(0, "mlp"), 8)], ids=str
)
def test_a_place_without_values_is_told(model, node):
    clean = Reference("clean", model.trace(PROMPTS[0]))
    with pytest.raises(UserError, match="has no reference value"):
        changes_to(clean, clean, [[LatentNode(Site(0, "mlp"), 0, 1), node]])


@pytest.mark.parametrize("latent", [-1, 96])
def test_a_latent_that_no_dictionary_has_is_told(model, latent):
    """It is off in every reference, but its ablation does not do nothing: there is none."""
    node = SpanNode(Site(0, "mlp"), latent, "2")
    with pytest.raises(UserError, match=f"@2: no latent {latent}; mlp.0 has 96"):
        compare_kinds(model, PROMPTS, [node], kinds=[patch(), zero()])


def test_several_kinds_together_are_each_alone(model):
    nodes = [SpanNode(site, latent, "all") for site in model.sites for latent in (None, 3, 5)]
    spans = whole(model, PROMPTS)
    together = measured_by_kind(model, PROMPTS, spans, constant_metric, nodes, KINDS)
    for kind, found in zip(KINDS, together, strict=True):
        alone = measured_effects(model, PROMPTS, spans, constant_metric, nodes, kind)
        torch.testing.assert_close(found.effect, alone.effect, rtol=0, atol=2e-5)
        torch.testing.assert_close(
            found.donor_variance, alone.donor_variance, rtol=1e-3, atol=1e-6, equal_nan=True
        )
        assert found.reference == kind.name


@pytest.fixture
def traced(monkeypatch):
    """The texts that are traced, in order."""
    texts, trace = [], SplicedModel.trace

    def counted(self, prompt):
        texts.append(getattr(prompt, "text", prompt))
        return trace(self, prompt)

    monkeypatch.setattr(SplicedModel, "trace", counted)
    return texts


def test_a_circuit_traces_each_text_once(model, traced):
    dataset_circuit(model, PROMPTS, k=4)
    for prompt in PROMPTS:
        assert traced.count(prompt.text) == traced.count(prompt.corrupted) == 1


def test_kinds_compared_trace_each_text_once(model, traced):
    nodes = [SpanNode(model.sites[0], 1, "3")]
    compare_kinds(model, PROMPTS, nodes, kinds=[patch(), zero(), set_value(1.0)])
    for prompt in PROMPTS:
        assert traced.count(prompt.corrupted) == 1
        assert traced.count(prompt.text) == 2  # and once as what `set to 1` sets


def test_references_that_do_not_fit_are_made_again(model, traced):
    (one,) = patch().references(model, PROMPTS[0])
    kept, again = traced_once(patch()), traced_once(patch(), memory=1000)
    traced.clear()
    for kind, times in ((kept, 1), (again, 3)):
        found = [kind.references(model, PROMPTS[0])[0] for _ in range(3)]
        assert traced.count(PROMPTS[0].corrupted) == times
        traced.clear()
        for reference in found:
            assert all(reference.acts(site).equal(one.acts(site)) for site in model.sites)
    assert kept == patch()  # a kind is its name


def test_what_is_kept_fits(model, traced):
    """Two references of three, and the third is made whenever it is asked for."""
    (one,) = patch().references(model, PROMPTS[0])
    numbers = sum(t.error.numel() + t.acts.numel() for t in one.trace.sites.values())
    indices = sum(2 * t.pos.numel() for t in one.trace.sites.values()) + one.trace.ids.numel()
    size = 4 * (numbers + one.trace.embedding.numel()) + 8 * indices
    kind = traced_once(patch(), memory=int(2.5 * size))
    traced.clear()
    for prompt in PROMPTS * 2:
        kind.references(model, prompt)
    assert len(traced) == 4
