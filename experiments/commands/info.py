"""`circuits info`: which models, dictionaries and tasks there are, and what loading them takes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from experiments.commands.options import DICTIONARIES, Loading, loads

if TYPE_CHECKING:
    from circuits import SplicedModel
    from experiments.planning import Plan


@click.command(short_help="Models, layers, dictionaries, tasks, and what loading takes.")
@click.argument("model", required=False)
@loads(DICTIONARIES)
def info(loading: Loading) -> None:
    """List the models, or one MODEL's layers, sites, dictionaries and tasks.

    For a model of the hub: what the other commands would load with the same --sites, --width and
    --l0, how much of it is to download, and how much memory it takes beside what there is. Nothing
    is downloaded. Widths count latents; L0 is the mean number of latents active at a token, as
    the dictionary's folder says. GB are 10^9 bytes.

    \b
    Examples:
      circuits info
      circuits info tiny
      circuits info gemma-2-2b
      circuits info gemma-2-2b --sites resid --width 65k
      circuits info my-model/ --dictionaries my-dictionaries/
    """
    from circuits.catalogue import catalogue
    from circuits.errors import UserError
    from circuits.loading.models import HUB_MODELS, bundled_models, short_name

    model, dictionaries = (
        name and short_name(name) for name in (loading.model, loading.dictionaries)
    )
    choice = loading.choice()
    if model is None:
        if choice or dictionaries is not None:
            raise UserError("say which model the options are about, for example gemma-2-2b")
        _list_models()
    elif model in HUB_MODELS and (dictionaries is None or dictionaries in HUB_MODELS):
        _describe_hub(model, dictionaries or model, choice)
    elif model in HUB_MODELS:
        raise UserError(
            f"info does not download {model}; --dictionaries may name the model whose Gemma Scope "
            f"to take, {' or '.join(catalogue())}"
        )
    else:
        _describe_loaded(replace(loading, device="cpu").load())
        if model in bundled_models():
            _list_tasks()


def _list_models() -> None:
    from circuits.catalogue import catalogue
    from circuits.loading.models import HUB_MODELS, bundled_models
    from experiments.results import layout

    rows = [(name, "bundled with the project") for name in bundled_models()]
    for name, repository in HUB_MODELS.items():
        files = catalogue().get(name)
        scope = f"{len(files)} dictionaries of Gemma Scope" if files else "none of its own"
        rows.append((name, f"{repository} on the Hugging Face hub, {scope}"))
    click.echo(layout(("model", "where"), rows, left=(0, 1)))
    click.echo("\nor a folder in Hugging Face's format, with --dictionaries")


def _describe_hub(model: str, scope: str, choice: dict) -> None:
    """From the catalogue, the shapes, the cache and this machine's memory."""
    from circuits.errors import UserError
    from circuits.loading.shapes import shapes
    from experiments.planning import check_planned, plan

    check_planned(model, scope)
    planned: Plan | str
    try:
        planned = plan(model, dictionaries=scope, **choice)
    except UserError as error:
        if choice:
            raise
        planned = str(error)  # what is taken by default does not exist for every model
    shape = shapes()[model]
    click.echo(
        f"{model}: Gemma 2 with {shape.n_layers} layers, d_model {shape.d_model}, "
        f"{shape.n_heads} heads, {shape.n_parameters / 1e9:.2f} billion weights\n"
    )
    if isinstance(planned, str):
        click.echo(f"choose dictionaries: {planned}")
    else:
        _print_files(planned)
        _print_memory(planned)
    click.echo("\nall of Gemma Scope's:")
    _print_catalogue(scope)


def _print_files(plan: Plan) -> None:
    """What is taken, from where, and what of it is there already."""
    from circuits.loading.mapped import copies_folder
    from circuits.memory import show_bytes
    from experiments.results import layout

    weights = plan.weights
    n_shards = "" if weights.n_files is None else str(weights.n_files)
    rows = [("model", "", n_shards, _between(*weights.n_bytes), str(len(weights.cached)), "")]
    rows += [
        (p.kind, p.width, str(p.n_files), show_bytes(p.n_bytes), str(p.n_cached), str(p.n_copies))
        for p in plan.parts
    ]
    head = ("what is loaded", "width", "files", "on disk", "in the cache", "mapped copies")
    click.echo(layout(head, rows, left=(0,)))
    click.echo(
        f"\nto download  {_between(*plan.download)} into {plan.cache}"
        f"\nmapped       {show_bytes(plan.copies)} more for copies in {copies_folder()}"
        "\nSizes are computed from shapes; a file on the hub may be smaller"
        + ("." if weights.stored else ", and the model is in bfloat16 or float32.")
    )


def _print_memory(plan: Plan) -> None:
    """What loading needs beside what there is."""
    import torch

    from circuits.loading.store import PASSING
    from circuits.memory import show_bytes
    from experiments.results import layout

    dtypes = (torch.bfloat16, torch.float32)
    rows = [
        ("model and all dictionaries", *(show_bytes(plan.whole(dtype)) for dtype in dtypes)),
        (f"model and {PASSING} dictionaries", *(show_bytes(plan.least(dtype)) for dtype in dtypes)),
    ]
    click.echo()
    click.echo(layout(("memory needed", "bfloat16", "float32"), rows, left=(0,)))
    dtype = str(plan.dtype).removeprefix("torch.")
    click.echo(f"\n{f'in {dtype}':<11}  {plan.advice}; what a pass computes comes on top")
    for memory in plan.memory:
        free, total = show_bytes(memory.free), show_bytes(memory.total)
        click.echo(f"{memory.device:<11}  {free} free of {total}")


def _between(low: int, high: int) -> str:
    from circuits.memory import show_bytes

    return show_bytes(low) if low == high else f"{show_bytes(low)} to {show_bytes(high)}"


def _print_catalogue(model: str) -> None:
    from circuits.catalogue import catalogue, latents_of, ranges
    from circuits.sites import ALL_KINDS
    from experiments.results import layout

    rows = []
    for kind in ALL_KINDS:
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
    click.echo(layout(("kind", "width", "layers", "L0", "canonical L0"), rows, left=(0, 2, 3, 4)))


def _describe_loaded(model: SplicedModel) -> None:
    from experiments.results import layout

    config = model.config
    click.echo(
        f"{model.name}: {model.family.title} with {model.n_layers} layers, "
        f"d_model {config.hidden_size}, "
        f"{config.num_attention_heads} heads, {model.d_vocab:,} tokens, context {model.n_ctx}\n"
    )
    rows = [
        (
            str(site),
            str(dictionary.d_sae),
            "" if dictionary.average_l0 is None else f"{dictionary.average_l0:g}",
            dictionary.name,
        )
        for site in model.sites
        for dictionary in [model.dictionaries.summary(site)]
    ]
    click.echo(layout(("site", "width", "L0", "dictionary"), rows, left=(0, 3)))


def _list_tasks() -> None:
    from experiments.results import layout
    from experiments.tasks import TASKS

    click.echo()
    rows = [(name, task.summary) for name, task in TASKS.items()]
    click.echo(layout(("task", "what is asked"), rows, left=(0, 1)))
