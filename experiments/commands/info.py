"""`circuits info`: which models, dictionaries and tasks there are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from circuits import SplicedModel


@click.command(short_help="Models, layers, dictionaries and tasks.")
@click.argument("model", required=False)
@click.option(
    "--dictionaries", metavar="DIR", type=click.Path(path_type=Path),
    help="Of a model folder of your own: its dictionaries.",
)  # fmt: skip
def info(model: str | None, dictionaries: Path | None) -> None:
    """List the models, or one MODEL's layers, sites, dictionaries and tasks.

    Nothing is downloaded. Widths count latents; L0 is the mean number of latents active at a
    token, as the dictionary's folder says.

    \b
    Examples:
      circuits info
      circuits info tiny
      circuits info gemma-2-2b
      circuits info my-model/ --dictionaries my-dictionaries/
    """
    from circuits.catalogue import catalogue
    from circuits.errors import UserError
    from circuits.models import HUB_MODELS, bundled_models

    if model is None:
        _list_models()
    elif model in HUB_MODELS and dictionaries is None:
        if model not in catalogue():
            raise UserError(
                f"Gemma Scope has no dictionaries for {model}, only for {', '.join(catalogue())}"
            )
        _describe_hub(model)
    else:
        from circuits import load

        _describe_loaded(load(model, dictionaries=dictionaries, device="cpu"))
        if model in bundled_models():
            _list_tasks()


def _list_models() -> None:
    from circuits.catalogue import catalogue
    from circuits.models import HUB_MODELS, bundled_models
    from experiments.commands.tables import layout

    rows = [(name, "bundled with the project") for name in bundled_models()]
    for name, repository in HUB_MODELS.items():
        files = catalogue().get(name)
        scope = f"{len(files)} dictionaries of Gemma Scope" if files else "no dictionaries"
        rows.append((name, f"{repository} on the Hugging Face hub, {scope}"))
    click.echo(layout(("model", "where"), rows, left=(0, 1)))
    click.echo("\nor a folder in Hugging Face's format, with --dictionaries")


def _describe_hub(model: str) -> None:
    """From the catalogue alone."""
    from circuits.catalogue import catalogue, latents_of, ranges
    from circuits.sites import KINDS
    from experiments.commands.tables import layout

    rows = []
    for kind in KINDS:
        files = [file for file in catalogue()[model] if file.site.kind == kind]
        for width in sorted({file.width for file in files}, key=latents_of):
            of_width = [file for file in files if file.width == width]
            layers = sorted({file.site.layer for file in of_width})
            l0s = [file.average_l0 for file in of_width]
            canonical = [file.average_l0 for file in of_width if file.canonical]
            rows.append(
                (
                    kind,
                    width,
                    ranges(layers),
                    f"{min(l0s):g} to {max(l0s):g}",
                    f"{min(canonical):g} to {max(canonical):g}" if canonical else "",
                )
            )
    click.echo(f"{model}: dictionaries of Gemma Scope\n")
    click.echo(layout(("kind", "width", "layers", "L0", "canonical L0"), rows, left=(0, 2, 3, 4)))


def _describe_loaded(model: SplicedModel) -> None:
    from experiments.commands.tables import layout

    config = model.config
    click.echo(
        f"{model.name}: Gemma 2 with {model.n_layers} layers, d_model {config.hidden_size}, "
        f"{config.num_attention_heads} heads, {model.d_vocab:,} tokens, context {model.n_ctx}\n"
    )
    rows = [
        (
            str(site),
            str(dictionary.d_sae),
            "" if dictionary.average_l0 is None else f"{dictionary.average_l0:g}",
            dictionary.name,
        )
        for site, dictionary in model.dictionaries.items()
    ]
    click.echo(layout(("site", "width", "L0", "dictionary"), rows, left=(0, 3)))


def _list_tasks() -> None:
    from experiments.commands.tables import layout
    from experiments.tasks import TASKS

    click.echo()
    rows = [(name, task.summary) for name, task in TASKS.items()]
    click.echo(layout(("task", "what is asked"), rows, left=(0, 1)))
