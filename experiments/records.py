"""Results as files: tables to CSV and JSON, plots to SVG, PNG and PDF, whole or not at all."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attribution.attribute import record
from attribution.digest import digest
from circuits import Prompt, SplicedModel
from circuits.errors import UserError
from circuits.files import check_writable, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

TABLES = (".csv", ".json")
FIGURES = (".svg", ".png", ".pdf")


def check_output(path: str | Path, suffixes: tuple[str, ...], *, overwrite: bool = False) -> Path:
    """Say early whether a result can be written to `path`.

    Raises:
        UserError: another suffix than `suffixes`, or as `circuits.files.check_writable`.
    """
    path = Path(path)
    if path.suffix not in suffixes:
        raise UserError(f"cannot write {path.name}; its name must end in {', '.join(suffixes)}")
    return check_writable(path, overwrite=overwrite)


def write_table(
    path: str | Path,
    frame: DataFrame,
    *,
    kind: str,
    provenance: dict[str, Any],
    overwrite: bool = False,
) -> Path:
    """Write a table to `path`; NaN becomes an empty cell, or null.

    A `.json` file holds `kind`, the whole `provenance` and the rows. A `.csv` file opens anywhere:
    it holds the rows, whose columns should name the conventions that the numbers depend on.

    Raises:
        UserError: see `check_output`.
    """
    path = check_output(path, TABLES, overwrite=overwrite)
    if path.suffix == ".csv":
        return write_atomically(path, frame.to_csv(index=False), overwrite=overwrite)
    rows = [
        {column: _json_value(value) for column, value in row.items()}
        for row in frame.to_dict("records")
    ]
    content = {"format": f"gemma-circuits {kind}", "provenance": provenance, "rows": rows}
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    return write_atomically(path, text, overwrite=overwrite)


def write_figure(path: str | Path, figure: Figure, *, overwrite: bool = False) -> Path:
    """Write a plot in the format that the end of `path` names; the same plot gives the same bytes.

    Raises:
        UserError: see `check_output`.
    """
    path = check_output(path, FIGURES, overwrite=overwrite)
    return write_atomically(path, _drawn(figure, path.suffix), overwrite=overwrite)


def svg_text(figure: Figure) -> str:
    """A plot as SVG; the same plot gives the same text."""
    return _drawn(figure, ".svg").decode()


def _drawn(figure: Figure, suffix: str) -> bytes:
    import matplotlib as mpl

    buffer = io.BytesIO()
    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}[suffix]
    with mpl.rc_context({"svg.hashsalt": "gemma-circuits"}):
        figure.savefig(buffer, format=suffix[1:], dpi=150, metadata=undated)
    return buffer.getvalue()


def _json_value(value: Any) -> Any:
    """Plain numbers and text; None where a number is missing."""
    value = value.item() if hasattr(value, "item") else value  # numpy's scalars
    return None if isinstance(value, float) and not math.isfinite(value) else value


def record_prompts(
    model: SplicedModel,
    prompts: Sequence[str | Prompt],
    metric: str,
    settings: dict[str, Any],
    *,
    seed: int | None = None,
) -> dict[str, Any]:
    """Everything that numbers of many prompts depend on, JSON-able.

    Args:
        metric: Name of the metric, or of the function from a prompt to its metric.
        settings: Conventions and options.
        seed: Of what is random.
    """
    told = record(model, None, metric, settings)
    return {**told, "prompts": record_of(prompts), "seed": seed}


def record_of(prompts: Sequence[str | Prompt]) -> dict[str, Any]:
    """The name of some prompts, if they have one, their number, and a digest of what they are."""
    texts = [asdict(prompt) if isinstance(prompt, Prompt) else prompt for prompt in prompts]
    return {"name": getattr(prompts, "name", None), "n": len(prompts), "digest": digest(texts)}
