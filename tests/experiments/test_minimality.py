"""A node's loss is what dropping it does, and only what the planted circuit needs is necessary."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest

from attribution import attribute, logit_diff
from circuits import Reference, Site, UserError
from experiments.circuit.cases import CircuitCases
from experiments.circuit.drop_one import draw_others, minimality, verdicts
from experiments.circuit.faithfulness import faithfulness_curve
from experiments.kinds import AblationKind, patch
from experiments.planted import NUMBERS, planted_model, question
from experiments.planted.model import latent
from experiments.planted.truth import circuit_nodes
from experiments.spans import SpanNode, aligned
from graphs import AttributionGraph
from tests.experiments.test_faithfulness_many import PROMPTS


@pytest.fixture(scope="module")
def cases(model):
    return CircuitCases.of(
        model, PROMPTS, aligned(model, PROMPTS), logit_diff, patch(),
        errors="kept", downstream="recompute",
    )  # fmt: skip


@pytest.fixture(scope="module")
def circuit(cases):
    """Some nodes, of which every prompt has some."""
    chosen = np.random.default_rng(0).permutation(len(cases))[:200]
    return [cases.space.node(code) for code in cases.codes[chosen].tolist()]


@pytest.fixture(scope="module")
def result(model, circuit):
    return minimality(model, PROMPTS, logit_diff, circuit, size=40, n_inflations=30, seed=3)


def f(model, nodes):
    curve = faithfulness_curve(model, PROMPTS, logit_diff, nodes, sizes=[len(nodes)], n_random=0)
    return curve.scores[0].faithfulness


def test_losses_are_differences_of_faithfulness(model, circuit, result):
    chosen = circuit[:40]
    assert set(result.nodes) == set(chosen)
    assert result.faithfulness == pytest.approx(f(model, chosen), abs=1e-5)
    frame = result.frame()
    loss, low, high = (np.asarray(frame[name]) for name in ("loss", "low", "high"))
    assert (np.diff(np.abs(loss)) <= 1e-9).all()  # the largest drop first
    assert (low <= loss + 1e-9).all()
    assert (loss <= high + 1e-9).all()
    for row in (0, 1, 20, 39):
        without = [node for node in chosen if node != result.nodes[row]]
        assert loss[row] == pytest.approx(result.faithfulness - f(model, without), abs=1e-5)
        assert frame["node"][row] == str(result.nodes[row])


def test_inflations_add_one_random_node_of_a_site_of_the_circuit(model, cases, circuit, result):
    chosen = circuit[:40]
    places, _ = cases.places(chosen)
    held = np.zeros(len(cases), dtype=bool)
    held[places] = True
    added = draw_others(held, cases.space.sites_of(cases.codes), 30, seed=3)
    for drop, place in list(zip(result.inflations, added, strict=True))[:4]:
        extra = cases.space.node(int(cases.codes[place]))
        expected = abs(f(model, [*chosen, extra]) - result.faithfulness)
        assert drop == pytest.approx(expected, abs=2e-5)


def test_draws_are_from_outside_as_often_as_the_circuit_has_nodes_of_the_group():
    groups = np.repeat([7, 8, 9], [10, 30, 5])
    held = np.zeros(45, dtype=bool)
    held[[0, 1, 2, 12, *range(40, 45)]] = True  # three of 7, one of 8 and all of 9
    added = draw_others(held, groups, 4000, seed=0)
    assert not held[added].any()
    shares = [(groups[added] == group).mean() for group in (7, 8, 9)]
    assert shares == pytest.approx([0.75, 0.25, 0], abs=0.03)  # 4 standard deviations
    counts = np.bincount(added, minlength=45)[3:10]
    assert counts.min() > 0.8 * 3000 / 7  # all alike within the group


def test_tests_are_those_of_a_slow_loop():
    rng = np.random.default_rng(0)
    inflations = np.abs(rng.normal(size=60))
    losses = np.array([4.0, -3.0, 0.0, 0.3, 1.5, -0.01, 2.5])
    table = verdicts(losses, inflations)
    p = [(1 + sum(x >= abs(loss) for x in inflations)) / 61 for loss in losses]
    order = np.argsort(p)
    q = np.empty(7)
    best = 1.0
    for rank in range(7, 0, -1):
        best = min(best, p[order[rank - 1]] * 7 / rank)
        q[order[rank - 1]] = best
    np.testing.assert_allclose(table["p"], p)
    np.testing.assert_allclose(table["q"], q)
    for loss, own_q, row in zip(losses, q, table.to_dict("records"), strict=True):
        smaller = sum(x < abs(loss) for x in inflations)
        assert row["percentile"] == smaller / 60
        expected = min(1, binomtest(smaller, 60, 0.9, alternative="less").pvalue * 7)
        assert row["p_superfluous"] == pytest.approx(expected)
        if own_q <= 0.05:
            assert row["verdict"] == ("necessary" if loss > 0 else "opposing")
        else:
            assert row["verdict"] == ("superfluous" if expected <= 0.05 else "undecided")
    assert set(table["verdict"]) == {"necessary", "opposing", "superfluous", "undecided"}


def test_where_nodes_are_random_ones_themselves_hardly_any_is_called_necessary():
    """A circuit with any false claim comes in at most 5 % of draws, and p is uniform."""
    rng = np.random.default_rng(0)
    tables = [verdicts(rng.exponential(size=20), rng.exponential(size=200)) for _ in range(400)]
    p = np.concatenate([np.asarray(table["p"]) for table in tables])
    for level in (0.05, 0.25, 0.5):
        assert (p <= level).mean() == pytest.approx(level, abs=0.02)
    false = np.mean(["necessary" in table["verdict"].tolist() for table in tables])
    assert false <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize("downstream", ["recompute", "freeze"])
def test_the_planted_circuit_is_necessary_and_decoys_are_superfluous(downstream):
    """Among its nodes are a head that carries the number and writes nothing, and an idle neuron."""
    planted = planted_model()
    prompts = [question(animal, number) for animal in range(3) for number in range(2)]
    last = planted.tokens(prompts[0]).shape[1] - 1
    needed = {
        SpanNode(node.site, node.latent, str(node.pos))
        for node in circuit_nodes(NUMBERS[0], last, "corrupted")
    }
    decoys = {
        SpanNode(site, latent(site, f"{name} {NUMBERS[0]}"), str(last))
        for site, name in (
            (Site(0, "attn"), "mute"),
            (Site(0, "attn"), "dead-end"),
            (Site(1, "mlp"), "idle"),
        )
    }
    found = minimality(
        planted, prompts, logit_diff, [*sorted(needed, key=str), *sorted(decoys, key=str)],
        downstream=downstream,
    )  # fmt: skip
    verdict = dict(zip(found.nodes, found.frame()["verdict"], strict=True))
    assert {node for node in verdict if verdict[node] == "necessary"} == needed
    assert {node for node in verdict if verdict[node] == "superfluous"} == decoys
    assert found.faithfulness == pytest.approx(1, abs=1e-3)
    assert found.kept_alone == pytest.approx(1, abs=1e-3)
    assert found.necessity == pytest.approx(1, abs=1e-3)
    assert (found.count("necessary"), found.count("superfluous")) == (8, 3)


def test_a_graph_of_one_prompt(model):
    prompt = PROMPTS[0]
    metric = logit_diff(prompt)
    graph = AttributionGraph.from_attribution(attribute(model, prompt, metric, max_latents=20))
    found = minimality(
        model, prompt, metric, graph, downstream="freeze", errors="scored", n_inflations=20
    )
    frame = found.frame()
    assert len(frame) == len([n for n in graph.digraph if getattr(n, "pos", 0)
                              and hasattr(n, "site")])  # fmt: skip
    assert any("error" in name for name in frame["node"])
    assert np.isnan(np.asarray(frame["low"])).all()  # of one prompt there is no interval
    assert set(frame["reference"]) == {"zero"}
    found.figure()


def test_every_form_names_the_conventions(result, tmp_path):
    frame = result.frame()
    for name, value in {
        "metric": "logit_diff", "reference": "patch", "errors": "kept",
        "downstream": "recompute", "matched": "site", "n_inflations": 30, "n_prompts": 3,
    }.items():  # fmt: skip
        assert set(frame[name]) == {value}
    assert "40 nodes" in repr(result)
    content = json.loads(result.save(tmp_path / "m.json").read_text())
    assert content["provenance"]["seed"] == 3
    assert content["provenance"]["settings"]["n_inflations"] == 30
    assert len(content["rows"]) == 40
    assert "<svg" in result.plot(tmp_path / "m.svg").read_text()


def itself(model, prompt):
    """Nothing changes."""
    return (Reference("same", model.trace(prompt)),)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 0}, "size=0; give a whole number from 1 on"),
        ({"n_inflations": 10}, "give a whole number from 20 on"),
        ({"nodes": []}, "the circuit has no nodes"),
        ({"nodes": "all"}, "give a smaller circuit"),
        ({"matched": "layer"}, "choose site or span"),
        ({"downstream": "drop"}, "errors='removed' in the place of drop"),
        ({"batch_size": 0}, "from 1 on"),
        ({"reference": AblationKind("same", itself)}, "less than 10% of"),
    ],
)
def test_bad_arguments_are_refused(model, cases, circuit, changed, message):
    arguments = {"prompts": PROMPTS, "nodes": "any", **changed}
    prompts, nodes = arguments.pop("prompts"), arguments.pop("nodes")
    if nodes == "all":
        nodes = [cases.space.node(code) for code in cases.codes.tolist()]
    elif nodes == "any":
        nodes = [SpanNode(node.site, node.latent, "1") for node in circuit[:5]]
    with pytest.raises(UserError, match=message):
        minimality(model, prompts, logit_diff, nodes, **arguments)
