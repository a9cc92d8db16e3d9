"""Which edges foretell what knocking them out does, on the bundled model's tasks.

\b
    python benchmarks/edge_accuracy.py [--prompts 3] [--tasks ioi,greater_than]

Graphs of every active latent, by four rules; of each prompt the strongest edges and as many random
ones are knocked out, attention and norms live. Tables: by rule; by what sources are, live; by the
stretch between source and target, live; by task, live. `r`, `slope`, `sign` and `missed` are of
pre-activations, `metric_r` of the metric: see `EdgeKnockouts.agreement`.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click
import torch
from tqdm import tqdm

from attribution import attribute
from circuits import ErrorNode, LatentNode, load
from experiments import EdgeKnockouts, edge_knockout
from experiments.kinds import patch, zero
from experiments.study.report import markdown_table
from experiments.tasks import TASKS

RULES: dict[str, dict[str, Any]] = {
    "frozen": {},
    "frozen, MLPs by integrated gradients": {"mlp": "integrated"},
    "norms live": {"norms": "live"},
    "live": {"attention": "live", "norms": "live"},
}
"""How `attribute` makes edges, by the name shown; attention and norms are frozen by default."""
KINDS = {"zero": zero, "patch": patch}


@click.command(help=__doc__)
@click.option("--prompts", default=3, show_default=True, help="Held-out prompts of each task.")
@click.option("--edges", default=200, show_default=True, help="Strongest, and as many random.")
@click.option("--kind", type=click.Choice(list(KINDS)), default="zero", show_default=True)
@click.option("--tasks", default=",".join(TASKS), help="Names, by commas; all by default.")
def main(prompts: int, edges: int, kind: str, tasks: str) -> None:
    """Print Markdown tables."""
    start, model = time.perf_counter(), load("tiny")
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}; {kind}\n")
    asked = [
        (name, prompt)
        for name in (task.strip() for task in tasks.split(","))
        for prompt in TASKS[name].prompts("heldout", n=prompts)
    ]
    found: dict[str, list[EdgeKnockouts]] = {rule: [] for rule in RULES}
    for name, prompt in tqdm(asked, desc="prompts", disable=None):
        metric, references = TASKS[name].metric(prompt), KINDS[kind]().references(model, prompt)
        for rule, how in RULES.items():
            graph = attribute(
                model, prompt, metric, max_latents=None, reference=references[0], **how
            )
            knockouts = edge_knockout(
                model, prompt, metric, graph, top=edges, n_random=edges, kind=KINDS[kind]()
            )
            source = [_type(node) for node, _ in knockouts.edges]
            table = knockouts.table.assign(rule=rule, task=name, source_is=source)
            found[rule].append(replace(knockouts, table=table))
    live = together(found["live"])
    every = together([each for results in found.values() for each in results])
    show("Rules", every, ("rule", "group"))
    show("Sources, live", live, ("source_is", "group"))
    show("Stretches, live", live, ("stretch", "group"))
    show("Tasks, live", live, ("task", "group"))
    print(f"{time.perf_counter() - start:.0f} s")


def together(results: Sequence[EdgeKnockouts]) -> EdgeKnockouts:
    """One result with the rows of all."""
    import pandas as pd

    table = pd.concat([each.table for each in results], ignore_index=True)
    return replace(results[0], table=table, edges=tuple(e for each in results for e in each.edges))


def show(title: str, result: EdgeKnockouts, by: tuple[str, str]) -> None:
    """One table of agreement, without the conventions that all share."""
    table = result.agreement(by).drop(columns=list(result.conventions))
    table = table.sort_values([by[1], by[0]], ascending=[False, True])
    print(f"### {title}\n\n" + "\n".join(markdown_table(table.reset_index(drop=True))) + "\n")


def _type(node: object) -> str:
    if isinstance(node, LatentNode):
        return "latent"
    return "error" if isinstance(node, ErrorNode) else "token"


if __name__ == "__main__":
    main()
