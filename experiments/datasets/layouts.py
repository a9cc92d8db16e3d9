"""How published files lay a pair out in columns, and the prompt that a row is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from attribution import logit_diff
from circuits import Prompt
from experiments.datasets.years import LAST, later_years, start_of, year_diff
from experiments.pooled import MetricOf

FEATURE_CIRCUITS = {
    "text": "clean_prefix",
    "target": "clean_answer",
    "foil": "patch_answer",
    "corrupted": "patch_prefix",
}
"""Which of feature-circuits' columns is what of a `Prompt`."""

EMPTY = "a column is empty or no text"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """One way to write pairs down.

    Attributes:
        columns: That a row must have, each a text that is not empty.
        prompt: From those of a row to its prompt, or to why there is none.
        metric: What is asked of the prompts.
    """

    columns: tuple[str, ...]
    prompt: Callable[[Mapping[str, str]], Prompt | str]
    metric: MetricOf = logit_diff

    def read(
        self, rows: Iterable[tuple[str, Row]]
    ) -> tuple[tuple[Prompt, ...], dict[str, tuple[str, ...]]]:
        """The prompts of named rows, and by reason the names of those that give none."""
        prompts, left_out = [], {}
        for where, row in rows:
            values = {column: row.get(column) for column in self.columns}
            whole = all(isinstance(value, str) and value.strip() for value in values.values())
            found = self.prompt(values) if whole else EMPTY  # pyright: ignore[reportArgumentType]
            if isinstance(found, Prompt):
                prompts.append(found)
            else:
                left_out.setdefault(found, []).append(where)
        return tuple(prompts), {reason: tuple(names) for reason, names in left_out.items()}


def by_columns(columns: Mapping[str, str], metric: MetricOf = logit_diff) -> Layout:
    """The layout that says in `columns` which column is the `text`, `target`, ... of a prompt."""

    def prompt(row: Mapping[str, str]) -> Prompt:
        return Prompt(**{part: row[column] for part, column in columns.items()})

    return Layout(tuple(columns.values()), prompt, metric)


def layout_of(columns: Iterable[str]) -> Layout | None:
    """The published layout of which all columns are there."""
    there = set(columns)
    return next((layout for layout in LAYOUTS if there.issuperset(layout.columns)), None)


def _years(row: Mapping[str, str]) -> Prompt | str:
    start = start_of(row["clean"])
    if start is None or row["label"].strip().zfill(2) != f"{start:02d}":
        return "label is not the end of the year that the text begins with"
    if not 0 < start < LAST:
        return "no year before or none after it"
    return later_years(row["clean"], row["corrupted"])


def _names(partner: str) -> Callable[[Mapping[str, str]], Prompt | str]:
    """The name that is said once is the answer, the one that is said twice is not."""

    def prompt(row: Mapping[str, str]) -> Prompt | str:
        clean = row["clean"]
        pair = re.search(r"\b([A-Z][a-z]+) and ([A-Z][a-z]+)\b", clean)
        if pair is None:
            return "no two names joined by 'and'"
        counts = {name: len(re.findall(rf"\b{name}\b", clean)) for name in pair.groups()}
        if sorted(counts.values()) != [1, 2]:
            return "not one name said once and one said twice"
        once, twice = sorted(counts, key=lambda name: counts[name])
        return Prompt(clean, f" {once}", f" {twice}", row[partner])

    return prompt


LAYOUTS = (
    by_columns(FEATURE_CIRCUITS),
    Layout(("clean", "corrupted", "label"), _years, year_diff),
    # the partner that says the other name twice, so that its answer is the foil
    Layout(("clean", "corrupted_hard"), _names("corrupted_hard")),
    Layout(("clean", "corrupted"), _names("corrupted")),
)
"""Feature-circuits', EAP-IG's greater-than and its indirect objects; the first that fits counts."""
