"""The goals of ablation studies, on every task of the bundled model, on held-out prompts.

    python benchmarks/studies.py [--prompts 5]

Prompts are those of the commands: what fits the model, and no text or pair of the prompts that
circuits are found on is among those that they are tested on.

1. *Attributed against measured*, patching: effects of single nodes by gradient x activation and by
   per-latent integrated gradients (Pearson's r on the strongest and on as many random nodes, and
   overlap of the 20 strongest), joint effects of whole sites by joint integrated gradients
   (relative L1); means over prompts.
2. *Circuits*: nodes ranked by gradient x activation on training prompts, kept on held-out ones,
   others patched: F with the 5-95 % band of 20 random circuits with as many nodes at each site.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from typing import Any

import click
import torch

from circuits import SplicedModel, load
from experiments import attribution_report, dataset_circuit, faithfulness_curve
from experiments.kinds import patch
from experiments.named import prompts_named, spans_for
from experiments.study.report import markdown_table
from experiments.tasks import TASKS

SIZES = (30, 100, 300, 1000)


@click.command()
@click.option("--prompts", default=5, show_default=True, help="Held-out prompts of each task.")
@click.option("--tasks", default=",".join(TASKS), help="Names, by commas; all by default.")
def main(prompts: int, tasks: str) -> None:
    """Print two Markdown tables."""
    import pandas as pd

    start, model = time.perf_counter(), load("tiny")
    names = [name.strip() for name in tasks.split(",")]
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}\n")
    for title, rows in (
        ("Attributed against measured", [agreement(model, n, prompts) for n in names]),
        ("Circuits", [row for n in names for row in circuits(model, n, prompts)]),
    ):
        print(f"### {title}\n")
        print("\n".join(markdown_table(pd.DataFrame(rows))) + "\n")
    print(f"{time.perf_counter() - start:.0f} s")


def agreement(model: SplicedModel, task: str, n: int) -> dict[str, Any]:
    """Single and joint effects of one task."""
    prompts, _, metric = prompts_named(task, n, n_others=0, model=model)
    report = attribution_report(model, prompts, metric, shares=[0.3, 1])
    rows = {
        (row["question"], row["estimator"].split(" (")[0]): row
        for row in report.frame().to_dict("records")
        if row["over"] == "prompts"
    }
    told: dict[str, Any] = {"task": task}
    for estimator, by in (
        ("gradient x activation", "gradient"),
        ("per-latent integrated gradients", "per latent"),
    ):
        strongest, random = rows["single", estimator], rows["single random", estimator]
        told[f"r strongest, {by}"] = strongest["pearson"]
        told[f"r random, {by}"] = random["pearson"]
        told[f"top-20 overlap, {by}"] = strongest["top_k_overlap"]
    for share in ("30 %", "100 %"):
        joint = rows[f"joint {share}", "joint integrated gradients"]
        told[f"joint {share} L1"] = joint["relative_l1"]
    return told


def circuits(model: SplicedModel, task: str, n: int) -> Iterator[dict[str, Any]]:
    """Circuits of one task, under both conventions."""
    heldout, found_on, metric = prompts_named(task, 2 * n, n_others=4 * n, model=model)
    spans = spans_for(model, task, [*found_on, *heldout])
    for downstream in ("recompute", "freeze"):
        circuit = dataset_circuit(
            model, found_on, metric, spans=spans(found_on), k=max(SIZES),
            downstream=downstream,
        )  # fmt: skip
        curve = faithfulness_curve(
            model, heldout, metric, circuit.nodes, sizes=SIZES, spans=spans(heldout),
            reference=patch(), downstream=downstream,
        )  # fmt: skip
        row: dict[str, Any] = {
            "task": task,
            "found on": len(found_on),
            "tested on": len(heldout),
            "downstream": downstream,
            "of": curve.n_nodes,
        }
        for score in curve.scores:
            band = f"{score.random_low:.2f} to {score.random_high:.2f}"
            row[f"F({score.size})"] = f"{score.faithfulness:.2f} ({band})"
        yield row


if __name__ == "__main__":
    main()
