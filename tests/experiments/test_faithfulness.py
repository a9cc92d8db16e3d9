"""F is 1 for the whole model and 0 for the empty circuit, and each number is a run by hand."""

import json
from math import isnan

import pytest
import torch

from attribution import attribute, logit_diff
from attribution.metrics import bind
from circuits import (
    LatentNode,
    Prompt,
    Reference,
    Site,
    UserError,
    corrupted_reference,
    mean_reference,
    set_to,
    zero_reference,
)
from circuits.interventions import edits
from experiments.circuit.faithfulness import faithfulness_curve
from experiments.circuit.runs import Candidates, run_kept
from experiments.spans import SpanNode
from graphs import AttributionGraph

PROMPT = Prompt(
    "w1 w5 w9 w2 w5 w9 w30",
    target="w19",
    foil="w31",
    corrupted="w1 w6 w9 w2 w6 w9 w31",
)
METRIC = logit_diff(PROMPT)


def reference_named(model, name):
    if name == "mean":
        return mean_reference(model, [PROMPT, Prompt(PROMPT.corrupted or "")])
    return {"zero": zero_reference, "corrupted": corrupted_reference}[name](model, PROMPT)


@pytest.fixture(scope="module")
def graph(model) -> AttributionGraph:
    return AttributionGraph.from_attribution(attribute(model, PROMPT, METRIC, max_latents=60))


@pytest.mark.parametrize("downstream", ["recompute", "freeze"])
@pytest.mark.parametrize("name", ["zero", "corrupted", "mean"])
def test_all_latents_keep_everything_and_none_keep_nothing(model, name, downstream):
    reference = reference_named(model, name)
    everything = Candidates.of(model.trace(PROMPT), reference).nodes
    curve = faithfulness_curve(
        model,
        PROMPT,
        METRIC,
        everything,
        sizes=[0, len(everything)],
        reference=reference,
        downstream=downstream,
        n_random=2,
    )
    none, all_ = curve.scores
    assert (none.size, all_.size) == (0, len(everything)) == (0, curve.n_nodes)
    assert none.faithfulness == pytest.approx(0, abs=1e-4)
    assert all_.faithfulness == pytest.approx(1, abs=1e-4)
    assert none.completeness == pytest.approx(1, abs=1e-4)
    assert all_.completeness == pytest.approx(0, abs=1e-4)
    assert none.random_low == none.random_high == none.faithfulness
    assert all_.random_mean == pytest.approx(1, abs=1e-4)
    assert curve.full == pytest.approx(METRIC.bind(model)(model(PROMPT)).item(), abs=1e-5)


@pytest.mark.parametrize("downstream", ["recompute", "freeze"])
def test_keeping_all_but_one_latent_is_ablating_it(model, downstream):
    reference = reference_named(model, "corrupted")
    ids = model.tokens(PROMPT)
    candidates = Candidates.of(model.trace(PROMPT), reference)
    # at the last site nothing downstream can switch on anew
    last = model.sites[-1]
    places = [i for i, node in enumerate(candidates.nodes) if node.site == last]
    kept = torch.ones(len(places), len(candidates.nodes), dtype=torch.bool)
    kept[range(len(places)), places] = False
    score = bind(METRIC, model)
    metrics = run_kept(
        model, ids, score, candidates, kept, reference,
        downstream=downstream, errors="kept", batch_size=4,
    )  # fmt: skip
    nodes = [candidates.nodes[i] for i in places]
    rows = [[set_to(node, reference.value(node))] for node in nodes]
    batch = ids.expand(len(nodes), -1)
    expected = score(model.run(batch, edits(model, batch, rows), downstream=downstream))
    torch.testing.assert_close(metrics, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("errors", ["kept", "removed"])
@pytest.mark.parametrize("name", ["zero", "corrupted"])
def test_a_circuit_is_a_pass_with_everything_else_set_by_hand(model, name, errors):
    """One circuit, site by site in plain PyTorch, against the vectorised masks."""
    reference = reference_named(model, name)
    ids = model.tokens(PROMPT)
    candidates = Candidates.of(model.trace(PROMPT), reference)
    circuit = set(candidates.nodes[::3])
    reads = model.reads(ids)

    def by_hand(site):
        def edit(acts, error):
            new = torch.zeros_like(acts)
            for pos in range(acts.shape[1]):
                for latent in range(acts.shape[2]):
                    keep = LatentNode(site, latent, pos) in circuit
                    new[0, pos, latent] = (
                        acts[0, pos, latent] if keep else reference.acts(site)[pos, latent]
                    )
            if errors == "removed":
                error = error.clone()
                error[0, reads[0]] = reference.error(site)[reads[0]]
            return new, error

        return edit

    score = bind(METRIC, model)
    expected = score(model.run(ids, {site: by_hand(site) for site in model.sites}))
    kept = torch.tensor([[node in circuit for node in candidates.nodes]])
    got = run_kept(
        model, ids, score, candidates, kept, reference,
        downstream="recompute", errors=errors, batch_size=8,
    )  # fmt: skip
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_with_errors_removed_everything_at_the_corrupted_prompt_is_the_corrupted_prompt(model):
    """Patching all latents and all errors is running the other prompt."""
    reference = reference_named(model, "corrupted")
    curve = faithfulness_curve(
        model, PROMPT, METRIC, [], sizes=[0], reference=reference, errors="removed", n_random=0
    )
    corrupted = METRIC.bind(model)(model(PROMPT.corrupted)).item()
    assert curve.empty == pytest.approx(corrupted, abs=1e-4)
    assert curve.full == pytest.approx(METRIC.bind(model)(model(PROMPT)).item(), abs=1e-5)


def test_batches_equal_one_by_one(model, graph):
    curves = [
        faithfulness_curve(
            model, PROMPT, METRIC, graph, sizes=[3, 20], n_random=3, batch_size=n,
            downstream="freeze",
        )
        for n in (1, 5)
    ]  # fmt: skip
    for one, five in zip(*(curve.scores for curve in curves), strict=True):
        assert one.faithfulness == pytest.approx(five.faithfulness, abs=1e-4)
        assert one.random_high == pytest.approx(five.random_high, abs=1e-4)


def test_sizes_are_cut_at_what_the_graph_ranks(model, graph):
    n = len(graph.latents())
    curve = faithfulness_curve(
        model, PROMPT, METRIC, graph, sizes=[10_000, 5, n, 5], n_random=0, downstream="freeze"
    )
    assert [score.size for score in curve.scores] == [5, n]
    assert n < curve.n_nodes
    assert isnan(curve.scores[0].random_mean)


def test_the_same_seed_draws_the_same_circuits(model, graph):
    def band(seed):
        curve = faithfulness_curve(
            model, PROMPT, METRIC, graph, sizes=[30], seed=seed, downstream="freeze"
        )
        return curve.scores[0].random_low, curve.scores[0].random_high

    assert band(0) == band(0)
    assert band(0) != band(1)


def test_every_form_names_the_conventions(model, graph, tmp_path):
    curve = faithfulness_curve(
        model, PROMPT, METRIC, graph, sizes=[0, 10, 30], n_random=3, seed=7, downstream="freeze"
    )
    frame = curve.frame()
    assert list(frame["size"]) == [0, 10, 30]
    assert set(frame["downstream"]) == {"freeze"}
    assert set(frame["errors"]) == {"kept"}
    assert set(frame["reference"]) == {"zero"}
    content = json.loads(curve.save(tmp_path / "f.json").read_text())
    assert content["provenance"]["seed"] == 7
    assert content["provenance"]["settings"]["ranked_by"]["estimator"] == "gradient x activation"
    assert len(content["rows"]) == 3
    assert curve.plot(tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    assert curve.plot(tmp_path / "f.svg").stat().st_size > 1000


def test_where_nothing_is_at_stake_it_refuses(model):
    """Set to the values it has anyway, nothing changes, whatever is ablated."""
    reference = Reference("same", model.trace(PROMPT))
    with pytest.raises(UserError, match=r"less than 10% of change"):
        faithfulness_curve(model, PROMPT, METRIC, [], sizes=[0], reference=reference, n_random=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"downstream": "drop"}, "errors='removed' in the place of drop"),
        ({"downstream": "later"}, "recompute and freeze"),
        ({"errors": "some"}, "choose kept, scored, removed"),
        ({"sizes": []}, r"sizes=\[\]; give a list of numbers of nodes"),
        ({"sizes": ["10"]}, r"sizes=\['10'\]; give a list of numbers of nodes"),
        ({"sizes": 10}, "sizes=10; give a list of numbers of nodes"),
        ({"sizes": "10"}, "sizes='10'; give a list of numbers of nodes"),
        ({"sizes": [-1]}, "none below 0"),
        ({"sizes": [float("nan")]}, "none below 0"),
        ({"n_random": -1}, "n_random=-1"),
        ({"batch_size": 0}, "from 1 on"),
        ({"graph": [LatentNode(Site(0, "mlp"), 0, 0)]}, "is not active on this prompt"),
        ({"graph": [SpanNode(Site(0, "mlp"), 0, "1")]}, "latents and errors; got SpanNode mlp.0"),
        ({"graph": ["mlp.0/latent.0@1"]}, "latents and errors; got str mlp.0"),
    ],
)
def test_bad_arguments_are_refused(model, changed, message):
    arguments = {"graph": [], "sizes": [0], **changed}
    with pytest.raises(UserError, match=message):
        faithfulness_curve(model, PROMPT, METRIC, arguments.pop("graph"), **arguments)


def test_a_graph_of_another_prompt_is_refused(model, graph):
    with pytest.raises(UserError, match="the graph is of the prompt"):
        faithfulness_curve(model, "w1 w2 w3", METRIC, graph, sizes=[1])
