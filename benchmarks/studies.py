"""The goals of ablation studies, on every task of the bundled model, on held-out prompts.

    python benchmarks/studies.py [--prompts 5]

1. *Attributed against measured*, patching: single effects by gradient x activation (Pearson's r and
   overlap of the 20 strongest, mean over prompts), joint effects of whole sites by joint integrated
   gradients (relative L1, mean over prompts).
2. *Edges*: weights against changes of pre-activations when the source is zeroed, of the strongest
   200 edges and 200 random ones, with attention and norms live, on the first prompts.
3. *Circuits*: nodes ranked by gradient x activation on training prompts, kept on held-out ones,
   others patched: F with the 5-95 % band of 20 random circuits with as many nodes at each site.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from typing import Any

import click
import numpy as np
import torch

from attribution import attribute
from circuits import SplicedModel, load
from experiments import attribution_report, dataset_circuit, edge_knockout, faithfulness_curve
from experiments.kinds import patch, zero
from experiments.named import spans_for
from experiments.study.report import markdown_table
from experiments.tasks import TASKS, Task

SIZES = (30, 100, 300, 1000)
N_EDGES = 200


@click.command()
@click.option("--prompts", default=5, show_default=True, help="Held-out prompts of each task.")
@click.option("--edge-prompts", default=2, show_default=True, help="Of them, for edges.")
@click.option("--tasks", default=",".join(TASKS), help="Names, by commas; all by default.")
def main(prompts: int, edge_prompts: int, tasks: str) -> None:
    """Print three Markdown tables."""
    import pandas as pd

    start, model = time.perf_counter(), load("tiny")
    names = [name.strip() for name in tasks.split(",")]
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}\n")
    for title, rows in (
        ("Attributed against measured", [agreement(model, TASKS[n], prompts) for n in names]),
        ("Edges", [edges(model, TASKS[n], edge_prompts) for n in names]),
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


def edges(model: SplicedModel, task: Task, n: int) -> dict[str, Any]:
    """Edges of one task, all prompts together."""
    import pandas as pd

    tables = []
    for prompt in task.prompts("heldout", n=n):
        metric = task.metric(prompt)
        found = attribute(model, prompt, metric, max_latents=300, attention="live", norms="live")
        tables.append(
            edge_knockout(
                model, prompt, metric, found, kind=zero(), top=N_EDGES, n_random=N_EDGES
            ).table
        )
    table = pd.concat(tables)
    told: dict[str, Any] = {"task": task.name}
    for group in ("strongest", "random"):
        part: Any = table[table["group"] == group]
        part = part.dropna(subset=["predicted"])
        pair = np.asarray(part[["predicted", "pre_activation_change"]], dtype=float)
        told[f"r, {group}"] = float(np.corrcoef(pair.T)[0, 1])
        linear = pair[~np.asarray(part["mlp_between"], dtype=bool)]
        told[f"r, {group}, no MLP between"] = float(np.corrcoef(linear.T)[0, 1])
        told[f"jump leak, {group}"] = float(np.nanmedian(np.asarray(part["jump_leak"], float)))
    return told


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
