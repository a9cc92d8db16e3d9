"""Read pairs from the files that the field passes around, and from Hugging Face data sets."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from attribution import logit_diff, prob_diff
from attribution.metrics import Metric
from circuits import Prompt, UserError
from experiments.datasets.pairs import Pairs, unique
from experiments.pooled import MetricOf

FEATURE_CIRCUITS = {
    "text": "clean_prefix",
    "target": "clean_answer",
    "foil": "patch_answer",
    "corrupted": "patch_prefix",
}
"""Which of feature-circuits' columns is what of a `Prompt`."""

YEARS = tuple(f"{year:02d}" for year in range(100))
Rows = Iterable[tuple[int, Mapping[str, Any]]]
"""With the number of each row's line."""


def read_pairs(path: str | Path, *, name: str | None = None, source: str = "") -> Pairs:
    """Pairs from a file: each question once, what cannot be used told in `left_out`.

    - `.jsonl` or `.json`, a JSON object a line, as feature-circuits': `clean_prefix`,
      `patch_prefix`, `clean_answer`, `patch_answer`.
    - `.csv` as EAP-IG's: `clean`, `corrupted` and, for greater-than, `label`, the last two digits
      of the first year; without it the answers are the two names of indirect-object prompts.

    Either may be compressed (`.gz`).

    Raises:
        UserError: the file cannot be read, is empty, or is laid out in another way.
    """
    path = Path(path)
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    if suffix not in (".jsonl", ".json", ".csv"):
        raise UserError(
            f"cannot read pairs from {path}; give a .jsonl (as feature-circuits') or a .csv file "
            "(as EAP-IG's)"
        )
    text = _text(path)
    rows = _csv_rows(path, text) if suffix == ".csv" else _json_rows(path, text)
    prompts, left_out, metric = _from_rows(path, list(rows))
    pairs = Pairs(tuple(prompts), name or path.name, source, metric, left_out)
    return unique(pairs)


def from_hugging_face(
    name: str,
    *,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    metric: MetricOf = logit_diff,
    **options: Any,
) -> Pairs:
    """Pairs from a data set of the Hugging Face hub, or a folder in its layout.

    Args:
        name: For `datasets.load_dataset`.
        split: Of the data set.
        columns: Which column is the `text`, `target`, `foil` and `corrupted` of a prompt; the last
            three may be left out. Those of feature-circuits by default.
        metric: From a prompt to its metric.
        options: Passed on to `datasets.load_dataset`; code of a data set is never run.

    Raises:
        UserError: it cannot be loaded, or has no such column.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    columns = dict(columns or FEATURE_CIRCUITS)
    strangers = columns.keys() - FEATURE_CIRCUITS.keys()
    if strangers or "text" not in columns:
        raise UserError(
            f"columns={columns}; name a column for text, and if there are any for target, foil "
            "and corrupted"
        )
    try:
        table = load_dataset(name, split=split, **options)
    except (OSError, ValueError, DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot load the data set {name!r}, split {split!r}: {reason}") from None
    there = list(table.column_names or [])
    for column in columns.values():
        if column not in there:
            raise UserError(f"{name} has no column {column!r}; it has {', '.join(there)}")
    prompts, incomplete = [], []
    for number, row in enumerate(table):
        values = {key: row[column] for key, column in columns.items()}  # pyright: ignore[reportCallIssue, reportArgumentType]
        if all(isinstance(value, str) and value for value in values.values()):
            prompts.append(Prompt(**values))
        else:
            incomplete.append(f"row {number}")
    left_out = {"a column is empty or no text": tuple(incomplete)} if incomplete else {}
    return unique(Pairs(tuple(prompts), f"{name} {split}", "", metric, left_out))


def year_diff(prompt: Prompt) -> Metric:
    """The probability on later years minus that on others, of `... the year 1352 to the year 13`.

    Years are pairs of digits, each of which has to be one token.
    """
    match = re.search(r"\d\d(\d\d)\b", prompt.text)
    if match is None:
        raise UserError(f"no year of four digits in {prompt.text!r}")
    start = int(match[1])
    return prob_diff(YEARS[start + 1 :], YEARS[: start + 1], name="p(later) - p(not later)")


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def _json_rows(path: Path, text: str) -> Rows:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            message = f"{path}, line {number}: {error.msg}; give one JSON object a line"
            raise UserError(message) from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: give one JSON object a line")
        yield number, row


def _csv_rows(path: Path, text: str) -> Rows:
    try:
        yield from enumerate(csv.DictReader(io.StringIO(text), strict=True), 2)
    except csv.Error as error:
        raise UserError(f"{path}: {error}") from None


def _from_rows(
    path: Path, rows: list[tuple[int, Mapping[str, Any]]]
) -> tuple[list[Prompt], dict[str, tuple[str, ...]], MetricOf]:
    if not rows:
        raise UserError(f"{path} has no rows; give at least one pair")
    columns = set(rows[0][1])
    if set(FEATURE_CIRCUITS.values()) <= columns:
        read, metric = _of_feature_circuits, logit_diff
    elif {"clean", "corrupted", "label"} <= columns:
        read, metric = _of_years, year_diff
    elif {"clean", "corrupted"} <= columns:
        read, metric = _of_names, logit_diff
    else:
        raise UserError(
            f"{path} has the columns {', '.join(sorted(filter(None, columns)))}; give "
            f"{', '.join(FEATURE_CIRCUITS.values())} (as feature-circuits) or clean, corrupted "
            "and, for years, label (as EAP-IG)"
        )
    prompts, left_out = [], {}
    for number, row in rows:
        found = _read(read, row)
        if isinstance(found, Prompt):
            prompts.append(found)
        else:
            left_out.setdefault(found, []).append(f"line {number}")
    return prompts, {reason: tuple(lines) for reason, lines in left_out.items()}, metric


def _read(
    read: Callable[[Mapping[str, Any]], Prompt | str], row: Mapping[str, Any]
) -> Prompt | str:
    """A prompt, or why there is none."""
    try:
        return read(row)
    except (KeyError, AttributeError, TypeError):
        return "a column is missing"


def _of_feature_circuits(row: Mapping[str, Any]) -> Prompt | str:
    values = {key: row[column] for key, column in FEATURE_CIRCUITS.items()}
    if not all(isinstance(value, str) and value for value in values.values()):
        return "a column is empty or no text"
    return Prompt(**values)


def _of_years(row: Mapping[str, Any]) -> Prompt | str:
    label = row["label"].strip()
    if not re.fullmatch(r"\d\d", label.zfill(2)) or not 0 < int(label) < 99:
        return "no year before and after the one in label"
    start = int(label)
    return Prompt(row["clean"], YEARS[start + 1], YEARS[start - 1], row["corrupted"])


def _of_names(row: Mapping[str, Any]) -> Prompt | str:
    """The name that is said once is the answer, the one that is said twice is not."""
    clean, corrupted = row["clean"], row.get("corrupted_hard") or row["corrupted"]
    pair = re.search(r"\b([A-Z][a-z]+) and ([A-Z][a-z]+)\b", clean)
    if pair is None:
        return "no two names joined by 'and'"
    counts = {name: len(re.findall(rf"\b{name}\b", clean)) for name in pair.groups()}
    once = [name for name, count in counts.items() if count == 1]
    twice = [name for name, count in counts.items() if count == 2]
    if len(once) != 1 or len(twice) != 1:
        return "not one name said once and one said twice"
    return Prompt(clean, f" {once[0]}", f" {twice[0]}", corrupted)
