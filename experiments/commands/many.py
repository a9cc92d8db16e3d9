"""What a command over many prompts is asked about: the model, the prompts and their spans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from experiments.commands.options import OUTPUT, Files, with_options

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
    *OUTPUT,
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


def asks_many(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command over many prompts its options, as one `many` argument, loaded."""

    def gather(options: dict[str, Any]) -> dict[str, Any]:
        return {"many": _loaded({name: options.pop(name) for name in _NAMES}), **options}

    return with_options(command, _OPTIONS, gather)


def _loaded(given: dict[str, Any]) -> Many:
    from circuits import UserError, load
    from experiments.datasets import fitting
    from experiments.kinds import kind_named
    from experiments.named import prompts_named

    files = Files.checked(given["out"], given["force"])
    prompts, others, metric = prompts_named(given["task"], given["n_prompts"], given["seed"])
    kind = kind_named(given["kind_name"], others or prompts, seed=given["seed"])
    model = load(
        given["model"],
        dictionaries=given["dictionaries"],
        sites=[site.strip() for site in given["sites"].split(",")],
        device=given["device"],
        memory=given["memory"],
    )
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
        files=files,
        spanned=given["spanned"],
    )
