"""`circuits path`: a change sent along named paths alone."""

from __future__ import annotations

import click

from experiments.commands.edges import attribution_against, check_kind
from experiments.commands.options import Files, writes
from experiments.commands.question import Asked, answerable, asks


@click.command(short_help="What named paths carry, and what is left over.")
@click.argument("subject", metavar="[PROMPT|GRAPH.json]", required=False)
@click.option(
    "--path", "paths", multiple=True, metavar="NODES",
    help="Nodes from the source upwards, joined by arrows: 'mlp.0/latent.3@5 -> "
    "resid.2/latent.7@5'. May be repeated, with the same source.",
)  # fmt: skip
@click.option("--from", "source", metavar="NODE", help="Instead: the strongest paths from a node.")
@click.option(
    "--strongest", type=click.IntRange(min=1), default=5, show_default=True, metavar="N",
    help="How many of them, by what the graph attributes to a path.",
)  # fmt: skip
@click.option(
    "--kind", type=click.Choice(["zero", "patch"]), default="patch", show_default=True,
    help="What the source is set to: nothing, or its value on the corrupted prompt.",
)  # fmt: skip
@click.option(
    "--downstream", type=click.Choice(["recompute", "freeze", "drop"]), default="recompute",
    show_default=True, help="What errors do in the source's total effect.",
)  # fmt: skip
@writes
@asks
def path(
    asked: Asked,
    paths: tuple[str, ...],
    source: str | None,
    strongest: int,
    kind: str,
    downstream: str,
    files: Files,
) -> None:
    """Patch paths: the source is changed, and only the edges of a path carry the change.

    Each node takes the value that it gets from the one before it, every other spliced site held
    clean; a step that crosses another site carries nothing. The total is what the metric loses
    when the source is ablated and all else may follow. With --from, paths are those of the graph;
    of a prompt, of a graph of 400 latents against what the source is set to. Beside the effect of
    a path of the graph stands what the product of its edges attributes to it.

    \b
    Examples:
      circuits path ioi.json --from resid.0/latent.938@14 --strongest 5
      circuits path --task ioi --path "resid.0/latent.938@14 -> resid.1/latent.842@14"
    """
    from circuits import UserError, parse_node
    from experiments.edges.patching import path_patch
    from experiments.edges.strongest import strongest_paths
    from experiments.kinds import kind_named
    from experiments.results import layout
    from graphs import AttributionGraph

    if bool(paths) == bool(source):
        raise UserError("give --path, or --from with the node that paths start at, and not both")
    named = [[parse_node(node.strip()) for node in text.split("->")] for text in paths]
    start = parse_node(source) if source else None
    question = answerable(asked, graphs=True)
    check_kind(kind, question)
    model, prompt, metric = question.model, question.prompt, question.metric
    graph = question.graph
    if start is not None:
        graph = graph or AttributionGraph.from_attribution(attribution_against(kind, question))
        named = strongest_paths(graph, start, strongest)
    result = path_patch(
        model, prompt, metric, named,
        graph=graph, kind=kind_named(kind, []), downstream=downstream,
    )  # fmt: skip
    click.echo(f"{model.name}: {prompt.text!r}")
    click.echo(f"metric   {metric.name}")
    told = result.conventions["reference"]
    click.echo(f"source   {told}; other sites held clean; total with downstream {downstream}\n")
    click.echo(result.text() + "\n")
    names = [*map(str, range(len(result.paths))), "sum", "left over", "total"]
    rows = [
        [name, *("" if row[n] != row[n] else f"{row[n]:.3f}" for n in NUMBERS)]
        for name, row in zip(names, result.summary().to_dict("records"), strict=True)
    ]
    click.echo(layout(("path", *NUMBERS), rows, left=(0,)))
    files.write(result)


NUMBERS = ("attributed", "effect", "share")
"""Columns of the paths' table."""
