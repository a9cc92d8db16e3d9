"""`circuits kinds`: zero, mean, resample and patch side by side."""

from __future__ import annotations

import click

from experiments.commands.many import Many, asks_many


@click.command(short_help="Kinds of ablation side by side: which conclusions survive.")
@click.option(
    "--kinds", "names", default="patch,mean,resample,zero", show_default=True, metavar="KINDS",
    help="The kinds to compare, two or more; the latents are the strongest under --kind.",
)  # fmt: skip
@click.option(
    "--top", type=click.IntRange(min=1), default=50, show_default=True, metavar="N",
    help="Latents to ablate.",
)  # fmt: skip
@asks_many
def kinds(many: Many, names: str, top: int) -> None:
    """Ablate the strongest latents of a task in several ways.

    A latent survives where its mean effect has one sign and a q of at most 0.05 under every kind.
    It flips between two kinds where its means have opposite signs and no interval holds zero.

    \b
    Examples:
      circuits kinds --task agreement_rc --prompts 20 --top 20
      circuits kinds --task ioi --kinds patch,zero --out kinds.svg
    """
    from experiments.kinds import kind_named
    from experiments.latents.kinds_compared import compare_kinds
    from experiments.latents.table import screen
    from experiments.pooled import pooled_effects
    from experiments.results import layout
    from experiments.traced import traced_once

    donors = many.others or many.prompts
    kinds = [kind_named(name.strip(), donors, seed=many.seed) for name in names.split(",")]
    spans, screening = many.spans(many.prompts), traced_once(many.kind)
    found = pooled_effects(
        many.model, many.prompts, spans, many.metric, screening, downstream=many.downstream
    )
    nodes = [found.nodes[i] for i in screen(found, found)[:top].tolist()]
    result = compare_kinds(
        many.model,
        many.prompts,
        nodes,
        many.metric,
        kinds=[screening if kind.name == screening.name else kind for kind in kinds],
        spans=spans,
        downstream=many.downstream,
        seed=many.seed,
    )
    many.finish(result)
    pairs = result.correlations().to_dict("records")
    rows = [
        (pair["kind"], pair["other"], f"{pair['spearman']:.3f}", str(pair["sign_flips"]))
        for pair in pairs
    ]
    click.echo("\n" + layout(("kind", "other", "spearman", "sign flips"), rows, left=(0, 1)))
