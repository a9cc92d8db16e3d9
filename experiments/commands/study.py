"""`circuits study`: a grid of circuits from a TOML file, resumable, with one report."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Run a study: tasks x methods x ablations x seeds, with one report.")
@click.argument("declaration", type=click.Path(path_type=Path), metavar="STUDY.toml")
@click.option(
    "--out", "folder", type=click.Path(path_type=Path), metavar="DIR",
    help="Where cells and report go; by default a folder named as the file. A run that was "
    "stopped goes on there.",
)  # fmt: skip
def study(declaration: Path, folder: Path | None) -> None:
    """Rank nodes by several methods on several tasks, and test the circuits on other prompts.

    Each finished cell is written at once; nothing is computed twice. The report is report.html
    (and report.md) in the folder.

    \b
    A declaration, all but tasks optional:
      tasks = ["ioi", "agreement_rc"]
      methods = ["gradient x activation", "integrated gradients", "RelP", "random"]
                                     # also "learned masks", "activation size"
      ablations = ["patch"]          # patch, mean, resample, zero
      sizes = [10, 30, 100, 300]
      seeds = [0, 1]
      n_prompts = 20
      n_heldout = 20
      n_random = 20                  # random circuits of each size
      downstream = "recompute"       # or freeze
      errors = "kept"                # or scored, removed
      model = "tiny"                 # or another; dictionaries, width and l0 too
      sites = ["resid"]              # all three kinds by default

    \b
    Example:
      circuits study circuits.toml --out circuits_study
    """
    from experiments.study import read_study, run_study
    from experiments.study.runner import cell_path

    asked = read_study(declaration)
    folder = folder or declaration.with_suffix("")
    try:
        report = run_study(asked, folder)
    except KeyboardInterrupt:
        cells = list(asked.cells())
        done = sum(cell_path(folder, cell).exists() for cell in cells)
        click.echo(
            f"\n{done} of {len(cells)} cells are done and kept in {folder}; the same command goes "
            "on there",
            err=True,
        )
        raise
    page = report.write(folder)
    click.echo(report.summary().to_string(index=False, float_format=lambda x: f"{x:.3f}"))
    click.echo(f"\nwrote {page}")
