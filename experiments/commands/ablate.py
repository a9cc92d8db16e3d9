"""`circuits ablate`: attributed beside measured, latent by latent."""

from __future__ import annotations

import click

from experiments.commands.options import Files, writes
from experiments.commands.question import Asked, answerable, asks, reference_named

PRINTED = 50
"""Rows on the terminal; files hold all."""


@click.command(short_help="What was attributed beside what ablation measures.")
@click.argument("subject", metavar="[PROMPT|GRAPH.json]", required=False)
@click.option(
    "--top", type=click.IntRange(min=1), default=50, show_default=True, metavar="N",
    help="Latents to ablate.",
)  # fmt: skip
@click.option(
    "--reference", type=click.Choice(["zero", "corrupted"]), default="zero", show_default=True,
    help="What a latent is set to: off, or its value on the corrupted prompt.",
)  # fmt: skip
@click.option(
    "--downstream", type=click.Choice(["recompute", "freeze", "drop"]), default="recompute",
    show_default=True,
    help="Errors downstream follow the change, keep their clean values, or are left out.",
)  # fmt: skip
@click.option(
    "--batch-size", type=click.IntRange(min=1), metavar="N",
    help="Ablations of one pass at most; by default as many as 256 MB of latents allow.",
)  # fmt: skip
@writes
@asks
def ablate(
    asked: Asked,
    top: int,
    reference: str,
    downstream: str,
    batch_size: int | None,
    files: Files,
) -> None:
    """Ablate the strongest latents one by one and set what the metric loses beside the attribution.

    Of a saved graph these are its strongest latents; of a prompt, those with the largest effect
    attributed against the reference. Both numbers are in the metric's units (logits for a logit
    difference) and have the same sign when the attribution is right; r is Pearson's correlation.

    \b
    Examples:
      circuits ablate ioi.json --top 20
      circuits ablate --task ioi --reference corrupted --out ioi.csv --out ioi.svg
    """
    from attribution import total_effects
    from experiments import ablate_each
    from experiments.commands.tables import ablation_table
    from graphs import labels_of

    question = answerable(asked, graphs=True)
    values = reference_named(reference, question)
    if question.graph is not None:
        nodes = question.graph.latents(top=top)
    else:
        effects = total_effects(
            question.model,
            question.prompt,
            question.metric,
            downstream="freeze" if downstream == "drop" else downstream,
            reference=values,
        )
        nodes = effects.strongest(top)
    ablations = ablate_each(
        question.model,
        question.prompt,
        question.metric,
        nodes,
        reference=values,
        downstream=downstream,
        batch_size=batch_size,
    )
    ablations = ablations.labelled(labels_of(question.model, nodes))
    click.echo(f"{question.model.name}: {question.prompt.text!r}")
    click.echo(f"metric      {ablations.metric} = {ablations.clean:+.3f}")
    click.echo(
        f"attributed  {ablations.estimator} against {ablations.reference}, "
        f"downstream {ablations.attributed_downstream}"
    )
    click.echo(f"measured    set to {ablations.reference}, downstream {ablations.downstream}\n")
    click.echo(ablation_table(ablations, PRINTED))
    if len(ablations) > PRINTED:
        click.echo(f"... and {len(ablations) - PRINTED} more")
    click.echo(f"\nr = {ablations.correlation:.3f} over {len(ablations)} latents")
    files.write(ablations)
