"""What a command over many prompts is asked about: the model, the prompts and their spans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from experiments.commands.options import (
    LOADING,
    MODEL,
    OUTPUT,
    Files,
    Loading,
    seed_option,
    with_options,
)

if TYPE_CHECKING:
    from circuits import Prompt, SplicedModel
    from experiments.datasets import Pairs
    from experiments.kinds import AblationKind
    from experiments.pooled import MetricOf
    from experiments.results import Result
    from experiments.spans import Spans

KIND = click.option(
    "--kind", "kind_name", default="patch", show_default=True, metavar="KIND",
    help="What ablated latents are set to: patch (the partner's values), mean or resample (of "
    "further prompts), zero, or 'set to 2.5'.",
)  # fmt: skip

_OPTIONS = (
    click.option(
        "--task", required=True, metavar="NAME|FILE",
        help="A task (ioi, ...: see circuits info tiny), a data set (agreement/nounpp), or a "
        "file of pairs (.jsonl as feature-circuits', .csv as EAP-IG's).",
    ),
    click.option(
        "--prompts", "n_prompts", type=click.IntRange(min=2), default=30, show_default=True,
        metavar="N", help="How many pairs, of those that fit the model.",
    ),
    click.option(
        "--spans", "spanned", type=click.Choice(["named", "aligned", "whole"]),
        help="What a node is over prompts: a latent at a named span, at a position, or anywhere. "
        "Default: named where the task names spans, else aligned where lengths agree.",
    ),
    KIND,
    click.option(
        "--downstream", type=click.Choice(["recompute", "freeze"]), default="recompute",
        show_default=True, help="Errors downstream follow the change or keep their clean values.",
    ),
    seed_option("Of everything random."),
    MODEL,
    *LOADING,
    *OUTPUT,
)  # fmt: skip
_NAMES = ("task", "n_prompts", "spanned", "kind_name", "downstream", "seed", "loading", "out",
          "force")  # fmt: skip


@dataclass(frozen=True)
class Many:
    """Everything loaded.

    Attributes:
        name: Of the task or data set.
        others: Further prompts, apart from `prompts`: donors, means, re-tests.
    """

    name: str
    model: SplicedModel
    prompts: Pairs
    others: Pairs
    metric: MetricOf
    kind: AblationKind
    downstream: str
    seed: int
    files: Files
    spanned: str | None

    def spans(self, prompts: Sequence[Prompt]) -> Spans:
        """The spans of `prompts`, as asked for; those of different prompts have the same names."""
        from experiments.named import spans_for

        return spans_for(self.model, self.name, [*self.prompts, *self.others], self.spanned)(
            prompts
        )

    def finish(self, result: Result, top: int | None = 30) -> None:
        """Print the result and write the files that were asked for."""
        click.echo(f"{self.model.name}: {len(self.prompts)} prompts of {self.name}")
        click.echo(f"{result!r}\n")
        click.echo(result.text(top))
        self.files.write(result)


def asks_many(command: Callable[..., Any], *, ablates: bool = True) -> Callable[..., Any]:
    """Give a command over many prompts its options, as one `many` argument, loaded.

    Args:
        ablates: Whether it sets nodes to values of some kind; else partners may be of any length.
    """

    def gather(options: dict[str, Any]) -> dict[str, Any]:
        options["loading"] = Loading.taken(options)
        options.setdefault("kind_name", "zero")
        return {"many": _loaded({name: options.pop(name) for name in _NAMES}), **options}

    chosen = [option for option in _OPTIONS if ablates or option is not KIND]
    return with_options(command, chosen, gather)


def _loaded(given: dict[str, Any]) -> Many:
    from circuits import UserError
    from experiments.kinds import kind_named
    from experiments.named import prompts_named

    files = Files.checked(given["out"], given["force"])
    asked = given["task"], given["n_prompts"], given["seed"]
    prompts, others, _ = prompts_named(*asked)
    kind = kind_named(given["kind_name"], others or prompts)  # before a model is loaded for nothing
    model = given["loading"].load()
    prompts, others, metric = prompts_named(*asked, model=model, aligned=kind.name == "patch")
    for line in _told(prompts, others, given["n_prompts"]):
        click.echo(line, err=True)
    if len(prompts) < 2:
        raise UserError(
            f"{len(prompts)} of the pairs of {given['task']} fit {model.name}; "
            "give another task, or a model that knows its words"
        )
    return Many(
        name=given["task"],
        model=model,
        prompts=prompts,
        others=others,
        metric=metric,
        kind=kind_named(given["kind_name"], others or prompts, seed=given["seed"]),
        downstream=given["downstream"],
        seed=given["seed"],
        files=files,
        spanned=given["spanned"],
    )


def _told(prompts: Pairs, others: Pairs, n: int) -> list[str]:
    """What there is to tell of `n` pairs and as many others: what was left out, or too few."""
    told = []
    if prompts.left_out or len(prompts) < n:
        told.append(f"asked for {n}: {prompts.report()}")
    if others.left_out != prompts.left_out:
        told.append(f"asked for {n} others: {others.report()}")
    elif len(others) < n:
        told.append(f"asked for {n} others: {len(others)} pairs")
    return told
