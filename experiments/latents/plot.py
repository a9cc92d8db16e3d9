"""The plot of an ablation table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from experiments.latents.result import AblationTable

DRAWN = 30
"""Latents in the plot; the table has all."""


def table_figure(table: AblationTable) -> Figure:
    """One line a latent: measured mean with its interval, attributed, and held out."""
    frame = table.table[:DRAWN]
    rows = np.arange(len(frame))[::-1]
    figure = Figure(figsize=(7, 1.5 + 0.24 * max(len(frame), 4)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="0.8", zorder=0)
    mean, low, high = (np.asarray(frame[name]) for name in ("mean", "low", "high"))
    ends = np.abs(np.stack([mean - low, high - mean]))
    axes.errorbar(mean, rows, xerr=ends, fmt="o", ms=4, lw=1, color="#0072b2", label="measured")
    axes.plot(frame["attributed"], rows, "x", ms=5, color="#d55e00", label="attributed")
    axes.plot(frame["integrated"], rows, "+", ms=6, color="#cc79a7", label="integrated")
    if "heldout_mean" in frame:
        axes.plot(
            frame["heldout_mean"], rows, "o", ms=4, mfc="none", color="#009e73", label="held out"
        )
    axes.set_yticks(rows, labels=frame["node"].tolist(), fontsize=7)
    told = table.conventions
    axes.set_xlabel(f"effect on {told['metric']}, mean over {table.n_prompts} prompts, 95 %")
    axes.set_title(
        f"ablated by {told['reference']}, downstream {told['downstream']}\n"
        f"attributed: {told['estimator']}; integrated: {told['integrated_by']}",
        fontsize=9,
        parse_math=False,
    )
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=4)
    return figure
