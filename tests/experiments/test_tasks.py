"""Each task asks what its split allows, and its prompts can be compared token by token."""

from dataclasses import replace
from functools import cache
from itertools import accumulate, islice, pairwise
from random import Random

import pytest
import torch

from circuits.errors import UserError
from circuits.prompts import Prompt
from experiments.tasks import TASKS
from experiments.tasks.capitals import two_hop_cities
from experiments.tasks.induction import WORDS as INDUCTION_WORDS
from experiments.tasks.task import held_out
from experiments.tiny.language import build_tokenizer, token_ids

IOI_DEMO = "when Mary and John went to the store , John gave a drink to"
every_task = pytest.mark.parametrize("name", list(TASKS))


@every_task
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_clean_and_corrupted_are_equally_long_and_answers_are_one_token(name, split):
    known = token_ids()
    for prompt in TASKS[name].prompts(split, n=100):
        assert prompt.corrupted is not None
        clean, corrupted = prompt.text.split(), prompt.corrupted.split()
        assert len(clean) == len(corrupted)
        assert clean != corrupted
        assert prompt.target != prompt.foil
        assert {*clean, *corrupted, prompt.target, prompt.foil} <= set(known)


@every_task
def test_a_seed_decides_the_prompts(name):
    task = TASKS[name]
    assert task.prompts(n=20, seed=3) == task.prompts(n=20, seed=3)
    assert task.prompts(n=20, seed=3) != task.prompts(n=20, seed=4)


@every_task
def test_fifty_different_held_out_prompts(name):
    assert len({prompt.text for prompt in TASKS[name].prompts(n=50)}) == 50


@cache
def begins_of_training_sentences():
    """All that the first 2000 sentences of any task begin with."""
    sentences = [s for task in TASKS.values() for s in islice(task.sentences(Random(0)), 2000)]
    return {begin for s in sentences for begin in accumulate(s.text.split(), "{} {}".format)}


@every_task
def test_no_held_out_prompt_begins_a_training_sentence(name):
    held = {prompt.text for prompt in TASKS[name].prompts("heldout", n=200)}
    assert held
    assert not held & begins_of_training_sentences()


def test_a_held_out_pair_of_names_never_meets_in_training():
    from experiments.tasks.words import names

    for sentence in islice(TASKS["ioi"].sentences(Random(0)), 5000):
        pair = {word for word in sentence.text.split() if word in names()}
        assert len(pair) == 2
        assert not held_out(*(names().index(name) for name in pair))


def test_a_held_out_bigram_is_never_in_a_training_sequence():
    for sentence in islice(TASKS["induction"].sentences(Random(0)), 2000):
        words = [INDUCTION_WORDS.index(word) for word in sentence.text.split()]
        assert not any(held_out(*pair) for pair in pairwise(words))


def test_a_held_out_city_is_never_joined_to_its_capital_in_training():
    held = {city for city, _ in two_hop_cities("heldout")}
    assert held
    for sentence in islice(TASKS["city_capital"].sentences(Random(0)), 5000):
        assert held.isdisjoint(sentence.text.split())


def test_but_its_country_is_trained():
    held = {city for city, _ in two_hop_cities("heldout")}
    seen = set()
    for sentence in islice(TASKS["city_country"].sentences(Random(0)), 5000):
        seen |= held & set(sentence.text.split())
    assert seen == held


def test_the_demo_sentence_is_of_the_held_out_split():
    prompt = Prompt(IOI_DEMO, target="Mary", foil="John")
    task = TASKS["ioi"]
    words = IOI_DEMO.split()
    pairs = {frozenset((prompt.target, prompt.foil)) for prompt in task.prompts("heldout", n=500)}
    assert frozenset(("Mary", "John")) in pairs
    assert set(words) <= set(token_ids())
    assert task.right(prompt) == ("Mary",)


def test_greater_than_counts_the_years_after_the_start():
    task = TASKS["greater_than"]
    prompt = Prompt("the war lasted from the year 17 32 to the year 17", target="40", foil="20")
    assert task.right(prompt) == tuple(f"{year:02d}" for year in range(33, 100))
    assert task.wrong(prompt) == tuple(f"{year:02d}" for year in range(33))
    logits = torch.full((len(token_ids()),), -100.0)
    logits[token_ids()["33"]] = logits[token_ids()["32"]] = 0.0
    assert task.success(prompt, logits, token_ids().__getitem__) == pytest.approx(0.5)


def test_agreement_takes_any_verb_of_the_right_number_but_not_the_foil():
    task = TASKS["agreement_simple"]
    prompt = Prompt("the tall farmers", target="greet", foil="greets")
    logits = torch.zeros(len(token_ids()))
    logits[token_ids()["admire"]], logits[token_ids()["greet"]] = 3.0, 1.0
    assert task.success(prompt, logits, token_ids().__getitem__) == 1.0
    logits[token_ids()["greets"]] = 2.0
    assert task.success(prompt, logits, token_ids().__getitem__) == 0.0


def test_an_unknown_split_is_refused():
    with pytest.raises(UserError, match="train, heldout"):
        TASKS["ioi"].prompts("test")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("n", [0, -1, 2.5, True, "8"])
def test_a_number_of_prompts_that_is_none_is_refused(n):
    with pytest.raises(UserError, match=f"n={n!r}; give a whole number from 1 on"):
        TASKS["ioi"].prompts(n=n)


def test_more_prompts_than_there_are_are_all_of_them_soon():
    """Asked for a million, it stops when nothing new comes; the first are those of a smaller n."""
    task = TASKS["agreement_simple"]
    n_draws = 0

    def counted(rng, split):
        nonlocal n_draws
        n_draws += 1
        return task.prompt(rng, split)

    every = replace(task, prompt=counted).prompts(n=10**6)
    assert len(every) == 64  # a fifth of 8 adjectives by 20 people, singular and plural
    assert n_draws < 20_000
    assert every[:50] == task.prompts(n=50)


def test_a_task_that_there_is_not_is_refused_with_those_there_are():
    with pytest.raises(UserError, match="no task 'io'; choose ioi, agreement_simple, "):
        TASKS["io"]
    assert "io" not in TASKS
    assert TASKS.get("io") is None


def test_every_word_is_one_token_of_the_tokenizer():
    tokenizer = build_tokenizer()
    for sentence in islice(TASKS["ioi"].sentences(Random(0)), 50):
        ids = tokenizer(sentence.text).input_ids
        assert len(ids) == 1 + len(sentence.text.split())
        assert tokenizer.unk_token_id not in ids


@every_task
def test_the_marked_answers_are_the_words_a_prompt_asks_for(name):
    task = TASKS[name]
    for sentence in islice(task.sentences(Random(0)), 100):
        words = sentence.text.split()
        assert sentence.answers
        assert all(0 < place < len(words) for place in sentence.answers)
