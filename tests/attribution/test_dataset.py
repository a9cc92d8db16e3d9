"""Tables over many prompts equal a plain loop; runs go on where they stopped, in bounded memory."""

import tracemalloc
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal

import attribution.many.dataset
from attribution import attribute, attribute_dataset, kl, log_prob, logit_diff, total_effects
from attribution.many.choice import choose_edges, choose_latents, each
from attribution.many.pooling import Space, edge_row, node_row
from attribution.many.prompt_store import PromptStore
from attribution.many.statistics import statistics
from attribution.record import record
from circuits import LatentNode, Prompt, Site, UserError, corrupted_reference, splice
from experiments.tasks import TASKS
from tests.random_gemma import chosen_dictionaries, random_dictionaries

TEXTS = ["w1 w5 w9", "w2 w5 w9", "w1 w6 w9", "w1 w5 w8"]
LONGER = [*TEXTS[:3], "w1 w5 w9 w2 w5 w9"]
ALIGNED = [p for p in TASKS["agreement_pp"].prompts(n=12) if len(p.text.split()) == 5][:4]
MIXED = TASKS["ioi"].prompts(n=4)
NUMBERS = ["mean", "mean_abs", "sign_consistency", "active", "cancellation"]


def third_over_fourth(prompt):
    return logit_diff("w3", "w4")


def place(node, positions):
    """The name of a node's key, as tables have it."""
    name = "logit/logit_diff" if str(node).startswith("logit/") else str(node)
    return name if positions == "aligned" else name.split("@")[0]


def slow_statistics(by_prompt):
    """From a dict a prompt, of lists of terms by name, and the same of where it is active."""
    table = {}
    for name in {name for terms, _ in by_prompt for name in terms}:
        values = [sum(terms.get(name, [])) for terms, _ in by_prompt]
        sizes = [sum(map(abs, terms.get(name, []))) for terms, _ in by_prompt]
        mean = sum(values) / len(values)
        table[name] = {
            "mean": mean,
            "mean_abs": sum(map(abs, values)) / len(values),
            "sign_consistency": sum(np.sign(v) == np.sign(mean) for v in values) / len(values),
            "active": sum(name in active for _, active in by_prompt) / len(values),
            "cancellation": 1 - abs(sum(values)) / sum(sizes) if any(sizes) else np.nan,
        }
    return table


def latents_of(effects):
    for site, e in effects.sites.items():
        for latent, pos, effect, act in zip(
            *(x.tolist() for x in (e.latent, e.pos, e.effect, e.acts)), strict=True
        ):
            yield LatentNode(site, latent, pos), effect, act != 0


def slow_nodes(all_effects, positions, max_latents):
    """The chosen latents' names, and the statistics of all nodes, with dictionaries alone."""
    sizes = defaultdict(float)
    for effects in all_effects:
        values = defaultdict(float)
        for node, effect, _ in latents_of(effects):
            values[place(node, positions)] += effect
        for name, value in values.items():
            sizes[name] += abs(value)
    chosen = set(sorted(sizes, key=lambda name: -sizes[name])[:max_latents])
    by_prompt = []
    for effects in all_effects:
        terms, active = defaultdict(list), set()
        errors = defaultdict(float)
        for site, e in effects.sites.items():
            terms[f"{site}/bias"].append(e.bias_effect)
            for pos, effect in enumerate(e.error_effect.tolist()):
                errors[f"{site}/error@{pos}"] += effect
        for node, effect, on in latents_of(effects):
            name = place(node, positions)
            if name not in chosen:
                errors[f"{node.site}/error@{node.pos}"] += effect
                continue
            terms[name].append(effect)
            active |= {name} if on else set()
        tokens = {f"token@{pos}": x for pos, x in enumerate(effects.token_effect.tolist())}
        for name, effect in {**errors, **tokens}.items():
            terms[place(name, positions)].append(effect)
        terms["logit/logit_diff"].append(effects.value)
        active |= {name for name in terms if "/latent." not in name}
        by_prompt.append((terms, active))
    return chosen, slow_statistics(by_prompt)


def assert_equals_slow(table, names, slow):
    """The table's rows are the slow one's, to the float32 in which effects are kept."""
    assert len(set(names)) == len(names)
    scale = max(row["mean_abs"] for row in slow.values())
    for name, (_, row) in zip(names, table.iterrows(), strict=True):
        for column in ("mean", "mean_abs"):
            assert row[column] == pytest.approx(slow[name][column], rel=1e-5, abs=1e-6 * scale)
        if row["mean_abs"] > 1e-5 * scale:  # below, a sign is rounding
            for column in ("sign_consistency", "active", "cancellation"):
                assert row[column] == pytest.approx(slow[name][column], abs=1e-5), (name, column)
    left_out = [slow[name]["mean_abs"] for name in set(slow) - set(names)]
    assert max(left_out, default=0) <= table["mean_abs"].min() * (1 + 1e-5) + 1e-12


@pytest.fixture(scope="module", params=["aligned", "summed"])
def case(request, tiny):
    """Positions, prompts, and the data set's attribution on the bundled model."""
    prompts = ALIGNED if request.param == "aligned" else MIXED
    result = attribute_dataset(
        tiny, prompts, positions=request.param, max_latents=25, max_edges=10**6
    )
    return request.param, prompts, result


def test_nodes_equal_a_plain_loop_over_prompts(tiny, case):
    positions, prompts, result = case
    table = result.nodes_table()
    all_effects = [total_effects(tiny, prompt, logit_diff(prompt)) for prompt in prompts]
    chosen, slow = slow_nodes(all_effects, positions, 25)
    assert set(table.node[table.kind == "latent"]) == chosen
    assert set(table.node) == set(slow)
    assert_equals_slow(table, table.node.tolist(), slow)
    assert (table.low <= table["mean"]).all()
    assert (table["mean"] <= table.high).all()


def test_edges_equal_a_plain_loop_over_prompts(tiny, case):
    positions, prompts, result = case
    table = result.edges_table()
    chosen = set(result.nodes_table().query("kind == 'latent'").node)
    by_prompt = []
    for prompt in prompts:
        latents = [
            node
            for node, _, on in latents_of(total_effects(tiny, prompt, logit_diff(prompt)))
            if on and place(node, positions) in chosen
        ]
        one = attribute(tiny, prompt, logit_diff(prompt), latents=latents)
        names = [place(node, positions) for node in one.nodes]
        terms = defaultdict(list)
        edges = one.edges.tocoo()
        for target, source, weight in zip(edges.row, edges.col, edges.data, strict=True):
            contribution = float(weight) * one.target_grads[target].item()
            terms[names[source], names[target]].append(contribution)
        by_prompt.append((terms, {ends for ends, x in terms.items() if any(x)}))
    slow = {ends: row for ends, row in slow_statistics(by_prompt).items() if row["mean_abs"]}
    ends = list(zip(table.source, table.target, strict=True))
    assert set(ends) == set(slow)
    assert_equals_slow(table, ends, slow)


def test_what_is_pooled_adds_up_to_the_same(model):
    """Error nodes carry what was not chosen: sums do not depend on positions or choices."""
    options = {"metric": third_over_fourth, "max_edges": 0}
    some = attribute_dataset(model, TEXTS, max_latents=5, **options)
    all_ = attribute_dataset(model, TEXTS, max_latents=10**6, **options)
    summed = attribute_dataset(model, TEXTS, positions="summed", max_latents=7, **options)
    sums = [result.node_statistics.mean.sum() for result in (some, all_, summed)]
    assert sums == pytest.approx([sums[0]] * 3, rel=1e-5)
    assert len(all_.nodes) > len(some.nodes)
    assert len(some.edges_table()) == 0


def test_a_reference_can_give_an_effect_to_a_latent_that_is_off(model):
    prompts = [Prompt(text, corrupted="w3 w7 w2") for text in TEXTS]
    result = attribute_dataset(
        model,
        prompts,
        third_over_fourth,
        reference=lambda prompt: corrupted_reference(model, prompt),
        max_latents=10**6,
        max_edges=0,
    )
    table = result.nodes_table()
    assert (table.reference == "corrupted").all()
    latents = table[table.kind == "latent"]
    assert ((latents.active == 0) & (latents.mean_abs > 0)).any()


@pytest.fixture
def computed(monkeypatch):
    """Which prompts effects and edges were computed of."""
    calls = {"total_effects": [], "attribute": []}
    for name, seen in calls.items():
        original = getattr(attribution.many.dataset, name)

        def counted(model, prompt, *args, original=original, seen=seen, **options):
            result = original(model, prompt, *args, **options)
            seen.append(prompt)
            return result

        monkeypatch.setattr(attribution.many.dataset, name, counted)
    return calls


def tables(result):
    return result.nodes_table(), result.edges_table()


def test_an_interrupted_run_goes_on_where_it_stopped(model, tmp_path, computed):
    def run(path, fails_at=None, prompts=TEXTS, **options):
        def metric(prompt):
            if prompt == fails_at:
                raise RuntimeError("killed")
            return third_over_fourth(prompt)

        computed["total_effects"].clear()
        computed["attribute"].clear()
        return attribute_dataset(model, prompts, metric, max_latents=9, path=path, **options)

    whole = run(None)
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "store", fails_at=TEXTS[2])
    assert computed == {"total_effects": TEXTS[:2], "attribute": []}
    resumed = run(tmp_path / "store")
    assert computed == {"total_effects": TEXTS[2:], "attribute": TEXTS}
    again = run(tmp_path / "store", n_bootstrap=500)
    assert computed == {"total_effects": [], "attribute": []}
    for ours, theirs in zip(tables(whole), tables(resumed), strict=True):
        assert_frame_equal(ours, theirs, check_exact=True)
    for column in NUMBERS:
        assert tables(whole)[0][column].equals(tables(again)[0][column])
    run(tmp_path / "store", prompts=LONGER, positions="summed")
    assert computed == {"total_effects": LONGER[3:], "attribute": LONGER}


def test_a_failed_write_leaves_nothing_behind(model, tmp_path, monkeypatch):
    store = tmp_path / "store"
    options = {"metric": third_over_fourth, "max_latents": 9, "path": store}
    replaced = Path.replace

    def full(self, target):
        if Path(target).parent.name == "effects":
            raise OSError(28, "No space left on device")
        return replaced(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match="No space left"):
        attribute_dataset(model, TEXTS[:2], **options)
    monkeypatch.undo()
    assert [file for file in store.rglob("*") if file.is_file()] == [store / "settings.json"]
    (store / "effects" / ".half.safetensors.x7").write_bytes(b"half")  # of a process that died
    resumed = attribute_dataset(model, TEXTS[:2], **options)
    fresh = attribute_dataset(model, TEXTS[:2], third_over_fourth, max_latents=9)
    for ours, theirs in zip(tables(resumed), tables(fresh), strict=True):
        assert_frame_equal(ours, theirs, check_exact=True)
    one = next((store / "effects").glob("*.safetensors"))
    one.write_bytes(one.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged; delete it and run again"):
        attribute_dataset(model, TEXTS[:2], **options)


def test_a_folder_of_something_else_is_refused(model, bridge, tmp_path):
    options = {"metric": third_over_fourth, "max_edges": 0, "path": tmp_path / "store"}
    attribute_dataset(model, TEXTS[:1], **options)
    with pytest.raises(UserError, match="downstream='recompute', now 'freeze'"):
        attribute_dataset(model, TEXTS, **options, downstream="freeze")
    site = Site(1, "mlp")
    others = random_dictionaries()
    others[site] = replace(others[site], b_dec=others[site].b_dec + 1)
    with pytest.raises(UserError, match="was made with weights="):
        attribute_dataset(splice(bridge, others, name="random"), TEXTS, **options)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        attribute_dataset(model, TEXTS, **{**options, "path": tmp_path})


def test_one_prompt_has_no_intervals(model):
    result = attribute_dataset(model, TEXTS[:1], third_over_fourth, max_latents=9, max_edges=0)
    table = result.nodes_table()
    assert table.low.isna().all()
    assert table.high.isna().all()
    assert "one prompt gives no intervals" in repr(result)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": LONGER}, r'prompts of 4, 7 tokens.*positions="summed"'),
        ({"prompts": []}, "at least one"),
        ({"prompts": TEXTS[0]}, "give a list of prompts; got str"),
        ({"positions": "pooled"}, "choose aligned or summed"),
        ({"max_latents": 0}, "max_latents=0"),
        ({"max_edges": -1}, "max_edges=-1"),
        ({"downstream": "drop"}, "downstream='drop'"),
        ({"attention": "melted"}, "attention='melted'"),
        ({"n_bootstrap": 1}, "n_bootstrap=1"),
        ({"mlp": "melted"}, "mlp='melted'"),
        ({"memory": "much"}, "much"),
        ({"metric": logit_diff("w3", "w4")}, "give a function from a prompt to its metric"),
        ({"metric": kl}, "no gradient on the clean run"),
        ({"metric": log_prob, "prompts": [Prompt("w1 w2")]}, "no target"),
        ({"reference": "mean"}, "give a function from a prompt to its reference"),
        ({"prompts": [*TEXTS, TEXTS[1]]}, "'w2 w5 w9' is given more than once"),
        ({"prompts": [Prompt("w1 w2"), Prompt("w1 w2")]}, r"Prompt\(text='w1 w2'.* more than once"),
    ],
)
def test_mistakes_are_one_sentence(model, given, message):
    options = {"prompts": TEXTS, "metric": third_over_fourth, **given}
    with pytest.raises(UserError, match=message):
        attribute_dataset(model, options.pop("prompts"), options.pop("metric"), **options)


@pytest.mark.parametrize("made", [lambda logits: logits[:, -1, 5], partial(torch.select, dim=1)])
def test_a_folder_takes_no_metric_without_a_name(model, tmp_path, made):
    """It would give back the numbers of another one."""
    with pytest.raises(UserError, match="has none; write it as a function with def"):
        attribute_dataset(model, TEXTS, lambda prompt: made, path=tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_prompt_on_which_no_chosen_latent_is_on_has_edges(model):
    """Those of its errors, tokens and biases to the logit."""
    options = {"positions": "summed", "max_latents": 1, "n_bootstrap": 100}
    result = attribute_dataset(model, ["w1 w5 w9", "w12"], third_over_fourth, **options)
    (latent,) = result.nodes_table().query("kind == 'latent'").to_dict("records")
    assert latent["active"] == 0.5
    edges = result.edges_table().set_index("target")
    assert set(edges.active[latent["node"]]) == {0.5}
    assert set(edges.active["logit/third_over_fourth"]) == {1}


def test_memory_does_not_grow_with_the_number_of_prompts(tmp_path):
    """What is computed from the store, of made-up prompts of one size; numpy's memory is traced."""
    site = Site(0, "mlp")
    space = Space({site: 500}, 8, "metric")
    store = PromptStore(tmp_path)
    rng = np.random.default_rng(0)
    names = [f"effects/{i}" for i in range(128)]
    for i, name in enumerate(names):
        codes = np.sort(rng.choice(4000, 300, replace=False))
        arrays = {"latent": codes % 500, "pos": codes // 500, "effect": rng.normal(size=300)}
        arrays |= {"active": np.ones(300, bool), "error": np.zeros(8), "bias": np.zeros(1)}
        arrays = {f"{site}/{key}": array for key, array in arrays.items()}
        store.write(name, {"value": np.ones(1), "token": np.ones(8), **arrays})
        numbers = rng.normal(size=400)
        store.write(f"edges/{i}", {"code": np.arange(400), "value": numbers, "size": numbers})

    def peak(n):
        tracemalloc.start()
        keys = choose_latents(space, store, names[:n], 100)
        rows = (node_row(keys, arrays) for arrays in each(store, names[:n], "nodes"))
        statistics(rows, n, len(keys.nodes), n_bootstrap=100, seed=0)
        edges = [f"edges/{i}" for i in range(n)]
        codes = choose_edges(store, edges, len(keys.nodes), 300)
        rows = (edge_row(codes, arrays) for arrays in each(store, edges, "edges"))
        statistics(rows, n, len(codes), n_bootstrap=100, seed=0)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(2)  # what is imported or cached on first use
    few, many = peak(64), peak(128)
    assert many < 1.1 * few


def test_errors_carry_what_cross_layer_latents_write_at_their_layer(bridge):
    """Of one prompt the table of nodes has the numbers of `attribute`."""
    model = splice(bridge, chosen_dictionaries(["cross"]), name="random")
    table = attribute_dataset(
        model, TEXTS[:1], third_over_fourth, max_latents=20, max_edges=0, n_bootstrap=100
    ).nodes_table()
    one = attribute(model, TEXTS[0], third_over_fourth(None), max_latents=20)
    expected = dict(zip(map(str, one.nodes), one.effects.tolist(), strict=True))
    found = dict(zip(table["node"], table["mean"], strict=True))
    errors = [name for name in found if "/error@" in name]
    assert len(errors) == 3 * 4
    for name in errors:
        assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5)


def test_a_number_of_replicates_that_is_not_whole_is_refused_before_anything_is_computed(
    model, computed
):
    with pytest.raises(UserError, match=r"n_bootstrap=500\.0"):
        attribute_dataset(model, TEXTS, third_over_fourth, n_bootstrap=500.0)  # pyright: ignore
    assert computed == {"total_effects": [], "attribute": []}


def test_against_zero_alone_do_effects_agree_no_more_often_than_a_latent_is_on(model):
    prompts = [Prompt(text, corrupted="w3 w7 w2") for text in TEXTS]
    options = {"metric": third_over_fourth, "max_latents": 10**6, "max_edges": 0}
    references = (None, lambda prompt: corrupted_reference(model, prompt))
    more = []
    for reference in references:
        table = attribute_dataset(model, prompts, reference=reference, **options).nodes_table()
        latents = table[table.kind == "latent"]
        more.append((latents.sign_consistency > latents.active).sum())
    assert more[0] == 0
    assert more[1] > 0


def test_a_record_has_a_prompt_and_a_metric_where_there_are_any(model):
    one = record(model, Prompt("w1", target="w2"), "name", {})
    assert one["prompt"]["target"] == "w2"
    none = record(model, None, None, {})
    assert none == {key: one[key] for key in one if key not in ("prompt", "metric")}
