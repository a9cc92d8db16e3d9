"""Neither half has a text of the other, and they are as equal as whole groups allow."""

from random import Random

import pytest

from circuits import Prompt
from experiments.datasets import DATASETS, load_pairs, without_overlap
from experiments.datasets.halves import halves

UNPUBLISHED = [name for name in DATASETS if not name.startswith("agreement/")]


def texts(prompts) -> set[str | None]:
    return {text for p in prompts for text in (p.text, p.corrupted)} - {None}


def slowly(prompts):
    """Groups merged until none shares a text with another; then one by one to the smaller half."""
    groups = [[p] for p in prompts]
    merging = True
    while merging:
        merging = False
        for i in range(len(groups)):
            for j in range(i + 1, len(groups)):
                if texts(groups[i]) & texts(groups[j]):
                    groups[i] += groups.pop(j)
                    merging = True
                    break
            if merging:
                break
    sides = [], []
    for size in range(len(prompts), 0, -1):
        for group in groups:
            if len(group) == size:
                sides[len(sides[0]) > len(sides[1])].extend(group)
    return tuple(tuple(p for p in prompts if p in side) for side in sides)


def test_groups_that_share_a_text_go_whole_to_the_smaller_half():
    rng = Random(0)
    for _ in range(300):
        words = "abcdefghijklmnop"[: rng.randrange(3, 17)]
        drawn = [Prompt(rng.choice(words), rng.choice(words), corrupted=rng.choice([*words, None]))
                 for _ in range(rng.randrange(12))]  # fmt: skip
        prompts = list(dict.fromkeys(drawn))
        found = halves(prompts)
        assert found == slowly(prompts)
        assert not texts(found[0]) & texts(found[1])


def test_pairs_that_share_nothing_go_to_each_half_in_turn():
    prompts = [Prompt(f"{i}", corrupted=f"not {i}") for i in range(7)]
    assert halves(prompts) == (tuple(prompts[::2]), tuple(prompts[1::2]))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", UNPUBLISHED)
def test_no_half_of_a_bundled_set_has_a_text_or_a_pair_of_the_other(name, seed):
    train, test = (load_pairs(name, split, seed=seed) for split in ("train", "test"))
    assert not texts(train) & texts(test)
    assert len(without_overlap(train, test)) == len(test)
    assert 0 <= len(train) - len(test) <= 1
