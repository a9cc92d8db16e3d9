"""The plot of what each node of a circuit is needed for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from experiments.circuit.drop_one import Minimality

DRAWN = 40
"""Nodes in the plot; the table has all."""

COLOURS = {
    "necessary": "#0072b2",
    "opposing": "#cc79a7",
    "undecided": "0.5",
    "superfluous": "#d55e00",
}


def minimality_figure(result: Minimality) -> Figure:
    """One line a node: what F loses without it, over what it loses without a random added node."""
    frame = result.table[:DRAWN]
    loss, low, high = (np.asarray(frame[name]) for name in ("loss", "low", "high"))
    verdict = np.asarray(frame["verdict"])
    rows = np.arange(len(frame))[::-1]
    figure = Figure(figsize=(7, 1.8 + 0.22 * max(len(frame), 4)), layout="constrained")
    axes = figure.subplots()
    edge = float(np.quantile(result.inflations, 0.95))
    label = f"95 % of random added nodes (matched by {result.conventions['matched']})"
    axes.axvspan(-edge, edge, color="0.88", zorder=0, label=label)
    axes.axvline(0, color="0.7", zorder=0)
    for name, colour in COLOURS.items():
        here = verdict == name
        if here.any():
            ends = np.stack([loss - low, high - loss])[:, here]
            axes.errorbar(
                loss[here],
                rows[here],
                xerr=None if np.isnan(ends).any() else np.maximum(ends, 0),
                fmt="o",
                ms=4,
                lw=1,
                color=colour,
                label=f"{name}: {result.count(name)}",
            )
    axes.set_yticks(rows, labels=frame["node"].tolist(), fontsize=7)
    axes.set_ylim(-0.7, len(frame) - 0.3)
    axes.set_xlabel("F(C) - F(C without the node), 95 %")
    told = result.conventions
    axes.set_title(
        f"{told['metric']} on {result.n_prompts} prompts: F(C) = {result.faithfulness:.2f}, the "
        f"necessary nodes alone {result.kept_alone:.2f}\nothers set to {told['reference']}, "
        f"errors {told['errors']}, downstream {told['downstream']}",
        fontsize=9,
        parse_math=False,
    )
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    return figure
