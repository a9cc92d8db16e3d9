"""`circuits trace`: from a prompt to a graph, scores and pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from experiments.commands.question import (
    GRAPH_FILES,
    Asked,
    Question,
    answerable,
    asks,
    reference_named,
)

if TYPE_CHECKING:
    from graphs import AttributionGraph

RULES = ("jacobian", "relp", "integrated")  # of circuits.gated, which would import torch


@click.command(short_help="From a prompt to a graph of what moved the answer.")
@click.argument("subject", metavar="[PROMPT]", required=False)
@click.option(
    "--max-latents", type=click.IntRange(min=1), default=400, show_default=True, metavar="N",
    help="Latents that become nodes, strongest first; the others stay in their error node.",
)  # fmt: skip
@click.option(
    "--choose", type=click.Choice(["effect", "influence"]), default="effect", show_default=True,
    help="Strongest by total effect, or by influence on the answer through the edges.",
)  # fmt: skip
@click.option(
    "--keep-influence", type=click.FloatRange(0, 1), default=0.8, show_default=True,
    metavar="SHARE",
    help="Share of the nodes' influence that the pictures keep, 0 to 1.",
)  # fmt: skip
@click.option(
    "--downstream", type=click.Choice(["recompute", "freeze"]), default="recompute",
    show_default=True,
    help="In a node's effect, errors downstream follow the change or keep their values.",
)  # fmt: skip
@click.option(
    "--attention", type=click.Choice(["frozen", "live"]), default="frozen", show_default=True,
    help="Attention patterns in the edges.",
)  # fmt: skip
@click.option(
    "--norms", type=click.Choice(["frozen", "live"]), default="frozen", show_default=True,
    help="Norm scales in the edges.",
)  # fmt: skip
@click.option(
    "--mlp", type=click.Choice(RULES), default="jacobian", show_default=True,
    help="How MLPs in the edges become linear.",
)  # fmt: skip
@click.option(
    "--points", type=click.IntRange(min=1), default=10, show_default=True, metavar="N",
    help="Of --mlp integrated: points on the way from the reference to the prompt.",
)  # fmt: skip
@click.option(
    "--reference", type=click.Choice(["zero", "corrupted"]), default="zero", show_default=True,
    help="What effects and edges are against: nothing, or the prompt's corrupted partner.",
)  # fmt: skip
@click.option(
    "--top", type=click.IntRange(min=1), default=10, show_default=True, metavar="N",
    help="Latents printed.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
    help="Where to write, by suffix: .json (the whole graph, for ablate, faithfulness, edges and "
    "path), or pruned a page as .html or a picture as .svg, .png, .pdf, .dot. May be repeated.",
)  # fmt: skip
@click.option(
    "--export", type=click.Path(path_type=Path), metavar="FILE",
    help="Where to write the pruned graph for Neuronpedia and circuit-tracer's viewer, as .json.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files that exist.")
@asks
def trace(
    asked: Asked,
    max_latents: int,
    choose: str,
    keep_influence: float,
    downstream: str,
    attention: str,
    norms: str,
    mlp: str,
    points: int,
    reference: str,
    top: int,
    out: tuple[Path, ...],
    export: Path | None,
    force: bool,
) -> None:
    """Attribute the answer to PROMPT to latents, and draw the graph of what moves what.

    Every active latent is scored by gradient x activation: how much of the metric would be lost,
    to first order, if it were off (or as in the reference), in the metric's units (logits for a
    logit difference). Direct effects between the strongest become edges. What is printed and drawn
    is attributed, not measured: test it with `circuits ablate`.

    \b
    Example:
      circuits trace "when Mary and John went to the store , John gave a drink to" \\
          --target Mary --foil John --out ioi.html --out ioi.json
    """
    from attribution import attribute
    from experiments.records import check_output
    from graphs import AttributionGraph, label_latents, prune, render, viewers

    out = tuple(dict.fromkeys(out))
    for path in out:
        check_output(path, GRAPH_FILES, overwrite=force)
    if export:
        viewers.check_export(export, overwrite=force)
    if export in out:
        raise click.UsageError(f"--out and --export both name {export}; give two names")
    question = answerable(asked, graphs=False)
    attribution = attribute(
        question.model,
        question.prompt,
        question.metric,
        max_latents=max_latents,
        choose=choose,
        downstream=downstream,
        attention=attention,
        norms=norms,
        mlp=mlp,
        points=points,
        reference=reference_named(reference, question),
    )
    graph = AttributionGraph.from_attribution(attribution)
    if question.task:
        graph = replace(graph, provenance={**graph.provenance, "task": question.task})
    graph = label_latents(question.model, graph)
    pruned = prune(graph, keep_influence=keep_influence)
    for path in out:
        if path.suffix == ".json":
            graph.save(path, overwrite=force)
        else:
            render(pruned, path, overwrite=force)
    if export:
        out += (viewers.export(pruned, export, overwrite=force),)
    _summarise(question, graph, pruned, top)
    for path in out:
        click.echo(f"wrote {path}")


def _summarise(
    question: Question, graph: AttributionGraph, pruned: AttributionGraph, top: int
) -> None:
    from experiments.commands.tables import attributed_table
    from graphs import completeness_score, replacement_score

    settings = graph.provenance["settings"]
    share = pruned.provenance["pruned"][-1]["keep_influence"]
    click.echo(f"{question.model.name}: {question.prompt.text!r}")
    click.echo(f"metric  {question.metric.name} = {graph.metric_value:+.3f}")
    click.echo(
        f"graph   {_counts(graph)}; {settings['latents_chosen']} of "
        f"{settings['latents_active']} active latents"
    )
    click.echo(f"pruned  {_counts(pruned)} hold {share:.0%} of the influence")
    click.echo(
        # of the graph before pruning, as the scores' authors define them
        f"scores  replacement {replacement_score(graph):.2f}, completeness "
        f"{completeness_score(graph):.2f} (not from errors and latents left out)"
    )
    click.echo(
        f"\nstrongest latents, attributed by {settings['estimator']} "
        f"against {settings['reference']}, downstream {settings['downstream']}:"
    )
    click.echo(attributed_table(graph, top))


def _counts(graph: AttributionGraph) -> str:
    nodes, edges = graph.digraph.number_of_nodes(), graph.digraph.number_of_edges()
    return f"{nodes:,} nodes, {edges:,} edges"
