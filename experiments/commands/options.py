"""Groups of options that several commands share, each gathered into one argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from circuits import SplicedModel
    from experiments.results import Result

MODEL = click.option(
    "--model", metavar="NAME|DIR",
    help="tiny (bundled, the default), gemma-2-2b, ..., or a Hugging Face folder.",
)  # fmt: skip

DICTIONARIES = (
    click.option(
        "--dictionaries", metavar="DIR|NAME",
        help="A folder that mirrors the hub (folders ending in -res, -att, -mlp) or holds other "
        "libraries' dictionaries; or the name of a model whose Gemma Scope to take.",
    ),
    click.option(
        "--sites", metavar="KINDS",
        help="Kinds of site, by commas: attn,mlp,resid (default); also embed, and transcoder in "
        "the place of mlp.",
    ),
    click.option(
        "--width",
        help="How many latents: 16k (default; or what a folder has, if that is one), 65k, ...",
    ),
    click.option(
        "--l0",
        help="And how many are on at a token: canonical (default, nearest 100), 71, nearest:50.",
    ),
)  # fmt: skip

LOADING = (
    *DICTIONARIES,
    click.option("--device", help="cpu, cuda, ...; CUDA when there is one, by default."),
    click.option(
        "--memory", metavar="AMOUNT",
        help="What the model and its dictionaries may take, for example 20GB; the others are read "
        "from the disk when they are needed. Default: three quarters of what is free.",
    ),
)  # fmt: skip

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


def seed_option(help: str) -> Callable[..., Any]:
    """`--seed`; `help` says of what it is."""
    return click.option(
        "--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help=help
    )


@dataclass(frozen=True)
class Loading:
    """Which model with which dictionaries, as the options came; `None` where one was not given."""

    model: str | None
    dictionaries: str | None
    sites: str | None
    width: str | None
    l0: str | None
    device: str | None
    memory: str | None

    @classmethod
    def taken(cls, options: dict[str, Any]) -> Loading:
        """What `options` say of it; it is taken out of them."""
        return cls(**{field.name: options.pop(field.name, None) for field in fields(cls)})

    def otherwise(self, **defaults: str | None) -> Loading:
        """The same, with `defaults` where nothing was given."""
        lacking = {name: v for name, v in defaults.items() if getattr(self, name) is None}
        return replace(self, **lacking)

    def choice(self) -> dict[str, Any]:
        """Which of several dictionaries: the arguments of `load` that were given."""
        sites = None if self.sites is None else [kind.strip() for kind in self.sites.split(",")]
        given = {"sites": sites, "width": self.width, "l0": self.l0}
        return {name: value for name, value in given.items() if value is not None}

    def load(self) -> SplicedModel:
        """The model; `tiny` where none was named."""
        from circuits import load

        return load(
            "tiny" if self.model is None else self.model,
            dictionaries=self.dictionaries,
            device=self.device,
            memory=self.memory,
            **self.choice(),
        )


def loads(options: Sequence[Callable[..., Any]]) -> Callable[..., Callable[..., Any]]:
    """Give a command with a MODEL `options` of loading it, all as one `loading` argument."""

    def gather(given: dict[str, Any]) -> dict[str, Any]:
        return {"loading": Loading.taken(given), **given}

    return lambda command: with_options(command, options, gather)


def read_texts(ctx: click.Context, param: click.Parameter, path: Path | None) -> list[str] | None:
    """The lines of a file that are not blank; an option's callback, before a model is loaded.

    Raises:
        UserError: the file cannot be read, or holds none.
    """
    if path is None:
        return None
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
