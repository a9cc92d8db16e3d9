"""Measured effects are edits by hand, and attributed effects their first order."""

import json
from dataclasses import replace
from math import isnan

import pandas as pd
import pytest
import torch

from attribution import logit_diff, total_effects
from circuits import (
    KINDS,
    ErrorNode,
    LatentNode,
    Prompt,
    Reference,
    Site,
    TokenNode,
    UserError,
    corrupted_reference,
    splice,
    zero_reference,
)
from circuits.trace import Trace
from experiments.ablation import Ablations, ablate_each, pearson
from experiments.kinds import set_value
from tests.plain_hooks import plain_hooks

PROMPT = Prompt(
    "w1 w5 w9 w2 w5 w9 w30 w7 w8 w11",
    target="w3",
    foil="w4",
    corrupted="w1 w6 w9 w2 w6 w9 w31 w7 w8 w11",
)
METRIC = logit_diff(PROMPT)


def reference_named(model, name: str) -> Reference:
    return {"zero": zero_reference, "corrupted": corrupted_reference}[name](model, PROMPT)


def strongest_of_each_kind(model, reference, downstream="recompute", top=2) -> list[LatentNode]:
    """The `top` latents of every site, and an error or two."""
    effects = total_effects(model, PROMPT, METRIC, reference=reference, downstream=downstream)
    ranked = effects.strongest()
    return [n for site in model.sites for n in [m for m in ranked if m.site == site][:top]]


def by_hand(model, node: LatentNode, value: float, downstream: str) -> float:
    """The metric with one latent set to `value`, in plain PyTorch on the Hugging Face model."""
    huggingface = model.bridge.original_model
    score = METRIC.bind(model)
    ids = model.tokens(PROMPT)
    bos = 0  # position that dictionaries do not read
    clean: dict[Site, torch.Tensor] = {}

    def reconstruct(site, x):
        d = model.dictionaries[site]
        pre = x @ d.W_enc + d.b_enc
        acts = torch.where(pre > d.threshold, pre.relu(), 0.0)
        return acts, acts @ d.W_dec + d.b_dec

    def keep(site):
        def hook(x):
            clean[site] = x.clone()
            return x

        return hook

    with torch.no_grad(), plain_hooks(huggingface, {s: keep(s) for s in model.sites}):
        huggingface(ids)

    def ablated(x):
        x = x.clone()
        acts, _ = reconstruct(node.site, x[0, node.pos])
        x[0, node.pos] += (value - acts[node.latent]) * model.dictionaries[node.site].W_dec[
            node.latent
        ]
        return x

    def frozen(site):
        def hook(x):
            acts, now = reconstruct(site, x)
            if site == node.site:
                acts = acts.clone()
                acts[0, node.pos, node.latent] = value
                now = acts @ model.dictionaries[site].W_dec + model.dictionaries[site].b_dec
            out = now + clean[site] - reconstruct(site, clean[site])[1]
            out[:, bos] = clean[site][:, bos]
            return out

        return hook

    if downstream == "recompute":
        edits = {node.site: ablated}
    else:
        edits = {site: frozen(site) for site in model.sites}
    with torch.no_grad(), plain_hooks(huggingface, edits):
        return score(huggingface(ids).logits).item()


@pytest.mark.parametrize("downstream", ["recompute", "freeze"])
@pytest.mark.parametrize("name", ["zero", "corrupted"])
def test_ablating_is_editing_by_hand(model, name, downstream):
    """Invariant 8, at every kind of site."""
    reference = reference_named(model, name)
    nodes = strongest_of_each_kind(model, reference, downstream)
    assert {node.site.kind for node in nodes} == set(KINDS)
    rows = ablate_each(model, PROMPT, METRIC, nodes, reference=reference, downstream=downstream)
    for row in rows:
        assert isinstance(row.node, LatentNode)
        value = reference.value(row.node).item()
        expected = METRIC.bind(model)(model(PROMPT)).item() - by_hand(
            model, row.node, value, downstream
        )
        assert row.measured == pytest.approx(expected, abs=2e-5), str(row.node)
    assert max(abs(row.measured) for row in rows) > 0.01  # not about nothing


def test_ablating_an_error_is_editing_by_hand(model):
    node = ErrorNode(Site(1, "mlp"), 4)
    error = model.trace(PROMPT).sites[node.site].error[4]

    def without(x):
        x = x.clone()
        x[0, 4] -= error
        return x

    with torch.no_grad(), plain_hooks(model.bridge.original_model, {node.site: without}):
        logits = model.bridge.original_model(model.tokens(PROMPT)).logits
    row = ablate_each(model, PROMPT, METRIC, [node])[0]
    score = METRIC.bind(model)
    assert row.measured == pytest.approx((score(model(PROMPT)) - score(logits)).item(), abs=2e-5)


@pytest.mark.parametrize("downstream", ["recompute", "freeze", "drop"])
def test_batches_equal_one_by_one(model, downstream):
    reference = reference_named(model, "corrupted")
    nodes = [*strongest_of_each_kind(model, reference), ErrorNode(Site(0, "resid"), 3)]
    nodes = nodes[::-1]  # any order
    both = [
        ablate_each(
            model, PROMPT, METRIC, nodes, reference=reference, downstream=downstream, batch_size=n
        )
        for n in (1, 7)
    ]
    assert [row.node for row in both[0]] == nodes
    for one, seven in zip(*both, strict=True):
        assert one.node == seven.node
        assert one.measured == pytest.approx(seven.measured, abs=1e-5)


@pytest.mark.parametrize("downstream", ["recompute", "freeze"])
def test_attributed_is_measured_in_the_limit_of_small_changes(model, downstream):
    """Against a reference near the clean values, first order is all there is."""
    share = {"recompute": 0.98, "freeze": 0.998}[downstream]
    if downstream == "freeze":  # above zero a threshold is a jump: no change is small there
        ramps = {
            site: replace(d, threshold=torch.zeros_like(d.threshold))
            for site, d in model.dictionaries.items()
        }
        model = splice(model.bridge, ramps)
    clean = model.trace(PROMPT)
    near = {
        s: replace(t, acts=share * t.acts, error=share * t.error) for s, t in clean.sites.items()
    }
    reference = Reference("near", Trace(clean.ids, clean.embedding, near))
    nodes = strongest_of_each_kind(model, zero_reference(model, PROMPT), downstream, top=4)
    rows = ablate_each(model, PROMPT, METRIC, nodes, reference=reference, downstream=downstream)
    assert rows.correlation > 0.9999
    largest = max(abs(row.attributed) for row in rows)
    for row in rows:
        assert row.measured == pytest.approx(row.attributed, rel=0.05, abs=0.005 * largest)


def test_a_linear_metric_of_the_last_site_is_attributed_exactly(model):
    """What the last residual stream does to a linear reading of it has no higher orders."""
    last = model.sites[-1]
    assert last.kind == "resid"
    direction = torch.randn(
        model.config.hidden_size, generator=torch.Generator().manual_seed(3)
    ).to(model.device)
    seen = {}
    layer = model.bridge.original_model.model.norm

    def reading(logits):
        return seen["x"][:, -1] @ direction

    hook = layer.register_forward_pre_hook(lambda _m, args: seen.update(x=args[0]))
    try:
        n = len(model.tokens(PROMPT)[0])
        nodes = [
            node
            for node in total_effects(model, PROMPT, reading).strongest()
            if node.site == last and node.pos == n - 1
        ]
        rows = ablate_each(model, PROMPT, reading, [*nodes, ErrorNode(last, n - 1)])
    finally:
        hook.remove()
    assert len(rows) > 3
    assert rows.metric == "reading"
    for row in rows:
        assert row.measured == pytest.approx(row.attributed, rel=1e-4, abs=1e-4)


def test_drop_measures_without_errors_and_says_freeze_of_the_attribution(model):
    nodes = strongest_of_each_kind(model, zero_reference(model, PROMPT), "freeze")
    rows = ablate_each(model, PROMPT, METRIC, nodes, downstream="drop")
    freeze = ablate_each(model, PROMPT, METRIC, nodes, downstream="freeze")
    score = METRIC.bind(model)
    assert rows.clean == pytest.approx(score(model(PROMPT, downstream="drop")).item(), abs=1e-6)
    assert rows.clean != pytest.approx(freeze.clean, abs=1e-3)
    assert (rows.downstream, rows.attributed_downstream) == ("drop", "freeze")
    assert [r.attributed for r in rows] == [r.attributed for r in freeze]


def test_a_latent_already_at_its_reference_has_no_effect(model):
    reference = Reference("clean", model.trace(PROMPT))
    nodes = strongest_of_each_kind(model, zero_reference(model, PROMPT))
    rows = ablate_each(model, PROMPT, METRIC, nodes, reference=reference)
    # a batch of ablations and the clean pass alone round differently in the last bits
    rounding = 8 * torch.finfo(torch.float32).eps * model(PROMPT)[0, -1].abs().max().item()
    for row in rows:
        assert row.attributed == 0
        assert row.measured == pytest.approx(0, abs=rounding)
    assert isnan(rows.correlation)


def test_a_latent_is_shown_with_the_sign_of_what_it_was_set_to(model):
    (reference,) = set_value(-2.0).references(model, PROMPT)
    error = ErrorNode(Site(0, "mlp"), 2)
    nodes = [*strongest_of_each_kind(model, zero_reference(model, PROMPT)), error]
    *latents, last = ablate_each(model, PROMPT, METRIC, nodes, reference=reference)
    assert {row.baseline for row in latents} == {-2.0}
    assert last.baseline == last.act == pytest.approx(reference.value(error).norm().item())


def test_nodes_are_given_by_name_too(model):
    nodes = [*total_effects(model, PROMPT, METRIC).strongest(2), ErrorNode(Site(0, "mlp"), 3)]
    named = ablate_each(model, PROMPT, METRIC, [str(node) for node in nodes])
    assert named.rows == ablate_each(model, PROMPT, METRIC, nodes).rows


def test_no_nodes_make_an_empty_result(model, tmp_path):
    rows = ablate_each(model, PROMPT, METRIC, [])
    assert len(rows) == 0
    assert isnan(rows.correlation)
    assert rows.frame().empty
    rows.plot(tmp_path / "empty.svg")


def test_pearson():
    assert pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert pearson([1, 2, 3], [6, 4, 2]) == pytest.approx(-1)
    x, y = torch.randn(2, 40, generator=torch.Generator().manual_seed(0)).tolist()
    assert pearson(x, y) == pytest.approx(pd.Series(x).corr(pd.Series(y)))
    assert isnan(pearson([1], [2]))
    assert isnan(pearson([], []))
    assert isnan(pearson([0.1, 0.1, 0.1], [1, 2, 3]))


@pytest.fixture(scope="module")
def ablations(model) -> Ablations:
    nodes = strongest_of_each_kind(model, zero_reference(model, PROMPT))
    return ablate_each(model, PROMPT, METRIC, [*nodes, ErrorNode(Site(0, "mlp"), 2)])


def test_conventions_are_in_every_form(ablations, tmp_path):
    frame = ablations.frame()
    assert len(frame) == len(ablations)
    assert frame["node"][0] == str(ablations[0].node)
    for column, value in {
        "metric": "w3 - w4",
        "estimator": "gradient x activation",
        "attributed_downstream": "recompute",
        "downstream": "recompute",
        "reference": "zero",
    }.items():
        assert set(frame[column]) == {value}
    content = json.loads(ablations.save(tmp_path / "a.json").read_text())
    assert content["provenance"]["settings"]["reference"] == "zero"
    assert content["provenance"]["prompt"]["text"] == PROMPT.text
    assert content["rows"][0]["measured"] == ablations[0].measured
    svg = ablations.plot(tmp_path / "a.svg").read_text()
    assert "<svg" in svg
    back = pd.read_csv(ablations.save(tmp_path / "a.csv"))
    assert back["attributed"].to_list() == pytest.approx(frame["attributed"].to_list())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"nodes": [LatentNode(Site(9, "mlp"), 0, 1)]}, "no dictionary at mlp.9"),
        ({"nodes": [LatentNode(Site(0, "mlp"), 9999, 1)]}, "no latent 9999"),
        ({"nodes": [LatentNode(Site(0, "mlp"), 0, 99)]}, "no position 99"),
        ({"nodes": [LatentNode(Site(0, "mlp"), 0, 0)]}, "do not read position 0"),
        ({"nodes": [TokenNode(1)]}, "cannot intervene on token@1"),
        ({"nodes": ["token@1"]}, "cannot intervene on token@1"),
        ({"nodes": ["mlp.0"]}, "'mlp.0' is not a node; names look like"),
        ({"nodes": "mlp.0/latent.3@1"}, "give a list of latents and errors, .*; got str"),
        ({"downstream": "forget"}, "choose recompute, freeze, drop"),
        ({"batch_size": 0}, "from 1 on"),
        ({"prompt": ["w1", "w2"]}, "one prompt; got 2"),
        ({"metric": lambda logits: logits[:, -1]}, "one number a row"),
    ],
)
def test_what_cannot_be_ablated_is_refused(model, changed, message):
    arguments = {"prompt": PROMPT, "metric": METRIC, "nodes": [], **changed}
    with pytest.raises(UserError, match=message):
        ablate_each(model, **arguments)


def test_a_reference_of_another_length_is_refused(model):
    with pytest.raises(UserError, match="the reference has 3 tokens and the prompt 11"):
        ablate_each(model, PROMPT, METRIC, [], reference=zero_reference(model, "w1 w2"))
