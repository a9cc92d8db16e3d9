"""`circuits faithfulness`: how much of the metric a circuit of each size keeps."""

from __future__ import annotations

import re
from math import isnan
from typing import TYPE_CHECKING

import click

from experiments.commands.options import Files, errors_option, seed_option, writes
from experiments.commands.question import Asked, answerable, asks, reference_named

if TYPE_CHECKING:
    from experiments.circuit.faithfulness_result import FaithfulnessCurve


@click.command(short_help="How much of the answer circuits of each size keep.")
@click.argument("subject", metavar="[PROMPT|GRAPH.json]", required=False)
@click.option(
    "--sizes", default="10,30,100,300,1000,3000", show_default=True, metavar="N,N,...",
    help="Numbers of latents, or shares of all of them (0.01,0.1,1.0; mib for those of MIB, with "
    "its CPR and CMD). A saved graph goes up to as many as it holds.",
)  # fmt: skip
@click.option(
    "--reference", type=click.Choice(["zero", "corrupted"]), default="zero", show_default=True,
    help="What latents outside the circuit are set to: off, or the corrupted prompt's values.",
)  # fmt: skip
@click.option(
    "--downstream", type=click.Choice(["recompute", "freeze"]), default="recompute",
    show_default=True, help="Kept errors follow the change, or keep their clean values.",
)  # fmt: skip
@errors_option
@click.option(
    "--random", "n_random", type=click.IntRange(min=0), default=20, show_default=True, metavar="N",
    help="Random circuits of each size to compare with.",
)  # fmt: skip
@seed_option("Of the random circuits.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), metavar="N",
    help="Circuits of one pass; by default 64, or as many as fit into 256 MB.",
)  # fmt: skip
@writes
@asks
def faithfulness(
    asked: Asked,
    sizes: str,
    reference: str,
    downstream: str,
    errors: str,
    n_random: int,
    seed: int,
    batch_size: int | None,
    files: Files,
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
      circuits faithfulness --task agreement_rc --errors scored --sizes mib
    """
    from attribution import total_effects
    from experiments.circuit.faithfulness import faithfulness_curve
    from experiments.circuit.rankings import strongest_first

    chosen = _sizes(sizes)
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
        reads = question.model.reads(question.model.tokens(question.prompt))[0]
        ranked = strongest_first(effects, reads)
    curve = faithfulness_curve(
        question.model,
        question.prompt,
        question.metric,
        ranked,
        sizes=chosen,
        reference=values,
        downstream=downstream,
        errors=errors,
        n_random=n_random,
        seed=seed,
        batch_size=batch_size,
    )
    nodes = "latents and errors" if errors == "scored" else "latents"
    click.echo(f"{question.model.name}: {question.prompt.text!r}")
    click.echo(
        f"metric  {curve.metric} = {curve.full:+.3f}; {curve.empty:+.3f} with all "
        f"{curve.n_nodes} {nodes} set to {curve.reference}"
    )
    click.echo(f"errors  {curve.errors}, downstream {curve.downstream}\n")
    click.echo(curve.text())
    click.echo(f"\n{_summary(curve)}")
    files.write(curve)


def _sizes(text: str) -> list[float]:
    """Whole numbers as such, decimal ones as shares."""
    from circuits.errors import UserError
    from experiments.statistics import MIB_PROPORTIONS

    if text.strip() == "mib":
        return list(MIB_PROPORTIONS)
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"\d+|\d?\.\d+", word) for word in words):
        raise UserError(
            f"--sizes {text!r}; give whole numbers, for example 10,30,100, or shares up to 1.0"
        )
    return [float(word) if "." in word else int(word) for word in words]


def _summary(curve: FaithfulnessCurve) -> str:
    """What the whole curve comes to, in a line."""
    numbers = {
        "k50": curve.k50 or "not reached",
        "k90": curve.k90 or "not reached",
        "area": curve.area,
        "excess over random": curve.excess_area,
        "CPR": curve.cpr,
        "CMD": curve.cmd,
    }
    shown = {
        name: f"{value:.3f}" if isinstance(value, float) else value
        for name, value in numbers.items()
        if not (isinstance(value, float) and isnan(value))
    }
    return "  ".join(f"{name} {value}" for name, value in shown.items())
