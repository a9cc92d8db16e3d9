"""`circuits edges`: a graph's edges, knocked out one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from experiments.commands.options import Files, seed_option, writes
from experiments.commands.question import Asked, Question, answerable, asks, reference_named

if TYPE_CHECKING:
    from attribution import Attribution


@click.command(short_help="A graph's edges beside what knocking them out does.")
@click.argument("subject", metavar="[PROMPT|GRAPH.json]", required=False)
@click.option(
    "--top", type=click.IntRange(min=0), default=200, show_default=True, metavar="N",
    help="The strongest edges, by their contribution to the metric.",
)  # fmt: skip
@click.option(
    "--random", "n_random", type=click.IntRange(min=0), default=200, show_default=True,
    metavar="N", help="Edges drawn from the others.",
)  # fmt: skip
@click.option(
    "--kind", type=click.Choice(["zero", "patch"]), default="zero", show_default=True,
    help="What a source is set to: nothing, as edges have it, or its value on the corrupted "
    "prompt.",
)  # fmt: skip
@click.option(
    "--downstream", type=click.Choice(["recompute", "freeze", "drop"]), default="recompute",
    show_default=True, help="What errors do when the target alone is changed.",
)  # fmt: skip
@seed_option("Of the random edges.")
@writes
@asks
def edges(
    asked: Asked,
    top: int,
    n_random: int,
    kind: str,
    downstream: str,
    seed: int,
    files: Files,
) -> None:
    """Ablate the source of each edge, every other spliced site held clean, and read the target.

    An edge foretells the change of its target's pre-activation; times the gradient at the target,
    that of the metric. r is Pearson's correlation, a slope of 1 means that sizes are right. Of a
    prompt, the edges are those of 400 latents, against what sources are set to.

    \b
    Examples:
      circuits edges ioi.json --top 50 --random 50
      circuits edges --task agreement_rc --out edges.csv --out edges.svg
    """
    from experiments.edges.knockout import edge_knockout
    from experiments.kinds import kind_named
    from experiments.results import layout

    question = answerable(asked, graphs=True)
    check_kind(kind, question)
    model, prompt, metric = question.model, question.prompt, question.metric
    result = edge_knockout(
        model, prompt, metric, question.graph or attribution_against(kind, question),
        top=top, n_random=n_random, kind=kind_named(kind, []), downstream=downstream, seed=seed,
    )  # fmt: skip
    told = result.conventions
    click.echo(f"{model.name}: {prompt.text!r}")
    click.echo(f"metric      {told['metric']}")
    click.echo(
        f"edges       {told['edges']}, attention {told['edges_attention']}, norms "
        f"{told['edges_norms']}, against {told['edges_against']}; gradients with downstream "
        f"{told['attributed_downstream']}; random ones of {told['random_from']}"
    )
    click.echo(
        f"knock-outs  {told['reference']}, {told['knock_out']}; the metric with downstream "
        f"{downstream}"
    )
    for why, n in result.left_out.items():
        click.echo(f"left out    {n} edges {why}")
    click.echo("\n" + result.text(20) + "\n")
    for by in (("group",), ("stretch", "mlp_between")):
        found = result.agreement(by)
        numbers = [name for name in found if name in NUMBERS]
        rows = [
            (*(str(row[name]) for name in by), *(f"{row[name]:.3g}" for name in numbers))
            for row in found.to_dict("records")
        ]
        head = [name.replace("_", " ") for name in (*by, *numbers)]
        click.echo(layout(head, rows, left=range(len(by))) + "\n")
    files.write(result)


NUMBERS = ("n", "r", "slope", "sign", "missed", "metric_r", "metric_slope", "metric_sign",
           "median_jump_leak")  # fmt: skip
"""Columns of the tables of agreement."""


def attribution_against(kind: str, question: Question) -> Attribution:
    """The prompt's edges, against what sources are set to."""
    from attribution import attribute

    reference = reference_named({"patch": "corrupted"}.get(kind, kind), question)
    return attribute(question.model, question.prompt, question.metric, reference=reference)


def check_kind(kind: str, question: Question) -> None:
    """Refuse patching without a corrupted partner."""
    from circuits import UserError

    if kind == "patch" and question.prompt.corrupted is None:
        raise UserError(
            "the prompt has no corrupted partner; give one with --corrupted, or --kind zero"
        )
