"""The metric under many changes of one prompt, a row for each change, in batches.

A row is computed from the layer and the position of its first change on, where that can be done
(`circuits.resume`); otherwise passes are whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from attribution.gradients import check_batch_size
from attribution.metrics import BoundMetric
from circuits import Intervention, SplicedModel
from circuits.interventions import by_site, edits
from circuits.kept import keep
from circuits.memory import halving
from circuits.outputs import logit_positions
from circuits.resume import can_resume, resume, starts
from experiments.rows import pack, rows_in, short_rows_in

Plan = tuple[float, list[Tensor], Callable[[Tensor], Tensor]]
"""The metric of the clean pass, the rows of each pass, and from some rows to their metric."""


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
        downstream: What errors do: see `SplicedModel.run`.
        batch_size: Rows of one pass at most; by default 64 of the prompt's whole length, more of
            those that begin late, fewer where `memory` does not hold so many. Where there is no
            memory for a pass it is halved.
        memory: What a pass may take for activations of latents; 256 MB by default. `batch_size`
            goes before it.
        label: Of the progress bar.

    Raises:
        UserError: an unknown convention, or changes that cannot be made.
    """
    check_batch_size(batch_size)
    asked = _Asked(model, ids, score, rows, downstream, batch_size, memory)
    clean, batches, run = asked.resumed() if can_resume(model, score.output) else asked.whole()
    values = torch.zeros(len(rows))
    with tqdm(total=len(rows), desc=label, unit="row", disable=None, delay=1) as bar:
        for batch in batches:
            for part, found in halving(run, batch):
                values[part] = found.float().cpu()
                bar.update(len(part))
    return clean, values


@dataclass(frozen=True, eq=False)
class _Asked:
    """What is to be measured; see `measure`."""

    model: SplicedModel
    ids: Tensor
    score: BoundMetric
    rows: Sequence[Sequence[Intervention]]
    downstream: str
    batch_size: int | None
    memory: str | int | None

    def resumed(self) -> Plan:
        """Passes from first changes on; together go rows that begin at about the same position."""
        model, score = self.model, self.score
        sites = by_site(model, model.reads(self.ids), self.rows)
        kept = keep(model, self.ids, sites, self.downstream, score.output)
        begun = starts(kept, self.rows)

        def place(n: int) -> tuple:  # rows that edit the same sites read few dictionaries together
            return begun[n].first, begun[n].layer, sorted({i.node.site for i in begun[n].later})

        order = sorted(range(len(self.rows)), key=place)
        n_logits = len(logit_positions(score.output, kept.n_pos))
        most = self.batch_size or short_rows_in(model, kept.n_pos, n_logits, self.memory)
        packs = pack([kept.n_pos - begun[n].first for n in order], self._size * kept.n_pos, most)

        def run(batch: Tensor) -> Tensor:
            return score(resume(kept, [begun[n] for n in batch.tolist()], score.output))

        return score(kept.output).item(), [torch.tensor(order[some]) for some in packs], run

    def whole(self) -> Plan:
        """Whole passes; together go rows that change the same sites: few dictionaries a pass."""
        model, ids = self.model, self.ids
        how = {
            "downstream": self.downstream,
            "clean_errors": model.errors(ids) if self.downstream == "freeze" else None,
            "output": self.score.output,
        }

        def run(batch: Tensor) -> Tensor:
            together = ids.expand(len(batch), -1)
            changes = edits(model, together, [self.rows[n] for n in batch.tolist()])
            return self.score(model.run(together, changes, **how))

        clean = self.score(model.run(ids, **how)).item()
        order = sorted(range(len(self.rows)), key=lambda n: [i.node.site for i in self.rows[n]])
        return clean, list(torch.tensor(order, dtype=torch.long).split(self._size)), run

    @property
    def _size(self) -> int:
        """Rows of the prompt's whole length of which a pass may hold the latents."""
        return self.batch_size or rows_in(self.model, self.ids.shape[1], self.memory)
