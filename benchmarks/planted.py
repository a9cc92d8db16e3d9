"""How well each method finds a circuit that was set by hand, nodes and edges, among decoys.

    python benchmarks/planted.py [--prompts 6]

The model and its decoys are in `experiments/planted/model.py`; what is on the circuit is known by
construction (`experiments/planted/truth.py`). Means over prompts of

\b
- *AUROC*: probability that something on the circuit ranks above something off it (a tie is 1/2)
- *AP*: average precision
- *P@K*: precision among the first K, K being the circuit's size
- *found*: share of the circuit with a score above zero (above 1e-4 of the largest)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import astuple

import click
import torch
from torch import Tensor

from circuits import LatentNode
from experiments.planted import blind_spots, label, planted_model, prompts, score_ranking
from experiments.planted.case import Case
from experiments.planted.edge_methods import edge_scores
from experiments.planted.node_methods import learned_masks, node_scores
from experiments.planted.scores import FLOOR

QUESTIONS = (("corrupted", "recompute"), ("corrupted", "freeze"), ("zero", "recompute"))
"""Reference and downstream convention of the nodes' tables."""
DRAWS = 200
Table = dict[str, list[tuple[float, ...]]]


def add(table: Table, scores: Mapping[str, Tensor], member: Sequence[bool]) -> None:
    """One prompt's line of each method, and of random rankings."""
    for method, values in scores.items():
        table[method].append(astuple(score_ranking(values.tolist(), member)))
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(DRAWS, len(member), generator=generator).tolist()
    random = torch.tensor([astuple(score_ranking(draw, member)) for draw in draws]).mean(0)
    table[f"random ({DRAWS} draws)"].append(tuple(random.tolist()))


def show(title: str, table: Table, sizes: Sequence[tuple[int, int]]) -> None:
    on, every = (sum(column) / len(sizes) for column in zip(*sizes, strict=True))
    click.echo(f"\n{title}: {on:.0f} of {every:.0f} on the circuit\n")
    click.echo("| method | AUROC | AP | P@K | found |\n| --- | ---: | ---: | ---: | ---: |")
    for method, rows in table.items():
        means = torch.tensor(rows).mean(0).tolist()
        click.echo(f"| {method} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")


def names(nodes: Sequence[LatentNode]) -> str:
    return ", ".join(f"{node} ({label(node)})" for node in nodes) or "none"


def nodes_table(cases: Sequence[Case], downstream: str) -> None:
    """The table, and what gradient x activation misses on the first prompt."""
    table: Table = defaultdict(list)
    sizes, missed = [], []
    for one in cases:
        member, scores = one.nodes_on_circuit(), node_scores(one, downstream)
        scores["learned masks"] = learned_masks(one, downstream)
        add(table, scores, member)
        sizes.append((sum(member), len(member)))
        gradient = scores["gradient x activation"].abs()
        off = (gradient < FLOOR * gradient.max()).tolist()
        missed.append([n for n, on, x in zip(one.nodes, member, off, strict=True) if on and x])
    reference = cases[0].reference.name
    show(f"Nodes, reference {reference}, downstream {downstream}", table, sizes)
    click.echo(f"\n`{cases[0].prompt.text}`: gradient x activation misses {names(missed[0])}.")
    if reference == "corrupted":
        for one, nodes in zip(cases, missed, strict=True):
            assert set(nodes) == blind_spots(one.number, one.last, downstream)
        click.echo(
            "They are off on the prompt and lead only to a gate that is shut there (slope 0)"
            + (", or to a latent that is off." if downstream == "freeze" else ".")
        )


def edges_table(cases: Sequence[Case]) -> None:
    table: Table = defaultdict(list)
    sizes = []
    for one in cases:
        member = one.edges_on_circuit()
        add(table, edge_scores(one), member)
        sizes.append((sum(member), len(member)))
    reference = cases[0].reference.name
    show(f"Edges, reference {reference}, downstream freeze", table, sizes)
    if reference == "corrupted":
        click.echo(
            "\nA graph has no edges to latents that are off on its prompt; those of the circuit "
            "are on in the partner, and the graph of that prompt has them."
        )


@click.command(help=__doc__)
@click.option("--prompts", "n", default=6, show_default=True, help="Of the language's 54.")
def main(n: int) -> None:
    model = planted_model()
    every = prompts()
    chosen = [every[i * len(every) // n] for i in range(n)]
    click.echo(f"{model!r}, {n} of {len(every)} prompts")
    cases = {
        reference: [Case.of(model, p, reference) for p in chosen] for reference, _ in QUESTIONS
    }
    for reference, downstream in QUESTIONS:
        nodes_table(cases[reference], downstream)
    for of_reference in cases.values():
        edges_table(of_reference)


if __name__ == "__main__":
    main()
