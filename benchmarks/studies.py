"""The goals of ablation studies, on every task of the bundled model, on held-out prompts.

    python benchmarks/studies.py [--prompts 5]

1. *Attributed against measured*, patching: single effects by gradient x activation (Pearson's r and
   overlap of the 20 strongest, mean over prompts), joint effects of whole sites by joint integrated
   gradients (relative L1, mean over prompts).
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
from experiments.named import spans_for
from experiments.study.report import markdown_table
from experiments.tasks import TASKS, Task

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
        ("Attributed against measured", [agreement(model, TASKS[n], prompts) for n in names]),
        ("Circuits", [row for n in names for row in circuits(model, TASKS[n], prompts)]),
    ):
        print(f"### {title}\n")
        print("\n".join(markdown_table(pd.DataFrame(rows))) + "\n")
    print(f"{time.perf_counter() - start:.0f} s")


def agreement(model: SplicedModel, task: Task, n: int) -> dict[str, Any]:
    """Single and joint effects of one task."""
    report = attribution_report(model, task.prompts("heldout", n=n), task.metric, shares=[0.3, 1])
    rows = {
        (row["question"], row["estimator"].split(" (")[0]): row
        for row in report.frame().to_dict("records")
        if row["over"] == "prompts"
    }
    single = rows["single", "gradient x activation"]
    each = rows["single", "per-latent integrated gradients"]
    joint = {q: rows[q, "joint integrated gradients"] for q in ("joint 30 %", "joint 100 %")}
    return {
        "task": task.name,
        "single r": single["pearson"],
        "top-20 overlap": single["top_k_overlap"],
        "single r, per latent": each["pearson"],
        "overlap, per latent": each["top_k_overlap"],
        "joint 30 % L1": joint["joint 30 %"]["relative_l1"],
        "joint 100 % L1": joint["joint 100 %"]["relative_l1"],
    }


def circuits(model: SplicedModel, task: Task, n: int) -> Iterator[dict[str, Any]]:
    """Circuits of one task, under both conventions."""
    found_on, heldout = task.prompts("train", n=4 * n), task.prompts("heldout", n=2 * n)
    spans = spans_for(model, task.name, [*found_on, *heldout])
    for downstream in ("recompute", "freeze"):
        circuit = dataset_circuit(
            model, found_on, task.metric, spans=spans(found_on), k=max(SIZES),
            downstream=downstream,
        )  # fmt: skip
        curve = faithfulness_curve(
            model, heldout, task.metric, circuit.nodes, sizes=SIZES, spans=spans(heldout),
            reference=patch(), downstream=downstream,
        )  # fmt: skip
        row: dict[str, Any] = {"task": task.name, "downstream": downstream, "of": curve.n_nodes}
        for score in curve.scores:
            band = f"{score.random_low:.2f} to {score.random_high:.2f}"
            row[f"F({score.size})"] = f"{score.faithfulness:.2f} ({band})"
        yield row


if __name__ == "__main__":
    main()
