"""Groups of options that several commands share, each gathered into one argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from experiments.results import Result

OUTPUT = (
    click.option(
        "--out", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
        help="Where to write, by suffix: .csv, .json (with the provenance), or a plot as .svg, "
        ".png, .pdf. May be repeated.",
    ),
    click.option("--force", is_flag=True, help="Replace files that exist."),
)  # fmt: skip

errors_option = click.option(
    "--errors", type=click.Choice(["kept", "scored", "removed"]), default="kept",
    show_default=True,
    help="What dictionaries miss is kept, is a node like any other, or is set to the reference.",
)  # fmt: skip


@dataclass(frozen=True)
class Files:
    """Where a result goes.

    Attributes:
        paths: Each once.
        force: Whether files that exist are replaced.
    """

    paths: tuple[Path, ...]
    force: bool

    @classmethod
    def checked(cls, out: Sequence[Path], force: bool) -> Files:
        """Refused now, not after all the work.

        Raises:
            UserError: one cannot be written.
        """
        from experiments.records import FIGURES, TABLES, check_output

        paths = tuple(dict.fromkeys(out))
        for path in paths:
            check_output(path, (*TABLES, *FIGURES), overwrite=force)
        return cls(paths, force)

    def write(self, result: Result) -> None:
        """Write `result` to each, and say so."""
        from experiments.records import TABLES

        for path in self.paths:
            write = result.save if path.suffix in TABLES else result.plot
            click.echo(f"wrote {write(path, overwrite=self.force)}")


def writes(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--out` and `--force`, as one `files` argument."""

    def gather(options: dict[str, Any]) -> dict[str, Any]:
        return {"files": Files.checked(options.pop("out"), options.pop("force")), **options}

    return with_options(command, OUTPUT, gather)


def with_options(
    command: Callable[..., Any],
    options: Sequence[Callable[..., Any]],
    gather: Callable[[dict[str, Any]], dict[str, Any]],
) -> Callable[..., Any]:
    """A command with `options` after its own; `gather` makes its arguments of all of them."""

    def gathered(**given: Any) -> Any:
        return command(**gather(given))

    gathered.__doc__ = command.__doc__
    gathered.__name__ = command.__name__
    gathered.__click_params__ = getattr(command, "__click_params__", [])  # pyright: ignore[reportFunctionMemberAccess]
    for option in reversed(options):
        gathered = option(gathered)
    return gathered
