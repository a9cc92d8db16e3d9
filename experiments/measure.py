"""The metric under many changes of one prompt, a pass for each change, in batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from attribution.metrics import BoundMetric
from circuits import Intervention, SplicedModel
from circuits.interventions import edits


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
    """The metric of the clean pass, and of a pass for each of `rows`, `[len(rows)]`, on the CPU."""
    how = {
        "downstream": downstream,
        "clean_errors": model.errors(ids) if downstream == "freeze" else None,
        "output": score.output,
    }
    clean = score(model.run(ids, **how)).item()
    values = torch.zeros(len(rows))
    # neighbours share sites, so that a pass goes through few dictionaries
    order = sorted(range(len(rows)), key=lambda i: [c.node.site for c in rows[i]])
    size = batch_size or 64
    with tqdm(total=len(rows), desc=label, unit="pass", disable=None, delay=1) as bar:
        for start in range(0, len(order), size):
            chunk = order[start : start + size]
            batch = ids.expand(len(chunk), -1)
            read = model.run(batch, edits(model, batch, [rows[i] for i in chunk]), **how)
            values[chunk] = score(read).float().cpu()
            bar.update(len(chunk))
    return clean, values
