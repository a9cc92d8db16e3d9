"""What a command over many prompts is asked about: the model, the prompts and their spans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from circuits import Prompt, SplicedModel
    from experiments.kinds import AblationKind
    from experiments.pooled import MetricOf
    from experiments.results import Result
    from experiments.spans import Spans

_OPTIONS = (
    click.option(
        "--task", required=True, metavar="NAME|FILE",
        help="A task of the bundled model (ioi, ...), a named data set (agreement/nounpp), or a "
        "file of pairs (.jsonl as feature-circuits', .csv as EAP-IG's).",
    ),
    click.option(
        "--prompts", "n_prompts", type=click.IntRange(min=2), default=30, show_default=True,
        metavar="N", help="How many pairs.",
    ),
    click.option(
        "--spans", "spanned", type=click.Choice(["named", "aligned", "whole"]),
        help="What a node is over prompts: a latent at a named span, at a position, or anywhere. "
        "Default: named where the task names spans, else aligned where lengths agree.",
    ),
    click.option(
        "--kind", "kind_name", default="patch", show_default=True,
        metavar="KIND", help="What ablated latents are set to: patch, mean, resample, zero, or "
        "'set to 2.5'.",
    ),
    click.option(
        "--downstream", type=click.Choice(["recompute", "freeze"]), default="recompute",
        show_default=True, help="Errors downstream follow the change or keep their clean values.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Of everything random."),
    click.option("--model", default="tiny", show_default=True, metavar="NAME|DIR",
                 help="tiny (bundled), gemma-2-2b, ..., or a Hugging Face folder."),
    click.option("--dictionaries", metavar="DIR|NAME", help="As for circuits trace."),
    click.option("--sites", default="attn,mlp,resid", show_default=True, metavar="KINDS",
                 help="Kinds of site; transcoder is another."),
    click.option("--device", help="cpu, cuda, ...; CUDA when there is one, by default."),
    click.option("--memory", metavar="AMOUNT", help="What model and dictionaries may take: 20GB."),
    click.option(
        "--out", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
        help="Where to write, by suffix: .csv, .json (with the provenance), or a plot as .svg, "
        ".png, .pdf. May be repeated.",
    ),
    click.option("--force", is_flag=True, help="Replace files that exist."),
)  # fmt: skip
_NAMES = ("task", "n_prompts", "spanned", "kind_name", "downstream", "seed", "model",
          "dictionaries", "sites", "device", "memory", "out", "force")  # fmt: skip


@dataclass(frozen=True)
class Many:
    """Everything loaded.

    Attributes:
        name: Of the task or data set.
        others: Further prompts, apart from `prompts`: donors, means, re-tests.
    """

    name: str
    model: SplicedModel
    prompts: Sequence[Prompt]
    others: Sequence[Prompt]
    metric: MetricOf
    kind: AblationKind
    downstream: str
    seed: int
    out: tuple[Path, ...]
    force: bool
    spanned: str | None

    def spans(self, prompts: Sequence[Prompt]) -> Spans:
        """The spans of `prompts`, as asked for; those of different prompts have the same names."""
        from experiments.named import spans_for

        return spans_for(self.model, self.name, [*self.prompts, *self.others], self.spanned)(
            prompts
        )

    def finish(self, result: Result, top: int | None = 30) -> None:
        """Print the result and write the files that were asked for."""
        from experiments.records import TABLES

        click.echo(f"{self.model.name}: {len(self.prompts)} prompts of {self.name}")
        click.echo(f"{result!r}\n")
        click.echo(result.text(top))
        for path in self.out:
            write = result.save if path.suffix in TABLES else result.plot
            click.echo(f"wrote {write(path, overwrite=self.force)}")


def asks_many(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command over many prompts its options, as one `many` argument, loaded."""

    def gathered(**options: Any) -> Any:
        return command(_loaded({name: options.pop(name) for name in _NAMES}), **options)

    gathered.__doc__ = command.__doc__
    gathered.__name__ = command.__name__
    gathered.__click_params__ = getattr(command, "__click_params__", [])  # pyright: ignore[reportFunctionMemberAccess]
    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered


def _loaded(given: dict[str, Any]) -> Many:
    from circuits import UserError, load
    from experiments.kinds import kind_named
    from experiments.named import prompts_named
    from experiments.records import FIGURES, TABLES, check_output

    out = tuple(dict.fromkeys(given["out"]))
    for path in out:
        check_output(path, (*TABLES, *FIGURES), overwrite=given["force"])
    prompts, others, metric = prompts_named(given["task"], given["n_prompts"], given["seed"])
    kind = kind_named(given["kind_name"], others or prompts, seed=given["seed"])
    model = load(
        given["model"],
        dictionaries=given["dictionaries"],
        sites=[site.strip() for site in given["sites"].split(",")],
        device=given["device"],
        memory=given["memory"],
    )
    from experiments.datasets import fitting

    kept = fitting(model, prompts, aligned=kind.name == "patch")
    if kept.left_out:
        click.echo(kept.report(), err=True)
    if len(kept) < 2:
        raise UserError(
            f"{len(kept)} of the {len(prompts)} pairs of {given['task']} fit {model.name}; "
            "give another task, or a model that knows its words"
        )
    return Many(
        name=given["task"],
        model=model,
        prompts=kept,
        others=fitting(model, others, aligned=kind.name == "patch") if others else (),
        metric=metric,
        kind=kind,
        downstream=given["downstream"],
        seed=given["seed"],
        out=out,
        force=given["force"],
        spanned=given["spanned"],
    )
