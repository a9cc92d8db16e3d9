"""Pairs are a list; what does not fit a model, or is in the training split, is told."""

from random import Random

import pytest

from attribution import logit_diff
from attribution.metrics import bind
from circuits import Prompt, UserError
from experiments.datasets import (
    Pairs,
    fitting,
    load_pairs,
    overlap,
    without_overlap,
)

SAME_TEXT = "a text of the other split"
SAME_PAIR = "a pair of the other split, reversed"


def test_published_splits_overlap_as_counted():
    train, test = (load_pairs("agreement/nounpp", split) for split in ("train", "test"))
    assert len({prompt.text for prompt in test}) == 436
    assert overlap(train, test) == 231
    rest = without_overlap(train, test)
    assert overlap(train, rest) == 0
    assert len({prompt.text for prompt in rest}) == 436 - 350  # with pairs the other way round
    told = [rest.left_out[reason] for reason in (SAME_TEXT, SAME_PAIR)]
    assert [len(set(texts)) for texts in told] == [231, 350 - 231]
    assert sum(map(len, told)) + len(rest) == len(test)
    assert f"{len(told[0])} left out: {SAME_TEXT}" in rest.report()


@pytest.mark.parametrize(("name", "n"), [("agreement/simple", 39), ("agreement/within_rc", 767)])
def test_some_published_splits_test_nothing_new(name, n):
    train, test = (load_pairs(name, split) for split in ("train", "test"))
    assert overlap(train, test) == len({prompt.text for prompt in test}) == n
    assert not without_overlap(train, test)


def test_a_pair_and_its_reverse_are_one_witness():
    """Against the definition: two prompts share a clean text, or both texts."""
    rng = Random(0)
    for _ in range(300):
        train, test = (
            [Prompt(rng.choice("abcdef"), corrupted=rng.choice([*"abcdef", None]))
             for _ in range(rng.randrange(5))]
            for _ in range(2)
        )  # fmt: skip
        shared = [
            any(p.text == q.text or (p.text, p.corrupted) == (q.corrupted, q.text) for q in train)
            for p in test
        ]
        pairs = list(zip(test, shared, strict=True))
        assert list(without_overlap(train, test)) == [p for p, again in pairs if not again]
        assert overlap(train, test) == len({p.text for p in test} & {q.text for q in train})


def test_what_a_tokenizer_cannot_use_is_told(tiny):
    good = Prompt("the kind man", "remembers", "remember", "the kind men")
    pairs = [
        good,
        Prompt("the kind xylophone", "remembers", "remember", "the kind men"),
        Prompt("the kind man", "remembers remember", "remember", "the kind men"),
        Prompt("the kind man", "remembers", "remember", "the men"),
        Prompt("the kind man", corrupted="the kind men"),
        Prompt("the kind man", "remember", "remember", "the kind men"),
        Prompt("the kind man", "remembers", "remember", "the kind man"),
        Prompt(" ".join(["the"] * 100), "remembers", "remember"),
        Prompt("", "remembers", "remember"),
    ]
    kept = fitting(tiny, pairs)
    assert list(kept) == [good, pairs[4]]
    assert {reason: len(texts) for reason, texts in kept.left_out.items()} == {
        "tiny cannot read it: unknown words, empty, or too long": 3,
        "an answer is not one token of tiny": 1,
        "clean and corrupted differ in length": 1,
        "both answers are the same": 1,
        "clean and corrupted are the same": 1,
    }
    assert list(fitting(tiny, pairs, aligned=False)) == [good, pairs[3], pairs[4], pairs[6]]
    assert "clean and corrupted differ in length ('the kind man')" in kept.report()


def test_of_a_bundled_set_all_that_fits_is_read(tiny):
    pairs = load_pairs("agreement/simple")
    kept = fitting(tiny, pairs)
    assert len(kept) + sum(len(kept.left_out[r]) for r in kept.left_out.keys() - pairs.left_out
                           ) == len(pairs)  # fmt: skip


def test_what_fits_is_what_the_model_can_be_asked(tiny):
    """Against asking: the slow twin of `fitting` runs the model on each pair."""
    rng, words = Random(0), ["the", "kind", "man", "men", "Mary", "xylophone", "greets greet", ""]
    pairs = [Prompt(*(" ".join(rng.choices(words, k=rng.choice((1, 1, 2)))) for _ in range(4)))
             for _ in range(150)]  # fmt: skip

    def can_be_asked(prompt: Prompt) -> bool:
        try:
            value = bind(logit_diff(prompt), tiny)(tiny(prompt.text)).item()
            partner = tiny(str(prompt.corrupted))
        except UserError:
            return False
        differ = prompt.text != prompt.corrupted
        return value != 0 and differ and partner.shape == tiny(prompt.text).shape

    asked = [prompt for prompt in pairs if can_be_asked(prompt)]
    assert 5 < len(asked) < 120
    assert list(fitting(tiny, pairs)) == asked


def test_pairs_are_a_list_that_slices():
    pairs = Pairs(tuple(Prompt(str(i)) for i in range(5)), "five")
    assert [p.text for p in pairs[1:3]] == ["1", "2"]
    assert isinstance(pairs[1:3], Pairs)
    assert pairs[0] == pairs.prompts[0]
    assert pairs.metric is logit_diff
