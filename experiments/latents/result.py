"""The table of each latent's effect over many prompts: its columns, and what it says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from experiments.latents.plot import table_figure
from experiments.results import Result
from experiments.spans import SpanNode

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Array = np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class AblationTable(Result):
    """A row a latent, the largest mean effect first.

    Columns of `frame()`, effects in the metric's units:

    - `mean`, `low`, `high`: what the metric loses, and the 95 % interval of the mean.
    - `share`, `share_low`, `share_high`: `mean` over the behaviour, which is the mean of
      `m(clean) - m(corrupted)`; where prompts have no partner, of `m(clean)` (`share_of` says
      which). NaN where the behaviour is under a tenth of the clean metric or its 95 % interval
      holds zero.
    - `attributed`: the mean by gradient x activation; `integrated`: by joint integrated gradients.
    - `firing`: share of prompts where the latent is on.
    - `p`, `q`: two-sided, of a mean of zero; q is corrected for all latents tested.
    - `percentile`: share of the `n_controls` matched random latents with a smaller |mean|. Any
      latent but the one itself may be among them: over all latents of a place percentiles are
      uniform if their effects are exchangeable.
    - `donor_sd`: root mean variance over donors, of kinds with several.
    - `heldout_mean`, `heldout_low`, `heldout_high`, `heldout_p`, `heldout_q`: on the held-out
      prompts; q is corrected for all latents re-tested.
    - `confirmed`: the same sign there and `heldout_q` at most 0.05. None where no p can be so
      small: of n held-out pairs the least is 2 / 2^n, so that it takes 6. One latent alone among m
      is confirmed only with a p of at most 0.05 / m.

    Attributes:
        nodes: The latents, in the order of the rows.
        effects: Measured on each prompt, `[n_prompts, n_nodes]`.
        table: The columns above.
        n_prompts: How many prompts; `n_heldout` of the held-out ones.
        conventions: Metric, kind of ablation and the convention downstream.
        notes: Why a column is missing, a sentence each; `text` ends with them.
        provenance: Everything that the numbers depend on.
    """

    kind: ClassVar[str] = "ablation table"
    shown: ClassVar[tuple[str, ...]] = (
        "node", "mean", "low", "high", "share", "attributed", "integrated", "firing", "q",
        "percentile", "heldout_mean", "confirmed",
    )  # fmt: skip

    nodes: tuple[SpanNode, ...]
    effects: Array
    table: DataFrame
    n_prompts: int
    n_heldout: int
    conventions: dict[str, str]
    notes: tuple[str, ...]
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        told = ", ".join(f"{key} {value}" for key, value in self.conventions.items())
        return f"AblationTable({len(self.nodes)} latents on {self.n_prompts} prompts; {told})"

    def frame(self) -> DataFrame:
        """One line a latent, with the conventions as columns."""
        return self.table.assign(n_prompts=self.n_prompts, **self.conventions)

    def text(self, top: int | None = None) -> str:
        """The `top` first lines of the table for the terminal, and the notes."""
        return "\n".join([super().text(top), *self.notes])

    def figure(self) -> Figure:
        """The strongest latents: measured with intervals, attributed, and held out."""
        return table_figure(self)
