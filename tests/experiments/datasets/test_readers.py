"""Files of pairs are read as they are laid out, and no row that cannot be used disappears."""

import json
import re
from typing import Any

import pandas as pd
import pytest

from circuits import Prompt, UserError
from experiments.datasets import (
    from_hugging_face,
    read_pairs,
)
from experiments.datasets.years import year_diff

ROW = {
    "clean_prefix": "The uncle", "patch_prefix": "The uncles",
    "clean_answer": " does", "patch_answer": " do", "case": "singular",
}  # fmt: skip


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_readers_read_what_they_say(tmp_path):
    path = jsonl(tmp_path / "mine.jsonl", ROW, ROW, {**ROW, "clean_answer": ""})
    pairs = read_pairs(path)
    assert list(pairs) == [Prompt("The uncle", " does", " do", "The uncles")]
    assert pairs.left_out == {
        "a column is empty or no text": ("line 3",), "the same row again": ("The uncle",),
    }  # fmt: skip
    rows = ["clean,corrupted,label", "from 1352 to 13,from 1301 to 13,52", "from 1399 to 13,x,99",
            "from 1352 to 13,x,25", "from 1304 to 13,from 1301 to 13,4", "from 1305 to 13,,5",
            "from 1305 to 13", "no year,x,5", '"from 1306\nto 13",x,6',
            "from 1305 to 13,x,"]  # fmt: skip
    # with the mark that spreadsheets write first
    (tmp_path / "years.csv").write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    years = read_pairs(tmp_path / "years.csv")
    assert list(years) == [
        Prompt("from 1352 to 13", "53", "51", "from 1301 to 13"),
        Prompt("from 1304 to 13", "05", "03", "from 1301 to 13"),
        Prompt("from 1306\nto 13", "07", "05", "x"),
    ]
    assert years.left_out == {
        "no year before or none after it": ("line 3",),
        "label is not the end of the year that the text begins with": ("line 4", "line 8"),
        "a column is empty or no text": ("line 6", "line 7", "line 11"),
    }
    assert years.metric is year_diff


def test_a_text_may_hold_any_character(tmp_path):
    odd = "".join(map(chr, (0x85, 0x2028, 0x2029, 0x0B, 0x1F600)))
    line = json.dumps({**ROW, "clean_prefix": f"The{odd} uncle"}, ensure_ascii=False)
    (tmp_path / "mine.jsonl").write_text(line + "\r\n\r\n", encoding="utf-8", newline="")
    assert read_pairs(tmp_path / "mine.jsonl")[0].text == f"The{odd} uncle"


def test_indirect_objects_take_the_partner_with_the_other_name_where_there_is_one(tmp_path):
    clean, hard = "Then Mary and Ann left. Ann gave to", "Then Mary and Ann left. Mary gave to"
    header, row = "clean,corrupted,corrupted_hard\n", f"{clean},other,{hard}\n"
    (tmp_path / "a.csv").write_text(header + row + "Then Mary left,x,y\nMary and Ann,x,y\n")
    pairs = read_pairs(tmp_path / "a.csv")
    assert list(pairs) == [Prompt(clean, " Mary", " Ann", hard)]
    assert sorted(pairs.left_out.values()) == [("line 3",), ("line 4",)]
    (tmp_path / "b.csv").write_text(f"clean,corrupted\n{clean},other\n")
    assert read_pairs(tmp_path / "b.csv")[0].corrupted == "other"


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
        ("a.jsonl", json.dumps({**ROW, "clean_answer": 3}), "nothing of a.jsonl can be used"),
        ("a.csv", "clean,corrupted\nHello,there\n", "no two names joined by 'and' ('line 2')"),
        ("a.csv", 'clean,corrupted\n"Hello,there\n', "unexpected end of data"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(says)):
        read_pairs(tmp_path / name)


def test_what_is_no_name_of_a_file_is_refused():
    nothing: Any = None
    with pytest.raises(UserError, match="path=None; give the name of a file"):
        read_pairs(nothing)


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
    with pytest.raises(UserError, match="would run code of its own"):
        from_hugging_face("json", trust_remote_code=True, **options)


def test_a_folder_of_parquet_files_is_read_like_a_file(tmp_path):
    rows = {"clean": ["from 1352 to 13", None], "corrupted": ["from 1301 to 13", "x"],
            "label": ["52", "3"]}  # fmt: skip
    folder = tmp_path / "years"
    folder.mkdir()
    pd.DataFrame(rows).to_parquet(folder / "test.parquet")
    options: dict[str, Any] = {"split": "test", "cache_dir": str(tmp_path / "cache")}
    pairs = from_hugging_face(str(folder), **options)
    assert list(pairs) == [Prompt("from 1352 to 13", "53", "51", "from 1301 to 13")]
    assert (pairs.metric, list(pairs.left_out.values())) == (year_diff, [("row 1",)])
    named = from_hugging_face(str(folder), columns={"text": "clean"}, metric=year_diff, **options)
    assert (list(named), named.metric) == ([Prompt("from 1352 to 13")], year_diff)
    pd.DataFrame({"other": ["x"]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(UserError, match="has the columns other; give clean_prefix"):
        from_hugging_face(
            "parquet", data_files=str(tmp_path / "other.parquet"), cache_dir=str(tmp_path / "cache")
        )
