"""What every study returns: a table that says on what its numbers depend, a plot, and a record."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from experiments.records import write_figure, write_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

WIDEST = 60
"""Characters of a cell on the terminal."""


class Result(ABC):
    """Base of the studies' results, frozen dataclasses with a `provenance`.

    Attributes:
        kind: What the file calls itself: `ablation table`.
        shown: Columns of `frame()` that `text` prints.
        provenance: Model, dictionaries, prompts, metric, settings, versions, seed; JSON-able.
    """

    kind: ClassVar[str]
    shown: ClassVar[tuple[str, ...]]
    provenance: dict[str, Any]

    @abstractmethod
    def frame(self) -> DataFrame:
        """The whole table; conventions are columns, so that a line says by itself what it is."""

    @abstractmethod
    def figure(self) -> Figure:
        """The plot, as a matplotlib figure."""

    def text(self, top: int | None = None) -> str:
        """The `top` first lines of the table for the terminal, with the columns `shown`."""
        frame = self.frame()
        names = [column for column in self.shown if column in frame]
        columns = [frame[name].tolist()[:top] for name in names]
        left = [i for i, name in enumerate(names) if frame[name].dtype.kind not in "fiub"]
        rows = [[_cell(value) for value in row] for row in zip(*columns, strict=True)]
        table = layout([name.replace("_", " ") for name in names], rows, left=left)
        more = len(frame) - len(rows)
        return table + (f"\n... and {more} more" if more else "")

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the table to a `.json` (with the whole provenance) or `.csv` file.

        Raises:
            UserError: another suffix, or `path` cannot be written.
        """
        provenance = self.provenance
        return write_table(
            path, self.frame(), kind=self.kind, provenance=provenance, overwrite=overwrite
        )

    def plot(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Draw the plot to an SVG, PNG or PDF file.

        Raises:
            UserError: another suffix, or `path` cannot be written.
        """
        return write_figure(path, self.figure(), overwrite=overwrite)


def layout(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = ()) -> str:
    """Columns set to the right, those in `left` to the left; empty columns are left out."""
    columns = [column for column in enumerate(zip(head, *rows, strict=True)) if any(column[1][1:])]
    widths = [max(map(len, cells)) for _, cells in columns]
    lines = []
    for i in range(len(rows) + 1):
        cells = [
            cells[i].ljust(width) if at in left else cells[i].rjust(width)
            for (at, cells), width in zip(columns, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _cell(value: Any) -> str:
    """Numbers with three decimals, nothing where there is none, long text cut."""
    value = value.item() if hasattr(value, "item") else value  # numpy's scalars
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1e4 else f"{value:.3g}"
    text = " ".join(str(value).split())
    return text if len(text) <= WIDEST else text[: WIDEST - 3] + "..."
