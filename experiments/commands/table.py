"""`circuits table`: the effect of each latent over many prompts, with intervals and tests."""

from __future__ import annotations

import click

from experiments.commands.many import Many, asks_many


@click.command(short_help="Each latent's effect over many prompts, with intervals and tests.")
@click.option(
    "--top", type=click.IntRange(min=1), default=50, show_default=True, metavar="N",
    help="Latents to test, screened by the larger of |gradient x activation| and |integrated "
    "gradients|.",
)  # fmt: skip
@click.option(
    "--all", "every", is_flag=True, help="Test all latents that anything is attributed to."
)
@click.option(
    "--controls", type=click.IntRange(min=0), default=20, show_default=True, metavar="N",
    help="Matched random latents for each.",
)  # fmt: skip
@asks_many
def table(many: Many, top: int, every: bool, controls: int) -> None:
    """Ablate each latent on every prompt of a task, and say how sure its mean effect is.

    Effects are what the metric loses, in its units, with 95 % bootstrap intervals over prompt
    pairs; q is the p of a paired sign-flip permutation test, corrected for all latents tested;
    percentile says what share of random latents of the same site and span, whose ablation changes
    as much, has a smaller effect. As many further prompts of the task re-test what was found: it
    is confirmed with the same sign and a p there of at most 0.05, corrected for all re-tests,
    which takes at least 6 pairs.

    \b
    Examples:
      circuits table --task agreement_rc --prompts 20 --top 20
      circuits table --task ioi --kind mean --out ioi_table.csv --out ioi_table.svg
    """
    from experiments.latents.table import ablation_table

    result = ablation_table(
        many.model,
        many.prompts,
        many.metric,
        heldout=many.others,
        spans=many.spans(many.prompts),
        heldout_spans=many.spans(many.others) if many.others else None,
        max_latents=None if every else top,
        kind=many.kind,
        downstream=many.downstream,
        n_controls=controls,
        seed=many.seed,
    )
    many.finish(result)
