"""A circuit set by hand among decoys: exact interventions find it whole, estimators what they can.

What is on the circuit is known by construction; what each method must miss follows from the
weights: a gate is at 10 where it is open (slope 1) and at -10 where it is shut (slope 0).
"""

from itertools import permutations, product
from math import tanh

import numpy as np
import pytest
import torch
from torch.nn.functional import gelu

from attribution import attribute, integrated_effects
from attribution.metrics import bind
from circuits import LatentNode, LogitNode, Site
from experiments.edges import edge_knockout
from experiments.kinds import patch
from experiments.planted import (
    blind_spots,
    circuit_nodes,
    label,
    planted_model,
    prompts,
    question,
    score_ranking,
)
from experiments.planted.case import Case
from experiments.planted.edge_methods import edge_scores, losses
from experiments.planted.model import latent
from experiments.planted.node_methods import node_scores
from experiments.planted.scores import FLOOR, auroc, average_precision, precision_at_k
from experiments.planted.truth import METRIC, path

ANSWER = 30 * tanh(5 / 30)  # the verb's feature is 5; the soft-cap is at 30
BOTH = question(0, 0, 0, 1)  # the dog near the cars there often
SHAPES = {"alone": question(1, 1), "both": BOTH, "no place": question(2, 1, 1, 1, place=False)}
CELLS = [
    (shape, reference, downstream)
    for shape in SHAPES
    for reference in ("corrupted", "zero")
    for downstream in ("recompute", "freeze")
    if shape == "both" or reference == "corrupted"
]
EXACT, GRADIENT = "exact ablation", "gradient x activation"
INTEGRATED = [f"{kind} integrated gradients (n=10)" for kind in ("joint", "per-latent")]


@pytest.fixture(scope="module")
def planted():
    return planted_model()


@pytest.fixture(scope="module")
def asked(planted):
    """The question of each shape and reference."""
    return {
        (shape, reference): Case.of(planted, prompt, reference)
        for shape, prompt in SHAPES.items()
        for reference in ("corrupted", "zero")
        if (shape, reference, "freeze") in CELLS
    }


@pytest.fixture(scope="module")
def scored(asked):
    """What each method gives each node, by shape, reference and downstream."""
    return {(s, r, d): node_scores(asked[s, r], d) for s, r, d in CELLS}


@pytest.fixture(scope="module")
def edges_scored(asked):
    return {reference: edge_scores(asked["both", reference]) for reference in ("corrupted", "zero")}


def missed(case, scores):
    """The nodes of the circuit that have no score."""
    found = scores.abs() >= FLOOR * scores.abs().max()
    on = case.nodes_on_circuit()
    return {n for n, on, yes in zip(case.nodes, on, found.tolist(), strict=True) if on and not yes}


def at(site, name, pos):
    site = Site.parse(site)
    return LatentNode(site, latent(site, name), pos)


# the model


def test_every_prompt_of_the_language_gets_its_verb(planted):
    """With the logit that the weights say, less what norms take: half the squares over 1024^2.

    Squares of features: 5 after attention (taken twice: the gate is 20 x - 10), 38 after the MLP
    and 53 before the unembedding.
    """
    every, feature = prompts(), 5 * (1 - (2 * 5 + 38 + 53) / 2 / 1024**2)
    assert len({prompt.text for prompt in every}) == len(every) == 54
    for prompt in every:
        logits = planted(prompt.text)[0, -1]
        assert planted.words(logits.argmax()[None]) == [prompt.target]
        right, wrong = (logits[planted.token_id(word)] for word in (prompt.target, prompt.foil))
        assert right.item() == pytest.approx(30 * tanh(feature / 30), rel=1e-5)
        assert wrong.item() == pytest.approx(0, abs=1e-5)


def test_a_partner_is_the_prompt_that_asks_for_the_other_verb():
    targets = {prompt.text: prompt.target for prompt in prompts()}
    assert all(targets[p.corrupted or ""] == p.foil for p in prompts())


def test_dictionaries_have_the_planted_directions(planted):
    """Nothing is left over, and what is active at the end is what the weights say."""
    trace = planted.trace(BOTH)
    last = len(trace.ids) - 1
    active = {}
    for site, here in trace.sites.items():
        assert here.error[1:].abs().max() < 1e-3  # of 1024 at BOS, which no dictionary reads
        chosen = here.pos == last
        nodes = [LatentNode(site, int(i), last) for i in here.latent[chosen]]
        active[str(site)] = dict(zip(map(label, nodes), here.acts[chosen].tolist(), strict=True))
    carried = {"ask": 1, "word often": 3, "subject singular": 1, "dead-end singular": 2}
    written = {"verb singular": 5, "idle singular": 3, "past": 2}
    expected = {
        "attn.0": {"copy singular": 1, "mute singular": 4, "dead-end singular": 2},
        "mlp.0": {},
        "resid.0": carried,
        "attn.1": {"mute singular": 4, "attractor plural": 1},
        "mlp.1": written,
        "resid.1": carried | written | {"attractor plural": 1},
    }
    assert active == {site: pytest.approx(acts, rel=1e-4) for site, acts in expected.items()}


def test_labels_name_latents(asked):
    for node in asked["both", "corrupted"].nodes:
        assert latent(node.site, label(node)) == node.latent


# nodes


@pytest.mark.parametrize("cell", CELLS, ids=" ".join)
@pytest.mark.parametrize("method", [EXACT, *INTEGRATED])
def test_exact_ablation_and_integrated_gradients_find_the_circuit(asked, scored, cell, method):
    scores = scored[cell][method].tolist()
    found = score_ranking(scores, asked[cell[:2]].nodes_on_circuit())
    assert found == score_ranking([1, 0], [True, False])  # 1 everywhere


@pytest.mark.parametrize("cell", CELLS, ids=" ".join)
def test_ablation_costs_a_verb_form_on_the_circuit_and_nothing_at_decoys(asked, scored, cell):
    """Each of the two forms is worth `ANSWER`: what was right is lost, or what is wrong is won."""
    effects, on = scored[cell][EXACT], torch.tensor(asked[cell[:2]].nodes_on_circuit())
    expected = torch.full_like(effects[on], ANSWER)
    torch.testing.assert_close(effects[on], expected, rtol=1e-4, atol=0)
    assert effects[~on].abs().max() < 2e-5 * ANSWER  # what norms let through


def test_decoys_are_alive(asked):
    """They change with the number, some of them more than the circuit does."""
    here = asked["both", "corrupted"]
    last, circuit = here.last, circuit_nodes("singular", here.last, "corrupted")
    change = dict(zip(here.nodes, (here.acts - here.baseline).tolist(), strict=True))
    named = {
        at("attn.0", "mute singular", last): 4,
        at("attn.0", "mute plural", last): -4,
        at("attn.1", "mute plural", last): -4,
        at("attn.0", "dead-end singular", last): 2,
        at("resid.0", "dead-end singular", last): 2,
        at("mlp.1", "idle plural", last): -3,
        at("resid.1", "subject singular", last): 1,
        at("attn.0", "attractor plural", last - 1): 1,
        at("attn.1", "attractor plural", last): 1,
        at("resid.0", "word dogs", 2): -3,
        at("mlp.0", "noun singular", 2): 2,
    }
    assert {node: change[node] for node in named} == pytest.approx(named, rel=1e-4)
    alive = [node for node in here.nodes if abs(change[node]) > 0.5 and node not in circuit]
    assert len(alive) > 40


@pytest.mark.parametrize("downstream", ["recompute", "freeze"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_times_activation_misses_what_a_shut_gate_hides(asked, scored, shape, downstream):
    """2 of 8 latents, and under `freeze` a third: all off on the prompt and on in its partner.

    They tie with the decoys at zero, so that AUROC counts them half.
    """
    here, every = asked[shape, "corrupted"], scored[shape, "corrupted", downstream]
    scores = every[GRADIENT]
    hidden = blind_spots(here.number, here.last, downstream)
    assert missed(here, scores) == missed(here, every["RelP"]) == hidden
    assert all(scores[here.nodes.index(node)] == pytest.approx(0, abs=1e-12) for node in hidden)
    places = [here.nodes.index(node) for node in sorted(hidden, key=lambda node: node.site)]
    assert here.acts[places].tolist() == [0] * len(hidden)
    assert here.baseline[places].tolist() == pytest.approx([1, 1, 5][: len(hidden)], rel=1e-4)
    n = len(hidden)
    assert n == {"recompute": 2, "freeze": 3}[downstream]
    found = score_ranking(scores.tolist(), here.nodes_on_circuit())
    others = len(here.nodes) - 8
    assert found.recall == 1 - n / 8  # 0.75, 0.625
    assert found.auroc == pytest.approx(1 - n / 8 / 2)  # 0.875, 0.8125
    assert found.precision_at_k == pytest.approx((8 - n + n * n / (n + others)) / 8)
    assert found.average_precision == pytest.approx((8 - n) / 8 + n / 8 * 8 / (8 + others))


def test_what_it_sees_at_an_open_gate_is_twice_the_effect(asked, scored):
    """From 10 to -10 at slope 1 is a loss of 20; the gate had only 10 to lose."""
    here, scores = asked["both", "corrupted"], scored["both", "corrupted", "recompute"]
    subject = here.nodes.index(at("resid.0", "subject singular", here.last))
    slope = 1 - tanh(5 / 30) ** 2  # of the soft-cap
    assert scores[GRADIENT][subject].item() == pytest.approx(10 * slope, rel=1e-4)
    assert scores[EXACT][subject].item() == pytest.approx(ANSWER, rel=1e-4)


def test_the_shut_gate_has_no_slope():
    gates = torch.tensor([-10.0, 10.0], requires_grad=True)
    (slopes,) = torch.autograd.grad(gelu(gates, approximate="tanh").sum(), gates)
    assert slopes.tolist() == [0, 1]


def test_with_zero_as_reference_nothing_is_off_to_on(asked, scored):
    here = asked["both", "zero"]
    for downstream, method in product(("recompute", "freeze"), (GRADIENT, "RelP")):
        scores = scored["both", "zero", downstream][method]
        assert score_ranking(scores.tolist(), here.nodes_on_circuit()).auroc == 1


def test_the_size_of_an_activation_says_little(asked, scored):
    for cell in CELLS:
        on = asked[cell[:2]].nodes_on_circuit()
        for method in ("activation", "change of activation"):
            found = score_ranking(scored[cell][method].tolist(), on)
            assert found.auroc < 0.8
            assert found.precision_at_k <= 0.5


def test_joint_integrated_gradients_share_a_sites_effect(planted, asked):
    """At the end of the circuit the two forms have the site's whole effect, to 1 in 1,000."""
    here = asked["both", "corrupted"]
    effects = integrated_effects(
        planted, here.prompt, here.metric, n=10, reference=here.reference, downstream="recompute"
    )
    score = bind(here.metric, planted)
    clean, other = (score(planted(text)) for text in (BOTH.text, BOTH.corrupted))
    forms = [effects.of(path(number, here.last)[-1]) for number in ("singular", "plural")]
    assert sum(forms) == pytest.approx((clean - other).item(), rel=1e-3)


# edges


def test_knock_outs_find_the_edges_of_the_circuit(asked, edges_scored):
    for reference, scores in edges_scored.items():
        here = asked["both", reference]
        exact = scores["exact knock-out x measured effect"]
        on = torch.tensor(here.edges_on_circuit())
        torch.testing.assert_close(exact[on], torch.full_like(exact[on], ANSWER), rtol=1e-4, atol=0)
        assert exact[~on].abs().max() < 2e-5 * ANSWER


def test_knock_outs_lose_what_the_weights_say(asked):
    """Also along edges that lead nowhere; all others lose nothing."""
    here = asked["both", "corrupted"]
    last = here.last
    lost = dict(zip(here.edges, losses(here).tolist(), strict=True))
    expected = {}
    # the dog is singular and the cars plural: what the partner does not have is lost
    for animal, thing, sign in (("singular", "plural", 1), ("plural", "singular", -1)):
        copied, subject, verb, answer = path(animal, last)
        subject_after = at("resid.1", f"subject {animal}", last)
        dead, dead_0, dead_1 = (
            at(site, f"dead-end {animal}", last) for site in ("attn.0", "resid.0", "resid.1")
        )
        idle, idle_after = (at(site, f"idle {animal}", last) for site in ("mlp.1", "resid.1"))
        attractor, read, after = (
            at(site, f"attractor {thing}", last - 1) for site in ("attn.0", "resid.0", "resid.1")
        )
        taken, taken_after = (at(s, f"attractor {thing}", last) for s in ("attn.1", "resid.1"))
        expected |= {
            (copied, subject): sign,
            (subject, verb): 5 * sign,
            (subject, subject_after): sign,
            (verb, answer): 5 * sign,
            (answer, METRIC): ANSWER,
            (dead, dead_0): 2 * sign,
            (dead_0, idle): 3 * sign,
            (dead_0, dead_1): 2 * sign,
            (idle, idle_after): 3 * sign,
            (attractor, read): sign,
            (read, after): sign,
            (taken, taken_after): sign,
            (at("resid.0", animal, 2), at("attn.1", f"mute {animal}", last)): 4 * sign,
            (at("resid.0", thing, 5), at("attn.1", f"attractor {thing}", last)): sign,
        }
        for noun, pos, name in ((animal, 2, "dog"), (thing, 5, "car")):
            word = f"word {name}{'s' * (noun == 'plural')}"
            for feature, size in ((noun, 1), (f"noun {noun}", 2), (word, 3)):
                edge = (at("resid.0", feature, pos), at("resid.1", feature, pos))
                expected[edge] = size * sign
            edge = (at("mlp.0", f"noun {noun}", pos), at("resid.0", f"noun {noun}", pos))
            expected[edge] = 2 * sign
    assert {edge: lost.pop(edge) for edge in expected} == pytest.approx(expected, rel=1e-3)
    assert max(map(abs, lost.values())) < 1e-3


def test_knocking_out_the_edges_of_a_graph_loses_the_same(planted, asked):
    """`edge_knockout` against `losses`; the graph has every edge that loses, but to what is off."""
    here = asked["both", "corrupted"]
    how = {"max_latents": None, "reference": here.reference}
    graph = attribute(planted, here.prompt, here.metric, **how)
    pairs = zip(*graph.edges.nonzero(), strict=True)  # target, source
    ends = [(graph.nodes[source], graph.nodes[target]) for target, source in pairs]
    edges = [(source, target) for source, target in ends if isinstance(source, LatentNode)]
    found = edge_knockout(planted, here.prompt, here.metric, graph, edges=edges, kind=patch())
    named = [(s, METRIC if isinstance(t, LogitNode) else t) for s, t in edges]
    lost = dict(zip(here.edges, losses(here).tolist(), strict=True))
    expected = [lost[edge] for edge in named]
    assert found.table["pre_activation_change"].tolist() == pytest.approx(expected, abs=1e-3)
    on = {node for node, act in zip(here.nodes, here.acts.tolist(), strict=True) if act} | {METRIC}
    loses = {edge for edge, size in lost.items() if abs(size) > 1e-3}
    assert {(s, t) for s, t in loses if t in on} == loses & set(named) != loses


def test_graphs_find_the_edges_of_their_own_prompt(asked, edges_scored):
    """Against zero all of them; against the partner all but those to latents that are off."""
    for reference, scores in edges_scored.items():
        on = asked["both", reference].edges_on_circuit()
        for name, values in scores.items():
            found = score_ranking(values.tolist(), on)
            if name == "local Jacobian alone":
                assert found.auroc < 0.99  # the gradient clears the edges that lead nowhere
                assert found.precision_at_k < 1
            elif reference == "zero" or "both prompts" in name or "knock-out" in name:
                assert found == score_ranking([1, 0], [True, False])
            else:
                assert found.recall == 0.625  # five of eight: three targets are off
                assert found.auroc == 0.8125
    assert len(edges_scored["zero"]) == 6
    assert len(edges_scored["corrupted"]) == 10


# scores


def random_ranking(seed, n):
    """Few different scores, so that there are ties; both kinds of items."""
    generator = np.random.default_rng(seed)
    y = generator.permutation(np.arange(n) < generator.integers(1, n))
    return generator.integers(0, max(2, n // 2), n).astype(float), y


@pytest.mark.parametrize("seed", range(30))
def test_auroc_is_the_share_of_pairs_in_order(seed):
    x, y = random_ranking(seed, 12)
    pairs = [(a > b) + (a == b) / 2 for a in x[y] for b in x[~y]]
    assert auroc(x, y) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("seed", range(30))
def test_average_precision_goes_through_all_thresholds(seed):
    x, y = random_ranking(seed, 12)
    total, recall = 0.0, 0.0
    for threshold in sorted(set(x), reverse=True):
        chosen = x >= threshold
        now = (chosen & y).sum() / y.sum()
        total += (now - recall) * (chosen & y).sum() / chosen.sum()
        recall = now
    assert average_precision(x, y) == pytest.approx(total)


@pytest.mark.parametrize("seed", range(20))
def test_precision_at_k_is_expected_over_every_way_to_break_ties(seed):
    x, y = random_ranking(seed, 6)
    for k in (1, 3, int(y.sum())):
        precisions = [
            np.mean([y[i] for i in sorted(order, key=lambda i: -x[i])[:k]])
            for order in permutations(range(6))
        ]
        assert precision_at_k(x, y, k) == pytest.approx(np.mean(precisions))


def test_scores_count_by_size_and_nothing_below_the_floor():
    found = score_ranking([-3.0, 2.0, 1e-5, 0.0], [True, True, True, False])
    assert found.recall == pytest.approx(2 / 3)
    assert found.auroc == pytest.approx(5 / 6)
