"""What every study refuses before it computes anything, in one sentence."""

from functools import partial
from inspect import signature
from typing import Any

import pytest

import experiments
from attribution import integrated_each, logit, logit_diff
from circuits import ErrorNode, LatentNode, Prompt, Site, SplicedModel, UserError
from experiments import (
    ablate_each,
    ablation_table,
    attribution_report,
    check_dictionaries,
    compare_kinds,
    cross_task,
    dataset_circuit,
    edge_knockout,
    faithfulness_curve,
    minimality,
    path_patch,
    steer,
)
from experiments.kinds import mean_of, patch, zero
from experiments.pooled import measured_by_kind, measured_effects, pooled_effects
from experiments.spans import ALL, SpanNode, aligned, whole
from tests.experiments.test_pooled import PROMPTS, TEXTS, pair

METRIC = logit_diff(PROMPTS[0])
NODE, OTHER = (SpanNode(Site(0, "mlp"), latent, "2") for latent in (3, 5))
ANYWHERE = SpanNode(Site(0, "mlp"), 3, ALL)
STEERED = "mlp.0/latent.3"
NO_GRAPH: Any = None
LATENT = LatentNode(Site(0, "mlp"), 3, 2)
KINDS = [patch(), zero()]

IN_PASSES: dict[Any, tuple[Any, ...]] = {
    ablate_each: (PROMPTS[0], METRIC, [LATENT]),
    ablation_table: (PROMPTS,),
    attribution_report: (PROMPTS,),
    check_dictionaries: (list(TEXTS),),
    partial(compare_kinds, kinds=KINDS): (PROMPTS, [NODE]),
    dataset_circuit: (PROMPTS,),
    edge_knockout: (PROMPTS[0], METRIC, None),
    partial(faithfulness_curve, sizes=[1]): (PROMPTS, logit_diff, [NODE]),
    minimality: (PROMPTS, logit_diff, [NODE]),
    path_patch: (PROMPTS[0], METRIC, [LATENT]),
    steer: (PROMPTS, [STEERED]),
    integrated_each: (PROMPTS[0], METRIC, [LATENT]),
    measured_effects: (PROMPTS, None, logit_diff, [NODE], patch()),
    measured_by_kind: (PROMPTS, None, logit_diff, [NODE], KINDS),
}
"""Every function that goes in passes, with what comes after the model."""


def plain(study):
    return getattr(study, "func", study)


def named(study) -> str:
    return plain(study).__name__


def test_every_study_in_passes_is_among_them():
    public = [getattr(experiments, name) for name in experiments.__all__ if name[0].islower()]
    in_passes = {f for f in public if "batch_size" in signature(f).parameters}
    assert in_passes <= {plain(study) for study in IN_PASSES}


@pytest.mark.parametrize("study", IN_PASSES, ids=named)
@pytest.mark.parametrize("batch_size", [0, -3, 2.5, True, "8"])
def test_a_batch_is_a_whole_number_of_rows(model, study, batch_size):
    says = f"batch_size={batch_size!r}; give a whole number from 1 on"
    with pytest.raises(UserError, match=says):
        study(model, *IN_PASSES[study], batch_size=batch_size)


@pytest.mark.parametrize("study", [check_dictionaries, edge_knockout, path_patch, steer], ids=named)
def test_a_batch_is_left_open_only_where_it_is_then_chosen(model, study):
    assert signature(study).parameters["batch_size"].default is not None
    with pytest.raises(UserError, match="batch_size=None; give a whole number"):
        study(model, *IN_PASSES[study], batch_size=None)


@pytest.mark.parametrize(
    "ask",
    [
        lambda model, kind: ablation_table(model, PROMPTS, kind=kind),
        lambda model, kind: attribution_report(model, PROMPTS, kind=kind),
        lambda model, kind: dataset_circuit(model, PROMPTS, kind=kind),
        lambda model, kind: compare_kinds(model, PROMPTS, [NODE], kinds=[zero(), kind]),
        lambda model, kind: cross_task(model, {"a": [ANYWHERE]}, {"a": PROMPTS}, kind=kind),
        lambda model, kind: edge_knockout(model, PROMPTS[0], METRIC, NO_GRAPH, kind=kind),
        lambda model, kind: path_patch(model, PROMPTS[0], METRIC, [LATENT], kind=kind),
        lambda model, kind: faithfulness_curve(
            model, PROMPTS, logit_diff, [NODE], sizes=[1], reference=kind
        ),
        lambda model, kind: faithfulness_curve(
            model, PROMPTS[0], METRIC, [LATENT], sizes=[1], reference=kind
        ),
        lambda model, kind: minimality(model, PROMPTS, logit_diff, [NODE], reference=kind),
    ],
)
@pytest.mark.parametrize("kind", ["patch", "", zero], ids=["a name", "an empty one", "a function"])
def test_a_name_or_a_function_is_no_kind_of_ablation(model, ask, kind):
    with pytest.raises(UserError, match=r"(kind|reference)=.* is no kind of ablation; give patch"):
        ask(model, kind)


OVER_PROMPTS: dict[Any, tuple[Any, ...]] = {
    ablation_table: (),
    partial(ablation_table, nodes=[NODE]): (),
    attribution_report: (),
    dataset_circuit: (),
    partial(compare_kinds, kinds=[zero(), mean_of(TEXTS)]): ([NODE],),
}
"""Studies of pairs, with what comes after the prompts."""


def answer(prompt):
    """A metric that would do for a text."""
    return logit("w19")


@pytest.mark.parametrize("study", OVER_PROMPTS, ids=named)
def test_a_text_is_no_pair(model, study):
    def ask(prompts):
        kind = {} if "kinds" in getattr(study, "keywords", {}) else {"kind": zero()}
        study(model, prompts, *OVER_PROMPTS[study], metric=answer, **kind)

    with pytest.raises(UserError, match=rf"prompt 0 is '{TEXTS[0]}'; give Prompt\(text, target"):
        ask(list(TEXTS))
    with pytest.raises(UserError, match=f"prompt 2 is '{TEXTS[2]}'; give Prompt"):
        ask([*PROMPTS[:2], TEXTS[2]])
    for nothing in ([], None, TEXTS[0], PROMPTS[0], iter(PROMPTS)):
        with pytest.raises(UserError, match="give a list of prompts, at least one"):
            ask(nothing)


def test_prompts_to_test_on_are_pairs_too(model):
    studies: dict[Any, str] = {ablation_table: "heldout", dataset_circuit: "test"}
    text: Any = "w1 w2"
    for study, name in studies.items():
        with pytest.raises(UserError, match="prompt 0 is 'w1 w2'; give Prompt"):
            study(model, PROMPTS, kind=zero(), **{name: [text]})
        with pytest.raises(UserError, match="give a list of prompts"):
            study(model, PROMPTS, kind=zero(), **{name: None})
    with pytest.raises(UserError, match="prompt 0 is 'w1 w2'; give Prompt"):
        cross_task(model, {"a": [ANYWHERE]}, {"a": [text]}, kind=zero())


def test_circuits_and_steering_take_texts_and_nothing_else(model):
    texts = list(TEXTS)
    how = {"reference": mean_of(texts), "n_random": 0}
    curve = faithfulness_curve(model, texts, answer, [NODE, OTHER], sizes=[1], **how)
    assert curve.n_prompts == len(texts)
    assert curve.provenance["settings"]["reference_settings"]["prompts"]["n"] == len(texts)
    for ask in (
        lambda prompts: faithfulness_curve(model, prompts, answer, [NODE], sizes=[1], **how),
        lambda prompts: minimality(model, prompts, answer, [NODE], reference=how["reference"]),
        lambda prompts: steer(model, prompts, [STEERED], answer),
    ):
        with pytest.raises(UserError, match="prompt 1 is 3; give texts or Prompts"):
            ask([TEXTS[0], 3])


@pytest.mark.parametrize("study", [ablation_table, dataset_circuit], ids=named)
def test_both_say_in_one_way_that_prompts_are_no_others(model, study):
    """Those as they are, those turned round, and how many of all that were given."""
    turned = Prompt(PROMPTS[1].corrupted or "", corrupted=PROMPTS[1].text, target="w3", foil="w4")
    other = Prompt("w2 w2 w2 w2 w2 w2 w2", corrupted="w3 w2 w2 w2 w2 w2 w2", target="w3")
    name, what = {ablation_table: ("heldout", "held-out"), dataset_circuit: ("test", "test")}[study]
    says = (
        f"2 of 3 {what} texts are among the prompts, 1 as a text of the other split "
        rf"\('{TEXTS[0]}'\) and 1 as a pair of the other split, reversed \('{turned.text}'\); "
        "a result is tested on others"
    )
    with pytest.raises(UserError, match=says):
        study(model, PROMPTS, **{name: [PROMPTS[0], turned, other]})


@pytest.mark.parametrize("max_latents", [-1, 0, 2.5, "all"])
def test_a_table_has_at_least_one_latent(model, max_latents):
    says = rf"max_latents={max_latents!r}; give a whole number from 1 on, or None"
    with pytest.raises(UserError, match=says):
        ablation_table(model, PROMPTS, max_latents=max_latents)


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        (
            [LATENT],
            "mlp.0/latent.3@2 is no node at a span; give nodes at spans, such as dataset_circuit",
        ),
        ([NODE, "mlp.0/latent.3@2"], "mlp.0/latent.3@2 is no node at a span"),
        ([ErrorNode(Site(0, "mlp"), 2)], "mlp.0/error@2 is no node at a span"),
        ("mlp.0/latent.3@2", "give a list of nodes at spans, .*; got str"),
        (NODE, "got SpanNode"),
        (3, "got int"),
    ],
)
def test_what_is_no_node_at_a_span_is_told(model, nodes, says):
    with pytest.raises(UserError, match=says):
        ablation_table(model, PROMPTS, nodes=nodes)
    with pytest.raises(UserError, match=says):
        compare_kinds(model, PROMPTS, nodes, kinds=KINDS)


def test_an_error_is_no_latent(model):
    error = SpanNode(Site(0, "mlp"), None, "2")
    with pytest.raises(UserError, match=r"mlp\.0/error@2 is an error, and latents are tested here"):
        ablation_table(model, PROMPTS, nodes=[NODE, error])


def test_a_latent_given_twice_is_tested_once(model):
    """And corrected for once: the tables are those without the repetition."""
    how: dict[str, Any] = {"n_controls": 2, "n_bootstrap": 100, "n_permutations": 200}
    once, twice = (
        ablation_table(model, PROMPTS, nodes=nodes, **how)
        for nodes in ([NODE, OTHER], [NODE, OTHER, NODE, NODE])
    )
    assert twice.nodes == once.nodes
    assert len(set(once.nodes)) == 2
    assert twice.frame().equals(once.frame())
    how = {"kinds": KINDS, "n_bootstrap": 100, "n_permutations": 200}
    once, twice = (
        compare_kinds(model, PROMPTS, nodes, **how)
        for nodes in ([NODE, OTHER], [NODE, OTHER, NODE])
    )
    assert twice.nodes == once.nodes == (NODE, OTHER)
    assert twice.frame().equals(once.frame())


@pytest.fixture
def no_pass(monkeypatch):
    """A model that must not run."""
    monkeypatch.setattr(SplicedModel, "forward", lambda *_, **__: pytest.fail("a pass was made"))


COMPARED = partial(compare_kinds, kinds=KINDS)


@pytest.mark.parametrize(
    ("study", "given", "option"),
    [
        (ablation_table, (), "n_bootstrap=50"),
        (ablation_table, (), "n_permutations=0"),
        (ablation_table, (), "n_controls=-1"),
        (COMPARED, ([NODE],), "n_bootstrap=50"),
        (COMPARED, ([NODE],), "n_permutations=0"),
        (dataset_circuit, (), "n_bootstrap=50"),
        (dataset_circuit, (), "k=0"),
        (steer, ([STEERED],), "n_bootstrap=50"),
    ],
)
def test_numbers_of_draws_are_refused_before_the_first_pass(model, no_pass, study, given, option):
    name, value = option.split("=")
    with pytest.raises(UserError, match=f"{option}; "):
        study(model, PROMPTS, *given, **{name: int(value)})


@pytest.mark.parametrize("estimator", ["ig", None, 3])
def test_an_estimator_is_a_function(model, no_pass, estimator):
    says = f"estimator={estimator!r}; give a function: total_effects, integrated_effects"
    with pytest.raises(UserError, match=says):
        dataset_circuit(model, PROMPTS, estimator=estimator)


@pytest.mark.parametrize("k", ["5", 2.5])
def test_a_circuit_has_a_whole_number_of_nodes(model, no_pass, k):
    with pytest.raises(UserError, match=f"k={k!r}; give a whole number from 1 on"):
        dataset_circuit(model, PROMPTS, k=k)


@pytest.mark.parametrize(
    "ask",
    [
        lambda model, spans: ablation_table(model, PROMPTS, spans=spans),
        lambda model, spans: compare_kinds(model, PROMPTS, [NODE], kinds=KINDS, spans=spans),
        lambda model, spans: dataset_circuit(model, PROMPTS, spans=spans),
        lambda model, spans: faithfulness_curve(
            model, PROMPTS, logit_diff, [NODE], sizes=[1], spans=spans
        ),
        lambda model, spans: minimality(model, PROMPTS, logit_diff, [NODE], spans=spans),
        lambda model, spans: steer(model, PROMPTS, [STEERED], spans=spans),
        lambda model, spans: measured_effects(model, PROMPTS, spans, logit_diff, [NODE], zero()),
        lambda model, spans: pooled_effects(model, PROMPTS, spans, logit_diff, zero()),
    ],
)
@pytest.mark.parametrize("prompts", [PROMPTS[:2], [*PROMPTS, PROMPTS[0]]], ids=["2", "4"])
def test_spans_are_of_the_prompts(model, no_pass, ask, prompts):
    with pytest.raises(UserError, match=f"3 prompts and spans of {len(prompts)}; give at least"):
        ask(model, aligned(model, prompts))


@pytest.mark.parametrize(
    ("study", "name"), [(ablation_table, "heldout"), (dataset_circuit, "test")]
)
def test_prompts_to_test_on_have_the_spans_of_the_others(model, no_pass, study, name):
    """Forgotten, they would be positions, at which no node is: a mean of 0 everywhere."""
    others = [pair("w3 w5 w9 w2 w8 w9 w30", 1)]
    how: dict[str, Any] = {name: others, "spans": whole(model, PROMPTS)}
    says = f"the prompts have the spans all and those to test on 1, 2, .*; give {name}_spans="
    with pytest.raises(UserError, match=says):
        study(model, PROMPTS, **how)
    with pytest.raises(UserError, match=says):
        study(model, PROMPTS, **how, **{f"{name}_spans": aligned(model, others)})
    with pytest.raises(UserError, match="1 prompts and spans of 3"):
        study(model, PROMPTS, **how, **{f"{name}_spans": whole(model, PROMPTS)})
