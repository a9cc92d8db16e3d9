"""Over many prompts F is a ratio of means, and each number is a pass by hand for each prompt."""

import numpy as np
import pytest

from attribution import attribute, logit_diff
from attribution.metrics import bind
from circuits import ErrorNode, LatentNode, Prompt, Reference, Site, UserError
from experiments.circuit.cases import CircuitCases, rows_in
from experiments.circuit.faithfulness import faithfulness_curve
from experiments.circuit.faithfulness_result import CircuitScore, FaithfulnessCurve
from experiments.circuit.random_circuits import matched_circuits
from experiments.kinds import AblationKind, mean_of, patch, resample, zero
from experiments.pooled import pairs_of
from experiments.spans import SpanNode, Spans, aligned, whole
from experiments.statistics import MIB_PROPORTIONS, ratio_interval
from graphs import AttributionGraph

TEXTS = (
    ("w1 w5 w9 w2 w5 w9 w30", "w1 w20 w9 w33 w5 w21 w14"),
    ("w4 w5 w6 w2 w8 w9 w30", "w4 w5 w20 w2 w26 w9 w35"),
    ("w7 w5 w3 w2 w11 w9 w12", "w27 w5 w3 w22 w11 w9 w16"),
)
PROMPTS = [Prompt(text, "w19", "w31", corrupted) for text, corrupted in TEXTS]
DONORS = ["w3 w25 w9 w12 w8 w29 w34", "w22 w6 w19 w2 w15 w9 w17"]
KINDS = {
    "patch": patch(),
    "zero": zero(),
    "mean": mean_of(DONORS),
    "resample": resample(DONORS, n=2),
}
CONVENTIONS = [
    (errors, downstream)
    for errors in ("kept", "scored", "removed")
    for downstream in ("recompute", "freeze")
    if (errors, downstream) != ("removed", "freeze")  # no error is left to freeze
]


def all_nodes(model, spans, kind, errors):
    """Every candidate, in the order of their numbers."""
    cases = CircuitCases.of(
        model, PROMPTS, spans, logit_diff, kind, errors=errors, downstream="recompute"
    )
    return [cases.space.node(code) for code in cases.codes.tolist()]


def shuffled(nodes, seed=0):
    return [nodes[i] for i in np.random.default_rng(seed).permutation(len(nodes))]


def by_hand(model, prompt, reference, circuit, *, errors, downstream) -> float:
    """One pass in which every latent and error outside of `circuit` is given its reference value.

    So is one that is off in the prompt and in the reference: the prompt does not have it.
    """
    ids, score = model.tokens(prompt), bind(logit_diff(prompt), model)
    clean = Reference("clean", model.trace(ids))

    def edit_of(site):
        here = [node for node in circuit if node.site == site]
        has = (clean.acts(site) != 0) | (reference.acts(site) != 0)

        def edit(acts, error):
            new_acts, new_error = reference.acts(site)[None].clone(), error.clone()
            if errors != "kept":
                new_error[0, 1:] = reference.error(site)[1:]  # not at BOS
            for node in here:
                if isinstance(node, ErrorNode):
                    new_error[0, node.pos] = error[0, node.pos]
                elif has[node.pos, node.latent]:
                    new_acts[0, node.pos, node.latent] = acts[0, node.pos, node.latent]
            return new_acts, new_error

        return edit

    made = {site: edit_of(site) for site in model.sites}
    return score(model.run(ids, made, downstream=downstream, output=score.output)).item()


def members(spans: Spans, nodes, i):
    return {one for node in nodes for one in spans.nodes(node, i)}


@pytest.mark.parametrize(("errors", "downstream"), CONVENTIONS)
@pytest.mark.parametrize(
    ("name", "how"), [("patch", aligned), ("mean", aligned), ("resample", whole)]
)
def test_everything_keeps_everything_and_nothing_keeps_nothing(
    model, name, how, errors, downstream
):
    spans, kind = how(model, PROMPTS), KINDS[name]
    nodes = all_nodes(model, spans, kind, errors)
    curve = faithfulness_curve(
        model, PROMPTS, logit_diff, nodes, sizes=[0, 1.0], spans=spans, reference=kind,
        errors=errors, downstream=downstream, n_random=0,
    )  # fmt: skip
    none, everything = curve.scores
    assert (none.size, everything.size) == (0, curve.n_nodes) == (0, len(nodes))
    assert none.faithfulness == pytest.approx(0, abs=1e-4)
    if errors == "removed":  # what latents carry without any error
        assert abs(everything.faithfulness - 1) > 0.01
    else:
        assert everything.faithfulness == pytest.approx(1, abs=1e-4)
        assert everything.completeness == pytest.approx(0, abs=1e-4)
        assert none.completeness == pytest.approx(1, abs=1e-4)
    clean = [bind(logit_diff(p), model)(model(p)[:, -1:]).item() for p in PROMPTS]
    assert curve.full == pytest.approx(np.mean(clean), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "how", "errors", "downstream"),
    [
        ("patch", aligned, "kept", "recompute"),
        ("patch", whole, "scored", "freeze"),
        ("zero", whole, "removed", "recompute"),
        ("resample", aligned, "scored", "recompute"),
        ("mean", whole, "kept", "freeze"),
    ],
)
def test_every_number_is_a_slow_loop_over_prompts_donors_and_circuits(
    model, name, how, errors, downstream
):
    spans, kind = how(model, PROMPTS), KINDS[name]
    nodes = shuffled(all_nodes(model, spans, kind, errors))
    size = len(nodes) // 2

    def m(circuit):
        """`[n_prompts]`, over donors the mean."""
        values = []
        for i, prompt in enumerate(PROMPTS):
            references = kind.references(model, prompt)
            assert len(references) == (2 if name == "resample" else 1)
            chosen = members(spans, circuit, i)
            values.append(
                np.mean(
                    [
                        by_hand(model, prompt, r, chosen, errors=errors, downstream=downstream)
                        for r in references
                    ]
                )
            )
        return np.array(values)

    clean = np.array([bind(logit_diff(p), model)(model(p)[:, -1:]).item() for p in PROMPTS])
    empty, gap = m([]), clean - m([])
    curve = faithfulness_curve(
        model, PROMPTS, logit_diff, nodes, sizes=[size], spans=spans, reference=kind,
        errors=errors, downstream=downstream, n_random=0, batch_size=2,
    )  # fmt: skip
    (score,) = curve.scores
    here, rest = m(nodes[:size]) - empty, m(nodes[size:]) - empty
    assert score.faithfulness == pytest.approx(here.mean() / gap.mean(), abs=1e-4)
    assert score.completeness == pytest.approx(rest.mean() / gap.mean(), abs=1e-4)
    assert score.necessity == 1 - score.completeness
    low, high = ratio_interval(here[:, None], gap, pairs_of(PROMPTS))
    assert (score.low, score.high) == pytest.approx((low[0], high[0]), rel=1e-3, abs=1e-3)
    usable = np.abs(gap) > 0.1 * np.abs(clean)
    assert curve.n_flat == (~usable).sum()
    quantiles = np.quantile((here / gap)[usable], [0.05, 0.95])
    assert (score.example_low, score.example_high) == pytest.approx(tuple(quantiles), abs=1e-3)


def test_errors_scored_lie_between_kept_and_removed(model):
    """All in the circuit they are as kept, none in it as removed."""
    spans = aligned(model, PROMPTS)
    nodes = shuffled(all_nodes(model, spans, patch(), "scored"))
    latents = [node for node in nodes if node.latent is not None][:300]
    errors = [node for node in nodes if node.latent is None]

    def m(ranked, errors):
        curve = faithfulness_curve(
            model, PROMPTS, logit_diff, ranked, sizes=[len(ranked)], errors=errors, n_random=0
        )
        return curve.empty + curve.scores[0].faithfulness * (curve.full - curve.empty)

    assert m([*latents, *errors], "scored") == pytest.approx(m(latents, "kept"), abs=1e-4)
    assert m(latents, "scored") == pytest.approx(m(latents, "removed"), abs=1e-4)
    assert abs(m(latents, "kept") - m(latents, "removed")) > 1e-3


def test_one_prompt_alone_is_the_same_as_among_one(model):
    prompt = PROMPTS[0]
    nodes = shuffled(all_nodes(model, aligned(model, PROMPTS), patch(), "kept"))
    there = set(all_nodes_of(model, prompt))
    active = [node for node in nodes if node in there][:200]
    one = faithfulness_curve(
        model, prompt, logit_diff(prompt), [LatentNode(n.site, n.latent, int(n.span)) for n in
        active], sizes=[20, 200], reference=patch(), n_random=3,
    )  # fmt: skip
    among = faithfulness_curve(model, [prompt], logit_diff, active, sizes=[20, 200], n_random=3)
    for a, b in zip(one.scores, among.scores, strict=True):
        assert a.faithfulness == pytest.approx(b.faithfulness, abs=1e-5)
        assert a.random_high == pytest.approx(b.random_high, abs=1e-5)
    assert (one.metric, among.metric) == (logit_diff(prompt).name, "logit_diff")


def all_nodes_of(model, prompt):
    cases = CircuitCases.of(
        model, [prompt], aligned(model, [prompt]), logit_diff, patch(),
        errors="kept", downstream="recompute",
    )  # fmt: skip
    return [cases.space.node(code) for code in cases.codes.tolist()]


def test_a_node_that_is_on_nowhere_does_nothing(model):
    nodes = all_nodes(model, aligned(model, PROMPTS), patch(), "kept")
    known, chosen = set(nodes), shuffled(nodes)[:100]
    site = model.sites[0]
    dead = next(node for latent in range(96) if (node := SpanNode(site, latent, "1")) not in known)
    curves = [
        faithfulness_curve(
            model, PROMPTS, logit_diff, ranked, sizes=[len(ranked)], n_random=2, seed=1
        )
        for ranked in (chosen, [dead, *chosen])
    ]
    one, other = (curve.scores[0] for curve in curves)
    assert (one.size, other.size) == (100, 101)
    assert one.faithfulness == pytest.approx(other.faithfulness, abs=1e-6)
    assert one.share == other.share == 100 / len(nodes)


def test_random_circuits_match_their_circuit_group_by_group():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 5, 60) * 10
    order = rng.permutation(60)
    circuits = np.zeros((3, 60), dtype=bool)
    for circuit, size in zip(circuits, (4, 12, 40), strict=True):
        circuit[order[:size]] = True
    found = matched_circuits(circuits, groups, 2000, seed=0)
    for circuit, draws in zip(circuits, found, strict=True):
        for group in np.unique(groups):
            held, there = circuit[groups == group].sum(), (groups == group).sum()
            assert (draws[:, groups == group].sum(1) == held).all()
            # each node of the group equally often: within 5 standard deviations
            share = held / there
            spread = np.sqrt(share * (1 - share) / 2000)
            assert np.abs(draws[:, groups == group].mean(0) - share).max() <= 5 * spread
    assert (found[0] <= found[1]).all()  # of one draw, the larger holds the smaller
    assert (found[1] <= found[2]).all()
    assert not (found == matched_circuits(circuits, groups, 2000, seed=1)).all()


@pytest.mark.parametrize("matched", ["site", "span"])
def test_the_band_is_of_circuits_matched_as_said(model, matched):
    """With whole groups in the circuit, every matched circuit is the circuit."""
    nodes = all_nodes(model, aligned(model, PROMPTS), patch(), "kept")
    sites = {node.site for node in nodes}
    last = max(sites)
    spans = {"1", "2"} if matched == "span" else {node.span for node in nodes}
    chosen = [n for n in nodes if n.site == last and n.span in spans]

    def score(matched):
        curve = faithfulness_curve(
            model, PROMPTS, logit_diff, chosen, sizes=[len(chosen)], n_random=3, matched=matched
        )
        assert curve.matched == matched
        return curve.scores[0]

    same = score(matched)
    assert same.random_low == pytest.approx(same.faithfulness, abs=1e-5)
    assert same.random_high == pytest.approx(same.faithfulness, abs=1e-5)
    if matched == "span":
        other = score("site")
        assert other.random_high > other.faithfulness + 1e-3


def curve_of(values, shares, random_means=None, n=1000) -> FaithfulnessCurve:
    nan = float("nan")
    scores = [
        CircuitScore(round(share * n), share, f, nan, nan, nan, nan, 0.0, random, nan, nan)
        for f, share, random in zip(
            values, shares, random_means or [nan] * len(values), strict=True
        )
    ]
    return FaithfulnessCurve(
        tuple(scores), "metric", 1.0, 0.0, n, 1, 0, "recompute", "kept", "zero", "site", {}
    )


def test_what_sums_a_curve_up_is_what_its_numbers_say():
    f = [0.0, 0.1, 0.2, 0.55, 0.4, 0.7, 0.95, 1.1, 1.05, 1.0]
    random = [0.0] * 8 + [0.5, 1.0]
    curve = curve_of(f, MIB_PROPORTIONS, random)
    x = np.array(MIB_PROPORTIONS)
    steps = np.diff(x)
    middles = (np.array(f)[1:] + np.array(f)[:-1]) / 2
    assert curve.cpr == pytest.approx((steps * middles).sum())
    off = np.abs(1 - np.array(f))
    assert curve.cmd == pytest.approx((steps * (off[1:] + off[:-1]) / 2).sum())
    logs = np.diff(np.log(x))
    assert curve.area == pytest.approx((logs * middles).sum() / logs.sum())
    excess = np.array(f) - random
    middles = (excess[1:] + excess[:-1]) / 2
    assert curve.excess_area == pytest.approx((logs * middles).sum() / logs.sum())
    assert (curve.k50, curve.k90) == (10, 100)
    below = curve_of([0.1, 0.4], [0.1, 0.5])
    assert below.k50 is None
    assert "k50 not reached" in repr(below)
    assert np.isnan(below.cpr)  # from a tenth to a half is not what MIB integrates over
    assert np.isnan(below.excess_area)  # no random circuits
    assert np.isnan(curve_of([0.4], [0.1]).area)


def test_shares_are_of_all_candidates_rounded_down(model):
    nodes = all_nodes(model, whole(model, PROMPTS), patch(), "kept")
    curve = faithfulness_curve(
        model, PROMPTS, logit_diff, shuffled(nodes), sizes=MIB_PROPORTIONS,
        spans=whole(model, PROMPTS), n_random=0,
    )  # fmt: skip
    counts = dict.fromkeys(int(share * len(nodes)) for share in MIB_PROPORTIONS)
    assert [score.size for score in curve.scores] == list(counts)
    assert curve.scores[-1].faithfulness == pytest.approx(1, abs=1e-4)
    measured = [score for score in curve.scores if score.size]
    by_hand = np.trapezoid(
        [s.faithfulness for s in measured], [s.size / len(nodes) for s in measured]
    )
    assert curve.cpr == pytest.approx(by_hand)


def test_a_graph_s_errors_rank_among_its_latents(model):
    prompt = PROMPTS[0]
    metric = logit_diff(prompt)
    graph = AttributionGraph.from_attribution(attribute(model, prompt, metric, max_latents=30))
    effect = graph.digraph.nodes
    found = [n for n in effect if isinstance(n, LatentNode | ErrorNode) and n.pos > 0]
    ranked = sorted(found, key=lambda node: -abs(effect[node]["effect"]))
    assert any(isinstance(node, ErrorNode) for node in ranked[:20])
    curves = [
        faithfulness_curve(
            model, prompt, metric, nodes, sizes=[20, len(ranked)], errors="scored", n_random=0
        )
        for nodes in (graph, ranked)
    ]
    for a, b in zip(*(curve.scores for curve in curves), strict=True):
        assert (a.size, a.faithfulness) == (b.size, pytest.approx(b.faithfulness, abs=1e-6))


def test_where_nothing_is_at_stake_it_refuses_or_counts_the_prompts(model):
    same = Prompt(PROMPTS[0].text, "w19", "w31")  # set to the values that it has anyway

    def values(model, prompt):
        itself = (Reference("same", model.trace(prompt)),)
        return itself if prompt is same else patch().references(model, prompt)

    how = {"sizes": [300], "n_random": 0, "reference": AblationKind("patch", values)}
    with pytest.raises(UserError, match=r"less than 10% of change"):
        faithfulness_curve(model, [same, same], logit_diff, [], **how)
    nodes = all_nodes(model, aligned(model, PROMPTS), patch(), "kept")
    curve = faithfulness_curve(model, [*PROMPTS, same], logit_diff, shuffled(nodes), **how)
    without = faithfulness_curve(model, PROMPTS, logit_diff, shuffled(nodes), **how)
    assert curve.n_flat == without.n_flat + 1
    assert curve.scores[0].example_high == pytest.approx(without.scores[0].example_high, abs=1e-4)


def test_rows_follow_the_memory(model):
    a_row = 3 * 4 * 8 * 96
    assert rows_in(model, 8, 10 * a_row) == 10
    assert rows_in(model, 8, 1000) == 1
    assert rows_in(model, 8) == 64


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"reference": "one"}, "the reference corrupted is of one prompt"),
        (
            {"nodes": [LatentNode(Site(0, "mlp"), 0, 1)]},
            "nodes of several prompts are nodes at spans",
        ),
        ({"nodes": "strange"}, "no span 'verb' for .* there is 1, 2, 3"),
        ({"matched": "layer"}, "choose site or span"),
        ({"sizes": [2.5]}, "shares of all up to 1.0"),
        ({"memory": "much"}, "write for example"),
    ],
)
def test_bad_arguments_are_refused(model, changed, message):
    arguments = {"nodes": [], "sizes": [0], "n_random": 0, **changed}
    if arguments["nodes"] == "strange":
        arguments["nodes"] = [SpanNode(model.sites[0], 0, "verb")]
    if "reference" in changed:
        arguments["reference"] = Reference("corrupted", model.trace(PROMPTS[0]))
    nodes = arguments.pop("nodes")
    with pytest.raises(UserError, match=message):
        faithfulness_curve(model, PROMPTS, logit_diff, nodes, **arguments)
