"""What bfloat16 costs in accuracy: the bundled model's numbers against those of float32.

    python benchmarks/bfloat16.py

Three choices against everything in float32: dictionaries alone in bfloat16 (their vectors stay
float32), the model alone, and both (what `load` does for a model stored in bfloat16).

\b
- *latents*: share of latents active in one and not in the other, of those active in either
- *r*, *error*: Pearson's r and the relative distance |a - b| / |b| of the effects of all latents
- *edges*: the same distance for the edges of a graph of 200 latents (of those in both graphs)
- *metric*: the same distance for the metric
"""

from __future__ import annotations

import click
import torch

from attribution import Attribution, attribute, total_effects
from circuits import SplicedModel, load, load_gemma, splice
from experiments.tasks import TASKS

CHOICES = {"dictionaries": (False, True), "model": (True, False), "both": (True, True)}


def mixed(name: str, model_narrow: bool, dictionaries_narrow: bool) -> SplicedModel:
    """The model and its dictionaries, each in float32 or in bfloat16."""
    dtypes = [torch.bfloat16 if n else torch.float32 for n in (model_narrow, dictionaries_narrow)]
    dictionaries = load(name, device="cpu", dtype=dtypes[1]).dictionaries
    return splice(load_gemma(name, device="cpu", dtype=dtypes[0]), dictionaries, name=name)


def effects(model: SplicedModel, prompt, metric) -> dict[tuple, float]:
    """Every active latent's effect, by site, latent and position."""
    return {
        (site, latent, pos): effect
        for site, e in total_effects(model, prompt, metric).sites.items()
        for latent, pos, effect in zip(
            e.latent.tolist(), e.pos.tolist(), e.effect.tolist(), strict=True
        )
    }


def edges(made: Attribution) -> dict[tuple, float]:
    coo = made.edges.tocoo()
    triples = zip(coo.row.tolist(), coo.col.tolist(), coo.data.tolist(), strict=True)
    return {(made.nodes[t], made.nodes[s]): weight for t, s, weight in triples}


def distance(a: dict, b: dict) -> float:
    """|a - b| / |b| over the keys of both."""
    keys = [key for key in b if key in a]
    x, y = (torch.tensor([d[key] for key in keys]) for d in (a, b))
    return ((x - y).norm() / y.norm()).item()


@click.command(help=__doc__)
@click.option("--model", "name", default="tiny", show_default=True)
@click.option("--prompts", default=10, show_default=True, help="Of each task.")
def main(name: str, prompts: int) -> None:
    exact = mixed(name, False, False)
    click.echo(f"{exact!r}, {prompts} prompts of each of {len(TASKS)} tasks; means over prompts\n")
    click.echo("| in bfloat16 | latents | r | error | edges | metric |")
    click.echo("| --- | ---: | ---: | ---: | ---: | ---: |")
    for label, narrow in CHOICES.items():
        model = mixed(name, *narrow)
        rows = []
        for task in TASKS.values():
            for prompt in task.prompts("heldout", n=prompts):
                metric = task.metric(prompt)
                here, there = (effects(m, prompt, metric) for m in (model, exact))
                keys = sorted(here.keys() | there.keys(), key=str)
                x, y = (torch.tensor([d.get(key, 0.0) for key in keys]) for d in (here, there))
                a, b = (attribute(m, prompt, metric, max_latents=200) for m in (model, exact))
                rows.append(
                    [
                        len(here.keys() ^ there.keys()) / len(keys),
                        torch.corrcoef(torch.stack([x, y]))[0, 1].item(),
                        ((x - y).norm() / y.norm()).item(),
                        distance(edges(a), edges(b)),
                        abs(a.metric_value - b.metric_value) / abs(b.metric_value),
                    ]
                )
        latents, r, error, edge, value = torch.tensor(rows).mean(0).tolist()
        click.echo(
            f"| {label} | {latents:.2%} | {r:.4f} | {error:.2%} | {edge:.2%} | {value:.2%} |"
        )


if __name__ == "__main__":
    main()
