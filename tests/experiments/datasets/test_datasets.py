"""Published pairs are read as they are, and nothing that cannot be used disappears."""

import gzip
import json
import re
from itertools import product

import pytest

from attribution import logit_diff
from circuits import Prompt, UserError, load
from experiments.datasets import (
    DATASETS,
    Pairs,
    fitting,
    from_hugging_face,
    load_pairs,
    overlap,
    read_pairs,
    without_overlap,
    word_list,
)
from experiments.datasets.catalogue import DATA
from experiments.datasets.readers import year_diff

ROW = {
    "clean_prefix": "The uncle", "patch_prefix": "The uncles",
    "clean_answer": " does", "patch_answer": " do", "case": "singular",
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny():
    return load("tiny")


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_published_splits_overlap_as_counted():
    train, test = (load_pairs("agreement/nounpp", split) for split in ("train", "test"))
    assert len({prompt.text for prompt in test}) == 436
    assert overlap(train, test) == 231
    rest = without_overlap(train, test)
    assert overlap(train, rest) == 0
    assert len({prompt.text for prompt in rest}) == 436 - 231
    told = rest.left_out["a text of the training split"]
    assert len(told) + len(rest) == len(test)
    assert f"{len(told)} left out: a text of the training split" in rest.report()


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
    if "agreement" not in name:
        train, test = (load_pairs(name, split) for split in ("train", "test"))
        assert overlap(train, test) == 0


def test_every_row_of_a_file_is_a_pair_or_told():
    for split in ("train", "test"):
        lines = gzip.decompress((DATA / f"agreement/nounpp_{split}.jsonl.gz").read_bytes())
        pairs = load_pairs("agreement/nounpp", split)
        told = sum(map(len, pairs.left_out.values()))
        assert len(pairs) + told == len(lines.splitlines())


def test_indirect_objects_are_the_name_said_once():
    for name in ("ioi", "ioi/templates"):
        for prompt in load_pairs(name)[:200]:
            other, subject = str(prompt.target).strip(), str(prompt.foil).strip()
            said = [len(re.findall(rf"\b{x}\b", prompt.text)) for x in (other, subject)]
            assert said == [1, 2]
            there = [len(re.findall(rf"\b{x}\b", str(prompt.corrupted))) for x in (other, subject)]
            assert there == [2, 1]
            assert not re.search(r"\ban? [aeiou]\w* to$", prompt.text.replace(" an ", " - "))


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


def test_what_a_tokenizer_cannot_use_is_told(tiny):
    good = Prompt("the kind man", "remembers", "remember", "the kind men")
    pairs = [
        good,
        Prompt("the kind xylophone", "remembers", "remember", "the kind men"),
        Prompt("the kind man", "remembers remember", "remember", "the kind men"),
        Prompt("the kind man", "remembers", "remember", "the men"),
        Prompt("the kind man", corrupted="the kind men"),
    ]
    kept = fitting(tiny, pairs)
    assert list(kept) == [good, pairs[4]]
    assert sorted(map(len, kept.left_out.values())) == [1, 1, 1]
    assert len(fitting(tiny, pairs, aligned=False)) == 3
    assert "clean and corrupted differ in length ('the kind man')" in kept.report()


def test_of_a_bundled_set_all_that_fits_is_read(tiny):
    pairs = load_pairs("agreement/simple")
    kept = fitting(tiny, pairs)
    assert len(kept) + sum(len(kept.left_out[r]) for r in kept.left_out.keys() - pairs.left_out
                           ) == len(pairs)  # fmt: skip


def test_pairs_are_a_list_that_slices():
    pairs = Pairs(tuple(Prompt(str(i)) for i in range(5)), "five")
    assert [p.text for p in pairs[1:3]] == ["1", "2"]
    assert isinstance(pairs[1:3], Pairs)
    assert pairs[0] == pairs.prompts[0]
    assert pairs.metric is logit_diff


def test_the_readers_read_what_they_say(tmp_path):
    path = jsonl(tmp_path / "mine.jsonl", ROW, ROW, {**ROW, "clean_answer": ""})
    pairs = read_pairs(path)
    assert list(pairs) == [Prompt("The uncle", " does", " do", "The uncles")]
    assert pairs.left_out == {
        "a column is empty or no text": ("line 3",), "the same row again": ("The uncle",),
    }  # fmt: skip
    text = "clean,corrupted,label\nfrom 1352 to 13,from 1301 to 13,52\nfrom 1399 to 13,x,99\n"
    (tmp_path / "years.csv").write_text(text)
    years = read_pairs(tmp_path / "years.csv")
    assert list(years) == [Prompt("from 1352 to 13", "53", "51", "from 1301 to 13")]
    assert list(years.left_out.values()) == [("line 3",)]
    assert years.metric is year_diff


def test_a_year_is_later_or_not():
    metric = year_diff(Prompt("the war lasted from the year 1732 to the year 17"))
    assert metric.name.startswith("p(later) - p(not later)")
    with pytest.raises(UserError, match="no year of four digits"):
        year_diff(Prompt("the war"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", "", "has no rows"),
        ("a.jsonl", '{"a": 1}', "has the columns a; give clean_prefix"),
        ("a.jsonl", json.dumps(ROW) + "\n{nope", "line 2:"),
        ("a.jsonl", "[1]", "line 1: give one JSON object"),
        ("a.csv", "x,y\n1,2\n", "has the columns x, y"),
        ("a.txt", "", "give a .jsonl"),
        ("a.jsonl.gz", "not compressed", "cannot read"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(says)):
        read_pairs(tmp_path / name)


def test_names_that_are_unknown(tmp_path):
    with pytest.raises(UserError, match="there is agreement/nounpp"):
        load_pairs("agreement/nounp")
    with pytest.raises(UserError, match="agreement/rc has no split 'test'; it has train"):
        load_pairs("agreement/rc", "test")
    with pytest.raises(UserError, match="no word list 'nouns'; there is agreement/adv1"):
        word_list("nouns")
    with pytest.raises(UserError, match="cannot read"):
        read_pairs(tmp_path / "nowhere.csv")


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


def test_a_data_set_in_the_hub_s_layout(tmp_path):
    jsonl(tmp_path / "train.jsonl", ROW, {**ROW, "clean_prefix": "The aunt"}, ROW)
    options = {"data_files": {"train": str(tmp_path / "train.jsonl")}, "cache_dir": str(tmp_path)}
    pairs = from_hugging_face("json", **options)
    assert [prompt.text for prompt in pairs] == ["The uncle", "The aunt"]
    assert pairs.left_out == {"the same row again": ("The uncle",)}
    texts = from_hugging_face("json", columns={"text": "case"}, **options)
    assert list(texts) == [Prompt("singular")]
    with pytest.raises(UserError, match="has no column 'prompt'; it has clean_prefix"):
        from_hugging_face("json", columns={"text": "prompt"}, **options)
    with pytest.raises(UserError, match="name a column for text"):
        from_hugging_face("json", columns={"question": "case"}, **options)
    with pytest.raises(UserError, match="cannot load the data set"):
        from_hugging_face("json", split="dev", **options)
