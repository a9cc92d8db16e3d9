"""`circuits faithfulness`: how much of the metric a circuit of each size keeps."""

from __future__ import annotations

from pathlib import Path

import click

from experiments.commands.question import Asked, answerable, asks, reference_named


@click.command(short_help="How much of the answer circuits of each size keep.")
@click.argument("subject", metavar="[PROMPT|GRAPH.json]", required=False)
@click.option(
    "--sizes", default="10,30,100,300,1000,3000", show_default=True, metavar="N,N,...",
    help="Numbers of latents; a saved graph goes up to as many as it holds.",
)  # fmt: skip
@click.option(
    "--reference", type=click.Choice(["zero", "corrupted"]), default="zero", show_default=True,
    help="What latents outside the circuit are set to: off, or the corrupted prompt's values.",
)  # fmt: skip
@click.option(
    "--downstream", type=click.Choice(["recompute", "freeze"]), default="recompute",
    show_default=True, help="Kept errors follow the change, or keep their clean values.",
)  # fmt: skip
@click.option(
    "--errors", type=click.Choice(["kept", "removed"]), default="kept", show_default=True,
    help="What dictionaries miss is kept, or set to the reference too.",
)  # fmt: skip
@click.option(
    "--random", "n_random", type=click.IntRange(min=0), default=20, show_default=True, metavar="N",
    help="Random circuits of each size to compare with.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, metavar="N", help="Of the random circuits.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=64, show_default=True, metavar="N",
    help="Circuits of one pass.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
    help="Where to write, by suffix: .csv, .json (with the provenance), or a plot as .svg, .png, "
    ".pdf. May be repeated.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files that exist.")
@asks
def faithfulness(
    asked: Asked,
    sizes: str,
    reference: str,
    downstream: str,
    errors: str,
    n_random: int,
    seed: int,
    batch_size: int,
    out: tuple[Path, ...],
    force: bool,
) -> None:
    """Keep only the strongest latents, ablate all others, and say how much of the metric is left.

    F(C) = (m(C) - m(empty)) / (m(M) - m(empty)) is 1 for the whole model and 0 with every latent
    ablated; F(M \\ C) is the same with the circuit ablated and the rest kept, where low is good.
    Both are shares without a unit. A circuit says something where it is well above random
    circuits of its size.

    \b
    Examples:
      circuits faithfulness ioi.json --sizes 10,30,100
      circuits faithfulness --task ioi --reference corrupted --out curve.svg
    """
    from attribution import total_effects
    from circuits.errors import UserError
    from experiments import faithfulness_curve
    from experiments.commands.tables import faithfulness_table
    from experiments.records import FIGURES, TABLES, check_output

    out = tuple(dict.fromkeys(out))
    for path in out:
        check_output(path, (*TABLES, *FIGURES), overwrite=force)
    if not all(size.strip().isdecimal() for size in sizes.split(",")):
        raise UserError(f"--sizes {sizes!r}; give whole numbers, for example 10,30,100")
    question = answerable(asked, graphs=True)
    values = reference_named(reference, question)
    ranked = question.graph
    if ranked is None:
        effects = total_effects(
            question.model,
            question.prompt,
            question.metric,
            downstream=downstream,
            reference=values,
        )
        ranked = effects.strongest()
    curve = faithfulness_curve(
        question.model,
        question.prompt,
        question.metric,
        ranked,
        sizes=[int(size) for size in sizes.split(",")],
        reference=values,
        downstream=downstream,
        errors=errors,
        n_random=n_random,
        seed=seed,
        batch_size=batch_size,
    )
    click.echo(f"{question.model.name}: {question.prompt.text!r}")
    click.echo(
        f"metric  {curve.metric} = {curve.full:+.3f}; {curve.empty:+.3f} with all "
        f"{curve.n_nodes} latents set to {curve.reference}"
    )
    click.echo(f"errors  {curve.errors}, downstream {curve.downstream}\n")
    click.echo(faithfulness_table(curve))
    for path in out:
        write = curve.save if path.suffix in TABLES else curve.plot
        click.echo(f"wrote {write(path, overwrite=force)}")
