"""A knocked-out edge is an edit by hand, and in the limit of small changes the edge itself."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from attribution import attribute, logit, logit_diff
from attribution.targets import latent as latent_metric
from circuits import (
    ErrorNode,
    LatentNode,
    LogitNode,
    Prompt,
    Reference,
    Site,
    TokenNode,
    UserError,
    corrupted_reference,
    splice,
    zero_reference,
)
from circuits.nodes import BiasNode
from circuits.outputs import LAST_LOGITS
from circuits.trace import Trace
from experiments.edges.choice import mlp_between
from experiments.edges.held import Held, shifts
from experiments.edges.knockout import edge_knockout
from experiments.kinds import AblationKind, mean_of, patch, zero
from graphs import AttributionGraph, prune
from tests.experiments.test_ablation import METRIC, PROMPT
from tests.plain_hooks import plain_hooks
from tests.random_gemma import chosen_dictionaries

GROUPS = ["attn", "mlp", "resid"]


def near(model, share: float) -> AblationKind:
    """Every value times `share`."""
    clean = model.trace(PROMPT)
    sites = {
        s: replace(t, acts=share * t.acts, error=share * t.error) for s, t in clean.sites.items()
    }
    trace = Trace(clean.ids, share * clean.embedding, sites)
    return AblationKind("near", lambda model, prompt: (Reference("near", trace),))


@pytest.fixture(scope="module")
def attribution(model):
    return attribute(model, PROMPT, METRIC, max_latents=None, attention="live", norms="live")


@pytest.fixture(scope="module")
def knockouts(model, attribution):
    return edge_knockout(model, PROMPT, METRIC, attribution, top=40, n_random=40)


def test_holding_every_site_clean_changes_nothing(model):
    """Bit for bit: alone, and beside rows that do change."""
    ids = model.tokens(PROMPT)
    held = Held.of(model, ids)
    places = {site: [(-1, pos) for pos in range(ids.shape[1])] for site in model.sites}
    seen, logits = held.run([], places)
    assert list(seen) == list(model.sites)
    for site, here in seen.items():
        assert torch.equal(here.read, held.reads[site][0]), site
        assert torch.equal(here.written, held.writes[site][0]), site
    assert torch.equal(logits, model.run(ids, output=LAST_LOGITS))
    node = ErrorNode(Site(0, "resid"), 4)
    change = shifts(model, node, torch.ones(model.config.hidden_size))
    seen, logits = held.run([(), change], {site: [(0, 4)] for site in model.sites})
    assert all(torch.equal(here.read, here.clean_read) for here in seen.values())
    assert torch.equal(logits[0], logits[2])


def test_a_change_stops_at_the_next_site(model):
    """What a residual site reads moves with the one below it, and not with what lies further."""
    held = Held.of(model, model.tokens(PROMPT))
    node = ErrorNode(Site(0, "resid"), 4)
    rows = [shifts(model, node, torch.ones(model.config.hidden_size))]
    places = {site: [(0, 4)] for site in model.sites}
    seen, logits = held.run(rows, places)
    moved = {
        str(site) for site, here in seen.items() if not torch.equal(here.read, here.clean_read)
    }
    assert moved == {"attn.1", "mlp.1", "resid.1"}
    assert torch.equal(logits[0], logits[1])


@pytest.mark.parametrize(
    "kinds", [("attn", "mlp", "resid"), ("attn", "mlp"), ("attn", "skip"), ("cross",)], ids=str
)
def test_a_small_knock_out_is_the_live_edge(bridge, kinds):
    """Two nudges of 1 % to either side: what is of second order cancels."""
    model = splice(bridge, chosen_dictionaries(kinds))
    edges = attribute(model, PROMPT, METRIC, max_latents=60, attention="live", norms="live")
    both = [
        edge_knockout(model, PROMPT, METRIC, edges, top=25, n_random=25, kind=near(model, share))
        for share in (0.99, 1.01)
    ]
    down, up = (each.table["pre_activation_change"].to_numpy() for each in both)
    nudged = (down - up) / 0.02
    weight = np.asarray(both[0].table["weight"])
    kinds_of = {type(source) for source, _ in both[0].edges}
    assert {LatentNode, ErrorNode} <= kinds_of
    assert np.abs(nudged - weight).max() < 2e-3 * np.abs(weight).max()
    predicted = np.asarray(both[0].table["predicted"])
    latents = np.array([isinstance(source, LatentNode) for source, _ in both[0].edges])
    assert predicted[latents] == pytest.approx(0.01 * weight[latents], rel=1e-3)
    assert np.isnan(predicted[~latents]).all()


def by_hand(model, source, target) -> dict[str, float]:
    """Zero the source in plain PyTorch on the Hugging Face model, other sites put back by hooks."""
    huggingface, ids = model.bridge.original_model, model.tokens(PROMPT)
    clean, seen = {}, {}

    def keep(table, site):
        def hook(x):
            table[site] = x.clone()
            return x

        return hook

    def gone(site):
        d, x = model.dictionaries[site], clean[site][0, source.pos]
        pre = x @ d.W_enc + d.b_enc
        acts = torch.where(pre > d.threshold, pre.relu(), 0.0)
        if isinstance(source, LatentNode):
            return acts[source.latent] * d.W_dec[source.latent]
        return x - (acts @ d.W_dec + d.b_dec) if source.pos else x

    def hold(site):
        def hook(x):
            seen[site] = x.clone()
            x = clean[site].clone()
            if not isinstance(source, TokenNode) and site == source.site:
                x[0, source.pos] -= gone(site)
            return x

        return hook

    def without_token(_module, args, kwargs):
        x = (args[0] if args else kwargs["hidden_states"]).clone()
        x[0, source.pos] = 0
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    with torch.no_grad():
        with plain_hooks(huggingface, {s: keep(clean, s) for s in model.sites}):
            huggingface(ids)
        first = huggingface.model.layers[0]
        handle = None
        if isinstance(source, TokenNode):
            handle = first.register_forward_pre_hook(without_token, with_kwargs=True)
        with plain_hooks(huggingface, {s: hold(s) for s in model.sites}):
            logits = huggingface(ids).logits
        if handle:
            handle.remove()
    if isinstance(target, LogitNode):
        with torch.no_grad():
            score = METRIC.bind(model)
            change = (score(huggingface(ids).logits) - score(logits)).item()
        return {"pre_activation_change": change, "metric_change": change}
    d = model.dictionaries[target.site]
    pre = [x[target.site][0, target.pos] @ d.W_enc + d.b_enc for x in (clean, seen)]
    was, becomes = (torch.where(p > d.threshold, p.relu(), 0.0) for p in pre)
    moved = (was - becomes).abs()

    def set_target(x):
        x = x.clone()
        x[0, target.pos] += (becomes - was)[target.latent] * d.W_dec[target.latent]
        return x

    with torch.no_grad(), plain_hooks(huggingface, {target.site: set_target}):
        after = huggingface(ids).logits
    score = METRIC.bind(model)
    return {
        "pre_activation_change": (pre[0] - pre[1])[target.latent].item(),
        "activation_change": (was - becomes)[target.latent].item(),
        "jump_leak": (moved[was == 0].sum() / moved.sum()).item(),
        "metric_change": (score(model(PROMPT)) - score(after)).item(),
    }


def test_knock_outs_are_edits_by_hand(model, attribution):
    edges = list(edge_knockout(model, PROMPT, METRIC, attribution, top=150, n_random=0).edges)
    kinds = (
        (LatentNode, LatentNode),
        (ErrorNode, LatentNode),
        (TokenNode, LatentNode),
        (LatentNode, LogitNode),
    )
    some = [
        e
        for a, b in kinds
        for e in [x for x in edges if isinstance(x[0], a) and isinstance(x[1], b)][:3]
    ]
    assert len(some) == 12
    rows = edge_knockout(model, PROMPT, METRIC, attribution, edges=some).table
    assert list(rows["group"]) == ["given"] * 12
    for (source, target), row in zip(some, rows.to_dict("records"), strict=True):
        assert (row["source"], row["target"]) == (str(source), str(target))
        for name, value in by_hand(model, source, target).items():
            assert row[name] == pytest.approx(value, rel=1e-3, abs=5e-5), (source, target, name)


def test_an_error_node_takes_along_the_latents_it_carries(model):
    """With few latents as nodes, edges from errors are still the small knock-out."""
    few = attribute(model, PROMPT, METRIC, max_latents=10, attention="live", norms="live")
    whole = edge_knockout(model, PROMPT, METRIC, few, top=1000, n_random=0)
    errors = [
        e
        for e in whole.edges
        if isinstance(e[0], ErrorNode) and e[0].pos and isinstance(e[1], LatentNode)
    ]
    linear = [
        (source, target)
        for source, target in errors
        if isinstance(source, ErrorNode)
        and isinstance(target, LatentNode)
        and source.site.kind != "attn"
        and target.site.kind == "resid"
    ]
    assert len(linear) >= 3
    rows = edge_knockout(model, PROMPT, METRIC, few, edges=linear).table
    assert rows["pre_activation_change"].to_numpy() == pytest.approx(
        rows["weight"], rel=1e-3, abs=1e-4
    )


@pytest.mark.parametrize(
    ("convention", "kind", "max_latents"),
    [("frozen", zero, 60), ("frozen", patch, 60), ("frozen", patch, None), ("live", zero, 60)],
)
def test_where_nothing_but_a_sum_lies_between_the_knock_out_is_the_edge(
    model, convention, kind, max_latents
):
    """To 1e-4 of the largest; against either reference, with errors that carry latents or none.

    Against the corrupted prompt, sources are among them that only that prompt switches on.
    """
    reference = {"zero": zero_reference, "patch": corrupted_reference}[kind().name](model, PROMPT)
    edges = attribute(
        model, PROMPT, METRIC, max_latents=max_latents, reference=reference,
        attention=convention, norms=convention,
    )  # fmt: skip
    result = edge_knockout(model, PROMPT, METRIC, edges, top=100, n_random=200, kind=kind())
    assert set(result.frame()["edges_against"]) == {reference.name}
    linear = result.table["stretch"].isin(
        ["resid -> resid", "resid error -> resid", "mlp -> resid", "mlp error -> resid"]
    )
    linear = np.asarray(linear)
    assert linear.sum() > 20
    assert not np.asarray(result.table["mlp_between"])[linear].any()
    weight, found = (
        np.asarray(result.table[name])[linear] for name in ("weight", "pre_activation_change")
    )
    assert np.abs(found - weight).max() < 1e-4 * np.abs(weight).max()
    assert (result.table["predicted"] == result.table["weight"]).to_numpy().all()
    off = [
        isinstance(source, LatentNode) and not edges.acts[edges.nodes.index(source)]
        for source, _ in result.edges
    ]
    assert any(off) == (kind is patch)


def test_an_edge_against_one_reference_foretells_what_another_does_to_a_latent(model, attribution):
    """An edge is linear in its source's change; which way a vector changes, it does not say."""
    against = attribute(
        model, PROMPT, METRIC, max_latents=None, attention="live", norms="live",
        reference=corrupted_reference(model, PROMPT),
    )  # fmt: skip
    place = {node: i for i, node in enumerate(against.nodes)}
    shared = [
        (source, target)
        for source, target in edge_knockout(
            model, PROMPT, METRIC, attribution, top=100, n_random=0
        ).edges
        if source in place and against.edges[place[target], place[source]]
    ]
    told = {
        (name, kind().name): edge_knockout(
            model, PROMPT, METRIC, graph, edges=shared, kind=kind()
        ).table["predicted"].to_numpy()
        for name, graph in (("zero", attribution), ("corrupted", against))
        for kind in (zero, patch)
    }  # fmt: skip
    latents = np.array([isinstance(source, LatentNode) for source, _ in shared])
    assert latents.sum() > 10
    assert not latents.all()
    for kind in ("zero", "patch"):
        one, other = told["zero", kind][latents], told["corrupted", kind][latents]
        assert np.abs(one - other).max() < 1e-4 * np.abs(one).max()
    assert np.isnan(told["zero", "patch"][~latents]).all()
    assert np.isnan(told["corrupted", "zero"][~latents]).all()
    assert not np.isnan(told["corrupted", "patch"]).any()
    other = replace(PROMPT, corrupted="w1 w6 w9 w2 w6 w9 w31 w7 w8 w12")
    there = edge_knockout(model, other, METRIC, against, edges=shared, kind=patch()).table
    assert np.isnan(there["predicted"].to_numpy()[~latents]).all()


def test_the_strongest_and_random_others(model, attribution, knockouts):
    edges, grads = attribution.edges.tocoo(), attribution.target_grads.numpy()
    nodes = attribution.nodes
    sizes = {
        (nodes[s], nodes[t]): abs(w * grads[t])
        for t, s, w in zip(*edges.coords, edges.data, strict=True)
        if not isinstance(nodes[s], BiasNode)
    }
    groups = knockouts.table["group"]
    strongest = [
        e for e, group in zip(knockouts.edges, groups, strict=True) if group == "strongest"
    ]
    drawn = [e for e, group in zip(knockouts.edges, groups, strict=True) if group == "random"]
    assert sorted(sizes[edge] for edge in strongest) == sorted(sizes.values())[-40:]
    assert len(drawn) == len(set(drawn)) == 40
    assert not set(drawn) & set(strongest)
    assert all(isinstance(target, LatentNode) for _, target in drawn)
    again = edge_knockout(model, PROMPT, METRIC, attribution, top=40, n_random=40)
    assert again.edges == knockouts.edges
    other = edge_knockout(model, PROMPT, METRIC, attribution, top=40, n_random=40, seed=1)
    assert other.edges != knockouts.edges
    assert other.edges[:40] == knockouts.edges[:40]
    n_biases = sum(isinstance(nodes[s], BiasNode) for s in edges.coords[1])
    assert knockouts.left_out == {"from biases": n_biases}
    n_to_latents = sum(isinstance(target, LatentNode) for _, target in sizes)
    n_strongest = sum(isinstance(target, LatentNode) for _, target in strongest)
    assert knockouts.provenance["settings"]["drawn_from"] == n_to_latents - n_strongest


def test_batches_equal_one_by_one(model, attribution, knockouts):
    one = edge_knockout(
        model, PROMPT, METRIC, attribution, edges=knockouts.edges[::4], batch_size=1
    )
    numbers = ["pre_activation_change", "activation_change", "jump_leak", "metric_change"]
    for name in numbers:
        expected = knockouts.table[name][::4].to_numpy()
        assert one.table[name].to_numpy() == pytest.approx(
            expected, rel=1e-3, abs=2e-5, nan_ok=True
        )


def test_an_average_over_donors_is_the_average_of_each(model, attribution, knockouts):
    edges = [e for e in knockouts.edges if isinstance(e[0], LatentNode)][:10]
    donors = [patch().references(model, PROMPT)[0], zero().references(model, PROMPT)[0]]
    kinds = [donors, donors[:1], donors[1:]]
    both, first, second = (
        edge_knockout(
            model, PROMPT, METRIC, attribution, edges=edges,
            kind=AblationKind("donors", lambda model, prompt, given=given: tuple(given)),
        ).table[["predicted", "pre_activation_change", "metric_change"]].to_numpy()
        for given in kinds
    )  # fmt: skip
    assert both == pytest.approx((first + second) / 2, abs=1e-5)


def test_a_pruned_graph_knows_its_errors_only_if_they_carry_no_latents(model, attribution):
    whole = AttributionGraph.from_attribution(attribution)
    some = prune(whole, keep_influence=0.8)
    known = edge_knockout(model, PROMPT, METRIC, some, top=5, n_random=5)
    assert "from errors of a pruned graph" not in known.left_out
    assert known.conventions["random_from"] == "a pruned graph"
    few = AttributionGraph.from_attribution(attribute(model, PROMPT, METRIC, max_latents=30))
    fewer = prune(few, keep_influence=0.7)
    result = edge_knockout(model, PROMPT, METRIC, fewer, top=10_000, n_random=0)
    assert result.left_out["from errors of a pruned graph"] > 0
    assert not any(isinstance(source, ErrorNode) for source, _ in result.edges)


def test_a_latent_can_be_what_is_explained(model):
    node = LatentNode(Site(2, "mlp"), 5, 9)
    metric = latent_metric(node)
    graph = attribute(model, PROMPT, metric, max_latents=50, attention="live", norms="live")
    result = edge_knockout(model, PROMPT, metric, graph, top=20, n_random=0)
    to_metric = result.table[result.table["target"] == f"logit/{node}"]
    assert len(to_metric)
    assert np.asarray(to_metric["mlp_between"]).all()
    changes = np.asarray(to_metric[["metric_change", "pre_activation_change"]])
    assert (changes[:, 0] == changes[:, 1]).all()


@pytest.mark.parametrize(
    ("kinds", "source", "target", "between"),
    [
        (GROUPS, "resid.0/latent.1@2", "mlp.1/latent.1@2", True),
        (GROUPS, "resid.0/latent.1@2", "attn.1/latent.1@2", False),
        (GROUPS, "attn.1/latent.1@2", "resid.1/latent.1@2", False),
        (["attn"], "attn.1/latent.1@2", "attn.2/latent.1@2", True),
        (["resid"], "resid.0/latent.1@2", "resid.1/latent.1@2", True),
        (["attn", "transcoder"], "attn.0/latent.1@2", "transcoder.2/latent.1@2", False),
        (GROUPS, "resid.2/latent.1@2", "logit/w3 - w4", False),
        (["attn"], "attn.2/latent.1@2", "logit/w3 - w4", True),
        (GROUPS, "token@2", "mlp.0/latent.1@2", True),
        (GROUPS, "token@2", "resid.0/latent.1@2", False),
    ],
)
def test_whether_an_mlp_lies_between(kinds, source, target, between):
    from circuits import parse_node

    sites = [Site(layer, kind) for layer in range(3) for kind in kinds]
    ends = parse_node(source), parse_node(target)
    assert mlp_between(sites, *ends, None) == between  # pyright: ignore


def test_conventions_are_in_every_form(knockouts, tmp_path):
    frame = knockouts.frame()
    for column, value in {
        "metric": "w3 - w4", "edges": "local Jacobian", "edges_attention": "live",
        "edges_norms": "live", "reference": "zero", "downstream": "recompute",
        "attributed_downstream": "recompute", "knock_out": "attention and norms live",
        "edges_against": "zero", "random_from": "the whole graph",
    }.items():  # fmt: skip
        assert set(frame[column]) == {value}
    content = json.loads(knockouts.save(tmp_path / "e.json").read_text())
    assert content["provenance"]["seed"] == 0
    assert content["provenance"]["graph"]["settings"]["norms"] == "live"
    assert "<svg" in knockouts.plot(tmp_path / "e.svg").read_text()
    back = pd.read_csv(knockouts.save(tmp_path / "e.csv"))
    assert back["weight"].to_list() == pytest.approx(frame["weight"].to_list())
    found = knockouts.agreement().set_index("group")
    part = frame[frame["group"] == "strongest"]
    x, y = part["predicted"], part["pre_activation_change"]
    assert found["r"]["strongest"] == pytest.approx(x.corr(y))
    assert found["slope"]["strongest"] == pytest.approx((x * y).sum() / (x * x).sum())
    far = (x - y).abs() > np.maximum(x.abs(), y.abs()) / 2
    assert found["missed"]["strongest"] == pytest.approx(far.mean())
    loud = y.abs() >= 0.01 * y.abs().max()
    assert found["sign"]["strongest"] == pytest.approx((x * y > 0)[loud].mean())
    by = knockouts.agreement(("group", "stretch", "mlp_between"))
    assert by["n"].sum() == len(frame)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"edges": [(LatentNode(Site(0, "mlp"), 999, 1), LogitNode("w3 - w4"))]}, "has no edge"),
        ({"edges": [(BiasNode(Site(0, "mlp")), LogitNode("w3 - w4"))]}, "cannot knock out"),
        ({"prompt": "w1 w2"}, "give the prompt that the graph is of"),
        ({"metric": logit("w3")}, "give the metric that the graph was made with"),
        ({"downstream": "forget"}, "choose recompute, freeze, drop"),
        ({"top": -1}, "top=-1"),
        ({"batch_size": 0}, "from 1 on"),
        ({"attribution": 3}, "got int"),
        ({"kind": mean_of(["w1 w2"])}, "has 11 tokens"),
    ],
)
def test_what_cannot_be_knocked_out_is_refused(model, attribution, changed, message):
    given = {"prompt": PROMPT, "metric": METRIC, "attribution": attribution, **changed}
    first = [given.pop(name) for name in ("prompt", "metric", "attribution")]
    with pytest.raises(UserError, match=message):
        edge_knockout(model, *first, **given)


def test_no_edges_make_an_empty_result(model, attribution, tmp_path):
    result = edge_knockout(model, PROMPT, METRIC, attribution, top=0, n_random=0)
    assert len(result) == 0
    assert result.agreement().empty
    result.plot(tmp_path / "empty.svg")


def test_another_metric_by_the_same_words(model):
    prompt = Prompt(PROMPT.text, target="w3", foil="w4")
    graph = attribute(model, prompt, logit_diff(prompt), max_latents=5)
    assert len(edge_knockout(model, prompt, logit_diff(prompt), graph, top=3, n_random=0)) == 3
