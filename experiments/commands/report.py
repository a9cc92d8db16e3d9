"""`circuits report`: attributed against measured effects, one by one and jointly."""

from __future__ import annotations

import click

from experiments.commands.many import Many, asks_many


@click.command(short_help="Attributed against measured effects over many prompts.")
@click.option(
    "--top", type=click.IntRange(min=2), default=50, show_default=True, metavar="N",
    help="Latents of each prompt that are ablated one by one: the N strongest, and as many others.",
)  # fmt: skip
@asks_many
def report(many: Many, top: int) -> None:
    """Say how well each estimator foretells ablations: of single nodes, and of many at once.

    "single" are the nodes that attribution ranks highest, "single random" as many of the others:
    what attribution overlooks is among them.

    \b
    Examples:
      circuits report --task agreement_rc --prompts 10
      circuits report --task ioi --kind zero --out report.csv --out report.svg
    """
    from experiments.accuracy.report import attribution_report

    result = attribution_report(
        many.model,
        many.prompts,
        many.metric,
        kind=many.kind,
        downstream=many.downstream,
        n_nodes=top,
        seed=many.seed,
    )
    many.finish(result, top=None)
