"""`circuits steer`: dose and response of latents, and continuations with them steered."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from experiments.commands.many import Many, asks_many
from experiments.commands.options import read_texts

if TYPE_CHECKING:
    from experiments.steering.dose_response import SteeringCurve


@click.command(short_help="Raise or set latents: response by dose, side effects, continuations.")
@click.option(
    "--latent", "latents", multiple=True, required=True, metavar="NODE",
    help="mlp.3/latent.901, or at a named span mlp.3/latent.901@subject, or at the last position "
    "mlp.3/latent.901@end. May be repeated: they are steered together.",
)  # fmt: skip
@click.option(
    "--mode", type=click.Choice(["add", "set"]), default="add", show_default=True,
    help="Add the dose to what a latent has, or set it to the dose (0 takes it out).",
)  # fmt: skip
@click.option(
    "--dose", "doses", type=float, multiple=True, metavar="X",
    help="In multiples of each latent's largest activation on the prompts. May be repeated; by "
    "default -4, -2, -1, -0.5, 0.5, 1, 2 and 4. 0 is always among them.",
)  # fmt: skip
@click.option(
    "--scale", "scales", type=float, multiple=True, metavar="X",
    help="What a dose of 1 is, instead of each latent's largest activation; one for each --latent.",
)  # fmt: skip
@click.option(
    "--random", "n_random", type=click.IntRange(min=0), default=5, show_default=True, metavar="N",
    help="Random directions, as large as what the dose changes.",
)  # fmt: skip
@click.option(
    "--neutral", metavar="FILE", type=click.Path(path_type=Path), callback=read_texts,
    help="Texts for the KL, one a line; by default 32 of the model's example texts.",
)  # fmt: skip
@click.option("--generate", "start", metavar="TEXT", help="Continue this text at each dose.")
@click.option(
    "--tokens", "n_tokens", type=click.IntRange(min=1), default=20, show_default=True, metavar="N",
    help="New tokens of a continuation at most.",
)  # fmt: skip
@partial(asks_many, ablates=False)
def steer(
    many: Many,
    latents: tuple[str, ...],
    mode: str,
    doses: tuple[float, ...],
    scales: tuple[float, ...],
    n_random: int,
    neutral: list[str] | None,
    start: str | None,
    n_tokens: int,
) -> None:
    """Raise latents by doses, or set them, and measure the metric and what neutral text suffers.

    The response is the mean metric, in its units, with a 95 % bootstrap interval over prompt pairs;
    its slope at dose 0 stands beside the one that the gradient foretells. KL is that of the next
    token on neutral texts, in nats. Both are shown along random directions, as large at each place
    as what the dose changes there. Continuations are greedy.

    \b
    Examples:
      circuits steer --task agreement_simple --latent resid.2/latent.722 --out steer.svg
      circuits steer --task ioi --latent mlp.3/latent.286 --dose -1 --dose 1 --generate "the boy"
      circuits steer --task ioi --latent mlp.3/latent.286 --mode set --dose 1 --dose 2
    """
    from experiments.steering.dose_response import DOSES
    from experiments.steering.dose_response import steer as steer_latents
    from experiments.steering.generation import check_continuation
    from experiments.steering.vectors import steered_nodes

    if start is not None:
        # refused now, not after all the work
        check_continuation(many.model, start, steered_nodes(many.model, latents), n_tokens)
    spanned = any("@" in name and not name.endswith("@end") for name in latents)
    curve = steer_latents(
        many.model,
        many.prompts,
        latents,
        many.metric,
        mode=mode,
        doses=doses or DOSES,
        scales=scales or None,
        spans=many.spans(many.prompts) if spanned else None,
        neutral=neutral,
        n_random=n_random,
        downstream=many.downstream,
        seed=many.seed,
    )
    many.finish(curve)
    if start is not None:
        _continue(many, curve, start, n_tokens)


def _continue(many: Many, curve: SteeringCurve, start: str, n_tokens: int) -> None:
    """Print the continuation of `start` at each dose."""
    from experiments.steering.generation import generate

    click.echo()
    for dose in curve.table["dose"].tolist():
        found = generate(
            many.model,
            start,
            steer=curve.amounts(dose),
            mode=curve.conventions["mode"],
            max_new_tokens=n_tokens,
            downstream=many.downstream,
        )
        click.echo(f"{dose:+6g}  {found}")
