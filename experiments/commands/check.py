"""`circuits check`: do the dictionaries fit the model?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from experiments.commands.options import LOADING, Loading, loads, read_texts

if TYPE_CHECKING:
    from experiments.gates import GateReport, GateRow


@click.command(short_help="Whether the dictionaries fit the model; run it first.")
@click.argument("model", metavar="MODEL")
@click.option(
    "--text", "texts", metavar="FILE", type=click.Path(path_type=Path), callback=read_texts,
    help="Texts of your own, one a line. Default: those of the bundled model; else sixty English "
    "ones of several kinds.",
)  # fmt: skip
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=8, show_default=True, metavar="N",
    help="Texts of one pass.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
    help="Where to write, by suffix: .csv or .json (with the provenance). May be repeated.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files that exist.")
@loads(LOADING)
def check(
    loading: Loading,
    texts: list[str] | None,
    batch_size: int,
    out: tuple[Path, ...],
    force: bool,
) -> None:
    """Measure at each site of MODEL whether its dictionary fits, and say what is wrong if not.

    Two gates, over the text tokens of some texts: the mean number of active latents a token (L0)
    is within 30 % of the number in the dictionary's folder, and the explained variance,
    1 - sum |x - x_hat|^2 / sum |x - mean|^2 (a share without a unit), is above 0.6. What is not
    known does not fail. MODEL is tiny, gemma-2-2b, ..., or a Hugging Face folder.

    Exit code: 0 if all gates pass, 1 if one fails, 2 for bad input.

    \b
    Examples:
      circuits check tiny
      circuits check gemma-2-2b --sites mlp --out gates.csv
      circuits check my-model/ --dictionaries my-dictionaries/ --text my-texts.txt
    """
    from experiments.gates import check_dictionaries
    from experiments.records import TABLES, check_output

    out = tuple(dict.fromkeys(out))
    for path in out:
        check_output(path, TABLES, overwrite=force)
    loaded = loading.load()
    report = check_dictionaries(loaded, texts, batch_size=batch_size)
    click.echo(f"{loaded!r}\n")
    click.echo(_table(report))
    click.echo(f"\n{report}")
    for path in out:
        click.echo(f"wrote {report.save(path, overwrite=force)}")
    if not report.passed:
        raise SystemExit(1)


def _table(report: GateReport) -> str:
    from experiments.results import layout

    head = ("site", "dictionary", "L0", "folder says", "explained variance", "verdict")
    return layout(head, [_cells(row) for row in report], left=(0, 1, 5))


def _cells(row: GateRow) -> tuple[str, ...]:
    expected, explained = row.expected_l0, row.explained
    return (
        str(row.site),
        row.dictionary,
        f"{row.l0:.1f}",
        "not known" if expected is None else f"{expected:g}",
        "not known" if explained is None else f"{explained:.3f}",
        row.verdict,
    )
