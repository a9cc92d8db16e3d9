"""The metric under many changes of one prompt, a row for each change, in batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from attribution.metrics import BoundMetric
from circuits import Intervention, SplicedModel
from circuits.interventions import edits
from circuits.memory import halving
from experiments.rows import rows_in


@torch.no_grad()
def measure(
    model: SplicedModel,
    ids: Tensor,
    score: BoundMetric,
    rows: Sequence[Sequence[Intervention]],
    *,
    downstream: str = "recompute",
    batch_size: int | None = None,
    memory: str | int | None = None,
    label: str = "ablating",
) -> tuple[float, Tensor]:
    """The metric of the clean pass, and under each of `rows` of changes, `[len(rows)]`, on the CPU.

    Args:
        ids: The prompt, `[1, pos]`.
        rows: What is changed together, a row of a pass each.
        batch_size: Rows of one pass; by default 64, or as many as `memory` holds. Where there is
            no memory for a pass it is halved.
        memory: What a pass may take for activations of latents; 256 MB by default.
        label: Of the progress bar.
    """
    how = {
        "downstream": downstream,
        "clean_errors": model.errors(ids) if downstream == "freeze" else None,
        "output": score.output,
    }
    clean = score(model.run(ids, **how)).item()
    values = torch.zeros(len(rows))
    # neighbours share sites, so that a pass goes through few dictionaries
    order = sorted(range(len(rows)), key=lambda i: [change.node.site for change in rows[i]])

    def run(some: Tensor) -> Tensor:
        batch = ids.expand(len(some), -1)
        changes = edits(model, batch, [rows[i] for i in some.tolist()])
        return score(model.run(batch, changes, **how)).float().cpu()

    size = batch_size or rows_in(model, ids.shape[1], memory)
    with tqdm(total=len(rows), desc=label, unit="row", disable=None, delay=1) as bar:
        for start in range(0, len(order), size):
            for part, found in halving(run, torch.tensor(order[start : start + size])):
                values[part] = found
                bar.update(len(part))
    return clean, values
