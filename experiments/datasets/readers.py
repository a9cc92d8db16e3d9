"""Read pairs from the files that the field passes around, and from Hugging Face data sets."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from circuits import UserError
from experiments.datasets.layouts import FEATURE_CIRCUITS, Layout, Row, by_columns, layout_of
from experiments.datasets.pairs import Pairs, unique
from experiments.pooled import MetricOf

Rows = Iterator[tuple[str, Row]]
"""With where each is from, for messages: `line 3`."""


def read_pairs(path: str | Path, *, name: str | None = None, source: str = "") -> Pairs:
    """Pairs from a file: each question once, what cannot be used told in `left_out`.

    - `.jsonl` or `.json`, a JSON object a line, as feature-circuits': `clean_prefix`,
      `patch_prefix`, `clean_answer`, `patch_answer`.
    - `.csv` as EAP-IG's: `clean`, `corrupted` and, for greater-than, `label`, the last two digits
      of the first year. Without it the answers are the two names of indirect-object prompts, and
      the partner is `corrupted_hard` (the other name said twice) where there is that column.

    Either may be compressed (`.gz`).

    Raises:
        UserError: the file cannot be read, is empty, is laid out in another way, or has no row that
            can be used.
    """
    if not isinstance(path, str | Path):
        raise UserError(f"path={path!r}; give the name of a file")
    path = Path(path)
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    if suffix not in (".jsonl", ".json", ".csv"):
        raise UserError(
            f"cannot read pairs from {path}; give a .jsonl (as feature-circuits') or a .csv file "
            "(as EAP-IG's)"
        )
    text = _text(path)
    rows = list(_csv_rows(path, text) if suffix == ".csv" else _json_rows(path, text))
    if not rows:
        raise UserError(f"{path} has no rows; give at least one pair")
    columns = [column for column in rows[0][1] if column]
    return _pairs(_known_layout(str(path), columns), rows, name or path.name, source)


def from_hugging_face(
    name: str,
    *,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    metric: MetricOf | None = None,
    **options: Any,
) -> Pairs:
    """Pairs from a data set of the Hugging Face hub, or a folder in its layout.

    Args:
        name: For `datasets.load_dataset`.
        split: Of the data set.
        columns: Which column is the `text`, `target`, `foil` and `corrupted` of a prompt; the last
            three may be left out. By default one of the layouts that `read_pairs` knows.
        metric: From a prompt to its metric; by default that of the layout.
        options: Passed on to `datasets.load_dataset`, such as `revision` or `data_files`.

    Raises:
        UserError: it cannot be loaded, runs code of its own, has no such column, or no row that can
            be used.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    if columns is not None and ("text" not in columns or columns.keys() - FEATURE_CIRCUITS.keys()):
        raise UserError(
            f"columns={dict(columns)}; name a column for text, and if there are any for target, "
            "foil and corrupted"
        )
    if options.get("trust_remote_code"):
        raise UserError(f"{name} would run code of its own; give a data set that is only data")
    try:
        table = load_dataset(name, split=split, **options)
    except (OSError, ValueError, DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot load the data set {name!r}, split {split!r}: {reason}") from None
    there = list(table.column_names or [])
    if missing := [column for column in (columns or {}).values() if column not in there]:
        raise UserError(f"{name} has no column {missing[0]!r}; it has {', '.join(there)}")
    layout = by_columns(columns) if columns else _known_layout(name, there)
    rows = ((f"row {number}", row) for number, row in enumerate(table))
    pairs = _pairs(layout, rows, f"{name} {split}", "")
    return pairs if metric is None else replace(pairs, metric=metric)


def _known_layout(name: str, columns: Sequence[str]) -> Layout:
    layout = layout_of(columns)
    if layout is None:
        raise UserError(
            f"{name} has the columns {', '.join(columns)}; give "
            f"{', '.join(FEATURE_CIRCUITS.values())} (as feature-circuits) or clean, corrupted "
            "and, for years, label (as EAP-IG)"
        )
    return layout


def _pairs(layout: Layout, rows: Iterable[tuple[str, Row]], name: str, source: str) -> Pairs:
    """Each question of the rows once; what is left out is told."""
    prompts, left_out = layout.read(rows)
    pairs = Pairs(prompts, name, source, layout.metric, left_out)
    if not prompts:
        raise UserError(f"nothing of {name} can be used: {pairs.report()}")
    return unique(pairs)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        # -sig: spreadsheets write a byte order mark before the first column's name
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def _json_rows(path: Path, text: str) -> Rows:
    # not splitlines: a text may hold one of the other characters that end lines for it
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            message = f"{path}, line {number}: {error.msg}; give one JSON object a line"
            raise UserError(message) from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: give one JSON object a line")
        yield f"line {number}", row


def _csv_rows(path: Path, text: str) -> Rows:
    try:
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        for row in rows:
            yield f"line {rows.line_num}", row
    except csv.Error as error:
        raise UserError(f"{path}: {error}") from None
