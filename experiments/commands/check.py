"""`circuits check`: do the dictionaries fit the model?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from experiments.gates import GateReport, GateRow


@click.command(short_help="Whether the dictionaries fit the model; run it first.")
@click.argument("model", metavar="MODEL")
@click.option(
    "--dictionaries", metavar="DIR|NAME",
    help="A folder that mirrors the hub (folders ending in -res, -att, -mlp) or holds other "
    "libraries' dictionaries; or the name of a model whose Gemma Scope to take.",
)  # fmt: skip
@click.option(
    "--sites",
    metavar="KINDS",
    help="Kinds: attn,mlp,resid (default); transcoder.",
)
@click.option("--width", help="Of several dictionaries at a site: 16k (the default).")
@click.option("--l0", help="And of several L0: canonical (the default), 71, nearest:50.")
@click.option("--device", help="cpu, cuda, ...; CUDA when there is one, by default.")
@click.option(
    "--memory", metavar="AMOUNT",
    help="What the model and its dictionaries may take, for example 20GB.",
)  # fmt: skip
@click.option(
    "--text", "texts", metavar="FILE", type=click.Path(path_type=Path),
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
def check(
    model: str,
    dictionaries: str | None,
    sites: str | None,
    width: str | None,
    l0: str | None,
    device: str | None,
    memory: str | None,
    texts: Path | None,
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
    from circuits import load
    from experiments.gates import check_dictionaries
    from experiments.records import TABLES, check_output

    out = tuple(dict.fromkeys(out))
    for path in out:
        check_output(path, TABLES, overwrite=force)
    own = _read_texts(texts) if texts is not None else None
    given = {"sites": sites and [kind.strip() for kind in sites.split(",")],
             "width": width, "l0": l0, "memory": memory}  # fmt: skip
    choice: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    loaded = load(model, dictionaries=dictionaries, device=device, **choice)
    report = check_dictionaries(loaded, own, batch_size=batch_size)
    click.echo(f"{loaded!r}\n")
    click.echo(_table(report))
    click.echo(f"\n{report}")
    for path in out:
        click.echo(f"wrote {report.save(path, overwrite=force)}")
    if not report.passed:
        raise SystemExit(1)


def _read_texts(path: Path) -> list[str]:
    """The lines of a file that are not blank."""
    from circuits.errors import UserError

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a text file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8; save it as such") from error
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise UserError(f"{path} holds no texts; write one a line")
    return texts


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
