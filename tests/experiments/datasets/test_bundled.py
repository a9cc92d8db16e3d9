"""Every bundled pair is a question whose answer can be checked against the file it is from."""

import csv
import gzip
import io
import json
import re
from itertools import product
from pathlib import Path

import pytest
import torch

from circuits import Prompt, UserError
from experiments.datasets import (
    DATASETS,
    load_pairs,
    read_pairs,
    word_list,
)
from experiments.datasets.catalogue import DATA
from experiments.datasets.patterns import SPANS
from experiments.datasets.years import digit_diff, year_diff
from experiments.tasks import TASKS


@pytest.mark.parametrize("name", DATASETS)
def test_every_pair_of_a_bundled_set_is_a_question_with_a_partner(name):
    splits = ("train",) if name == "agreement/rc" else ("train", "test")
    for split in splits:
        pairs = load_pairs(name, split)
        assert len(pairs) >= 25
        assert len(set(pairs)) == len(pairs)
        for prompt in pairs:
            assert prompt.corrupted not in (None, prompt.text)
            assert prompt.target != prompt.foil
        assert pairs.source
        assert list(load_pairs(name, split)) == list(pairs)


def test_the_page_says_how_many_pairs_there_are():
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    for name in DATASETS:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        told = [int(n) for n in re.findall(r"\d+", row.split("|")[3])]
        splits = ("train", "test")[: len(told)]
        assert told == [len(load_pairs(name, split)) for split in splits]


def test_every_row_of_a_file_is_a_pair_or_told():
    for split in ("train", "test"):
        lines = gzip.decompress((DATA / f"agreement/nounpp_{split}.jsonl.gz").read_bytes())
        pairs = load_pairs("agreement/nounpp", split)
        told = sum(map(len, pairs.left_out.values()))
        assert len(pairs) + told == len(lines.splitlines())


def test_indirect_objects_are_the_name_said_once():
    for name in ("ioi/eap_ig", "ioi/templates"):
        for prompt in load_pairs(name)[:200]:
            other, subject = str(prompt.target).strip(), str(prompt.foil).strip()
            said = [len(re.findall(rf"\b{x}\b", prompt.text)) for x in (other, subject)]
            assert said == [1, 2]
            there = [len(re.findall(rf"\b{x}\b", str(prompt.corrupted))) for x in (other, subject)]
            assert there == [2, 1]
            assert not re.search(r"\ban? [aeiou]\w* to$", prompt.text.replace(" an ", " - "))


def test_the_publisher_s_token_ids_agree_about_who_is_the_answer():
    """Llama 3's ids are not read; where they are the same, the name is, and the other way round."""
    text = gzip.decompress((DATA / "ioi/ioi_llama.csv.gz").read_bytes()).decode()
    ids = {row["clean"]: row for row in csv.DictReader(io.StringIO(text))}
    pairs = [*load_pairs("ioi/eap_ig", "train"), *load_pairs("ioi/eap_ig", "test")]
    assert len(pairs) == len(ids) == 499
    said = {(prompt.target, ids[prompt.text]["correct_idx"]) for prompt in pairs}
    said |= {(prompt.foil, ids[prompt.text]["incorrect_idx"]) for prompt in pairs}
    names, numbers = zip(*said, strict=True)
    assert len(set(names)) == len(set(numbers)) == len(said)


def test_templates_whose_article_goes_with_no_object_are_told():
    told = load_pairs("ioi/templates").left_out
    templates = json.loads(gzip.decompress((DATA / "ioi/templates.json.gz").read_bytes()))
    objects = json.loads(gzip.decompress((DATA / "ioi/objects.json.gz").read_bytes()))
    assert not any(thing[0] in "aeiou" for thing in objects)
    assert [t for texts in told.values() for t in texts] == [t for t in templates if " an {" in t]


def test_questions_about_colours_have_the_right_letter():
    for prompt in load_pairs("coloured_objects")[:100]:
        colour = re.match(r"The .+? is (\w+)\.", prompt.text)
        assert colour
        assert f"\n{str(prompt.target).strip()}. {colour[1]}\n" in prompt.text
        assert f"\n{str(prompt.foil).strip()}. {colour[1]}\n" in str(prompt.corrupted)
        assert sorted(prompt.text) == sorted(str(prompt.corrupted))


def test_a_seed_draws_other_pairs():
    first, again, other = (load_pairs("cities/country", seed=seed)[:20] for seed in (0, 0, 1))
    assert list(first) == list(again) != list(other)


def test_a_year_is_later_or_not():
    with pytest.raises(UserError, match="no year of four digits"):
        year_diff(Prompt("the war"))


class Digits:
    """Of a model only what a metric looks up; a token's id is its number."""

    def token_id(self, word: str) -> int:
        return int(word)


@pytest.mark.parametrize(
    ("metric", "right", "wrong", "n"),
    [(year_diff, range(33, 100), range(33), 100), (digit_diff, range(4, 10), range(3), 10)],
)
def test_a_year_s_metric_is_the_probability_on_later_ones_less_that_on_others(
    metric, right, wrong, n
):
    prompt = Prompt("the war lasted from the year 1732 to the year 17")
    logits = torch.randn(5, 1, n, generator=torch.Generator().manual_seed(0))
    p = logits[:, 0].softmax(-1)
    expected = [sum(row[i] for i in right) - sum(row[i] for i in wrong) for row in p.tolist()]
    score = metric(prompt).bind(Digits())
    assert score(logits).tolist() == pytest.approx(expected, abs=1e-6)


def test_years_by_digits_are_the_same_questions_about_tens():
    for split in ("train", "test"):
        by_digit = load_pairs("greater_than/digits", split)
        assert by_digit.metric is digit_diff
        for prompt in by_digit:
            match = re.search(r"year \d\d(\d)\d to", prompt.text)
            assert match
            assert (prompt.foil, prompt.target) == (str(int(match[1]) - 1), str(int(match[1]) + 1))
    all_years = {p.text for s in ("train", "test") for p in load_pairs("greater_than/years", s)}
    asked = {p.text for s in ("train", "test") for p in load_pairs("greater_than/digits", s)}
    assert asked == {t for t in all_years if re.search(r"year \d\d[1-8]\d to", t)}


def test_names_that_are_unknown(tmp_path):
    with pytest.raises(UserError, match="there is agreement/nounpp"):
        load_pairs("agreement/nounp")
    with pytest.raises(UserError, match="agreement/rc has no split 'test'; it has train"):
        load_pairs("agreement/rc", "test")
    with pytest.raises(UserError, match="no word list 'nouns'; there is agreement/adv1"):
        word_list("nouns")
    with pytest.raises(UserError, match="cannot read"):
        read_pairs(tmp_path / "nowhere.csv")


def test_a_data_set_and_a_task_are_never_of_one_name():
    assert not DATASETS.keys() & TASKS.keys()
    assert DATASETS.keys() == SPANS.keys()


@pytest.mark.parametrize("name", DATASETS)
def test_patterns_find_the_same_spans_in_each_prompt_and_its_partner(name):
    patterns = [re.compile(pattern) for pattern in SPANS[name]]
    for prompt in load_pairs(name):
        for text in (prompt.text, str(prompt.corrupted)):
            found = next(filter(None, (pattern.search(text) for pattern in patterns)), None)
            assert found, text
            assert all(found.groupdict().values()), text


def test_the_regenerated_set_is_the_template_over_the_word_lists():
    nouns, others, verbs = (word_list(f"agreement/{part}") for part in ("noun", "noun2", "verb2"))
    expected = {
        f"The {noun[i]} that the {other[j]} {verb[j]}"
        for noun, other, verb in product(nouns, others, verbs)
        for i, j in product((0, 1), (0, 1))
    }
    found = {prompt.text for prompt in load_pairs("agreement/rc")}
    assert found <= expected
    assert len(found) > 0.2 * len(expected)
