"""The metric under many changes of one prompt, a row for each change, in batches.

A row is computed from the layer and the position of its first change on, where that can be done
(`circuits.resume`); otherwise passes are whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from attribution.metrics import BoundMetric
from circuits import Intervention, SplicedModel
from circuits.interventions import by_site, edits
from circuits.kept import keep
from circuits.memory import halving
from circuits.resume import can_resume, resume, starts
from experiments.rows import pack, rows_in

Rows = Sequence[Sequence[Intervention]]

Plan = tuple[float, list[Tensor], Callable[[Tensor], Tensor]]
"""The metric of the clean pass, the rows of each pass, and from some rows to their metric."""


@torch.no_grad()
def measure(
    model: SplicedModel,
    ids: Tensor,
    score: BoundMetric,
    rows: Rows,
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
        downstream: `recompute`, `freeze` or `drop`; see `SplicedModel.run`.
        batch_size: Rows of one pass at most; by default 64 of the prompt's whole length, more of
            those that begin late, fewer where `memory` does not hold so many. Where there is no
            memory for a pass it is halved.
        memory: What a pass may take for activations of latents; 256 MB by default.
        label: Of the progress bar.
    """
    size = batch_size or rows_in(model, ids.shape[1], memory)
    plan = _resumed if can_resume(model, score.output) else _whole
    clean, batches, run = plan(model, ids, score, rows, downstream, size, batch_size)
    values = torch.zeros(len(rows))
    with tqdm(total=len(rows), desc=label, unit="row", disable=None, delay=1) as bar:
        for batch in batches:
            for part, found in halving(run, batch):
                values[part] = found.float().cpu()
                bar.update(len(part))
    return clean, values


def _resumed(
    model: SplicedModel,
    ids: Tensor,
    score: BoundMetric,
    rows: Rows,
    downstream: str,
    size: int,
    most: int | None,
) -> Plan:
    """Passes from the first changes on; together go rows that begin at about the same position.

    Args:
        size: Rows of the prompt's whole length of which a pass may hold the latents.
        most: Rows of a pass, if that is bounded too.
    """
    n_tokens = size * ids.shape[1]
    kept = keep(model, ids, by_site(model, model.reads(ids), rows), downstream, score.output)
    begun = starts(kept, rows, block=n_tokens)
    order = sorted(range(len(rows)), key=lambda n: (begun[n].first, begun[n].layer))
    lengths = [kept.n_pos - begun[n].first for n in order]
    batches = [torch.tensor(order[some]) for some in pack(lengths, n_tokens, most)]

    def run(batch: Tensor) -> Tensor:
        return score(resume(kept, [begun[n] for n in batch.tolist()], score.output))

    return score(kept.output).item(), batches, run


def _whole(
    model: SplicedModel,
    ids: Tensor,
    score: BoundMetric,
    rows: Rows,
    downstream: str,
    size: int,
    most: int | None,
) -> Plan:
    """Whole passes; together go rows that change the same sites, for few dictionaries a pass."""
    how = {
        "downstream": downstream,
        "clean_errors": model.errors(ids) if downstream == "freeze" else None,
        "output": score.output,
    }
    order = sorted(range(len(rows)), key=lambda n: [change.node.site for change in rows[n]])

    def run(batch: Tensor) -> Tensor:
        together = ids.expand(len(batch), -1)
        changes = edits(model, together, [rows[n] for n in batch.tolist()])
        return score(model.run(together, changes, **how))

    clean = score(model.run(ids, **how)).item()
    return clean, list(torch.tensor(order, dtype=torch.long).split(size)), run
