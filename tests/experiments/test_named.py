"""Whatever a name stands for, the prompts and the others never share a text."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from attribution import logit_diff
from circuits import Prompt, UserError
from experiments.datasets import DATASETS, load_pairs, read_pairs
from experiments.datasets.years import digit_diff
from experiments.named import prompts_named, spans_for
from experiments.tasks import TASKS

UNREAD = "tiny cannot read it: unknown words, empty, or too long"
PEOPLE = ("man", "men"), ("boy", "boys"), ("girl", "girls"), ("poet", "poets")


def rows():
    """Each person in either number, asked about with two verbs."""
    for forms in PEOPLE:
        for number in (0, 1):
            for verbs in (("likes", "like"), ("greets", "greet")):
                texts = [f"the kind {forms[n]}" for n in (number, 1 - number)]
                yield *texts, verbs[number], verbs[1 - number]


@pytest.fixture
def mine(tmp_path) -> Path:
    columns = "clean_prefix", "patch_prefix", "clean_answer", "patch_answer"
    lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows()]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    return tmp_path / "mine.jsonl"


def both(prompts) -> set[str]:
    return {str(text) for p in prompts for text in (p.text, p.corrupted)}


def pair_of(prompt: Prompt):
    return frozenset((prompt.text, prompt.corrupted))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", [*TASKS, *DATASETS])
def test_no_text_is_asked_twice_and_no_pair_is_on_both_sides(name, seed):
    first, others, _ = prompts_named(name, 20, seed)
    texts = [prompt.text for prompt in (*first, *others)]
    assert len(texts) == len(set(texts))
    assert not {pair_of(prompt) for prompt in first} & {pair_of(prompt) for prompt in others}
    assert len(first) == 20
    if name != "agreement/simple":  # has 20 pairs in all
        assert len(others) == 20


@pytest.mark.parametrize("name", ["ioi", "ioi/eap_ig", "cities/country"])
def test_a_seed_decides_what_is_drawn(name):
    first, again, other = (prompts_named(name, 10, seed)[:2] for seed in (3, 3, 4))
    assert [list(some) for some in first] == [list(some) for some in again]
    assert [list(some) for some in first] != [list(some) for some in other]


def test_a_task_is_tested_on_what_it_was_not_trained_on():
    first, others, metric = prompts_named("ioi", 7, seed=2)
    assert list(first) == TASKS["ioi"].prompts("heldout", n=7, seed=2)
    assert list(others) == TASKS["ioi"].prompts("train", n=7, seed=2)
    assert metric == TASKS["ioi"].metric


def test_a_set_brings_its_metric_and_what_was_left_out():
    first, others, metric = prompts_named("greater_than/digits", 5)
    every = load_pairs("greater_than/digits")
    assert metric is digit_diff
    assert {*first, *others} <= {*every}
    assert getattr(first, "left_out", None) == every.left_out


@pytest.mark.parametrize("n", [1, 3, 5, 8, 100])
def test_of_a_file_every_text_is_asked_once(mine, n):
    first, others, metric = prompts_named(str(mine), n)
    assert metric is logit_diff
    assert len(first) == min(n, 8)  # of sixteen rows; each text has two verbs
    asked = {pair_of(prompt) for prompt in first}
    free = {f"the kind {form}" for forms in PEOPLE for form in forms} - set().union(*asked)
    assert {prompt.text for prompt in others} <= free
    assert len(others) == min(n, len(free))


@pytest.fixture
def half_known(tmp_path, mine) -> Path:
    """Of each row a twin that the bundled model cannot read, and those come first."""
    path = tmp_path / "half.jsonl"
    lines = mine.read_text().splitlines()
    path.write_text("\n".join([*(line.replace("kind", "xylophone") for line in lines), *lines]))
    return path


def test_a_task_may_be_asked_for_no_others():
    first, others, _ = prompts_named("ioi", 7, seed=2, n_others=0)
    assert (list(first), list(others)) == (list(prompts_named("ioi", 7, seed=2)[0]), [])


@pytest.mark.parametrize(("n", "n_others"), [(2, 5), (4, 1), (7, 7), (40, 40)])
def test_there_are_as_many_pairs_as_fit_the_model(tiny, mine, half_known, n, n_others):
    """What does not fit takes no place: as many are found as without it, and it is told."""
    known = prompts_named(str(mine), n, n_others=n_others)
    first, others, _ = prompts_named(str(half_known), n, n_others=n_others, model=tiny)
    assert len(first) == len(known[0]) == min(n, 8)
    assert len(others) == min(n_others, len({p.text for p in read_pairs(mine)} - both(first)))
    assert set(first) | set(others) <= set(read_pairs(mine))
    for some in (first, others):
        assert {why: len(texts) for why, texts in some.left_out.items()} == {UNREAD: 16}


def test_a_text_is_asked_about_the_answers_that_fit(tiny, mine):
    """Of two rows with one text the one with an unknown answer takes not the other's place."""
    lines = mine.read_text().splitlines()
    mine.write_text("\n".join(line.replace("greet", "play the harp") for line in lines))
    first, _, _ = prompts_named(str(mine), 8, model=tiny)
    assert len(first) == 8
    assert {prompt.target for prompt in first} == {"like", "likes"}


def test_a_task_is_asked_for_more_until_enough_fit(tiny, monkeypatch):
    """Three in four of its prompts cannot be read."""
    real = TASKS["agreement_simple"]

    def prompt(rng, split):
        one = real.prompt(rng, split)
        return one if rng.random() < 0.25 else replace(one, text=one.text.upper())

    monkeypatch.setitem(TASKS, "agreement_simple", replace(real, prompt=prompt))
    first, others, _ = prompts_named("agreement_simple", 12, n_others=30, model=tiny)
    assert (len(first), len(others)) == (12, 30)
    drawn = TASKS["agreement_simple"].prompts("heldout", n=400)
    assert list(first) == [p for p in drawn if not p.text.isupper()][:12]
    assert len(first.left_out[UNREAD]) >= 12


def test_a_task_s_reversed_pairs_are_not_among_the_others():
    """Its splits share some: drawn whole, and against a loop over all of them."""
    task = TASKS["pronouns"]
    held, train = (task.prompts(split, n=300) for split in ("heldout", "train"))
    assert any(pair_of(p) == pair_of(q) for p in held for q in train)
    first, others, _ = prompts_named("pronouns", 300)
    assert list(first) == held
    assert list(others)[:250] == [
        p for p in train if all(pair_of(p) != pair_of(q) for q in held)
    ][:250]  # fmt: skip
    assert sum(map(len, others.left_out.values()))


def test_the_draw_from_a_file_does_not_depend_on_its_folder(mine, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / mine.name
    copy.write_text(mine.read_text())
    drawn = [[list(some) for some in prompts_named(str(path), 3)[:2]] for path in (mine, copy)]
    assert drawn[0] == drawn[1]


def test_a_name_of_nothing(tmp_path):
    with pytest.raises(UserError, match=r"no task, data set or file 'agreement_simpl'; there is "
                       "agreement_simple"):  # fmt: skip
        prompts_named("agreement_simpl", 3)
    with pytest.raises(UserError, match="agreement/nounpp"):
        prompts_named("agreement/nounp", 3)
    with pytest.raises(UserError, match="cannot read"):
        prompts_named(str(tmp_path / "nowhere.csv"), 3)


@pytest.mark.parametrize("name", TASKS)
def test_spans_of_any_of_a_task_s_prompts_have_the_same_names(tiny, name):
    first, others, _ = prompts_named(name, 4)
    how = spans_for(tiny, name, [*first, *others])
    assert how(first).names == how(others).names == how(first[:1]).names
    assert len(how(first)) == len(first)
    whole = spans_for(tiny, name, [*first, *others], "whole")
    assert whole(others).names == ("all",)


def test_spans_of_a_file_are_positions_where_all_prompts_are_equally_long(tiny, mine):
    first, others, _ = prompts_named(str(mine), 3)
    both = [*first, *others]
    assert spans_for(tiny, str(mine), both)(others).names == ("1", "2", "3")
    longer = [*both, Prompt("the tall kind man")]
    assert spans_for(tiny, str(mine), longer)(others).names == ("all",)
    with pytest.raises(UserError, match=r"prompt \d has 5 tokens with BOS and prompt 0 has 4"):
        spans_for(tiny, str(mine), longer, "aligned")(longer)
    with pytest.raises(UserError, match="names no spans"):
        spans_for(tiny, str(mine), both, "named")
