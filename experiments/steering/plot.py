"""The plot of a steering curve."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from circuits.errors import first_of

if TYPE_CHECKING:
    from experiments.steering.result import SteeringCurve

STEERED, FORETOLD = "#0072b2", "#d55e00"


def steering_figure(curve: SteeringCurve) -> Figure:
    """Two panels by dose: the metric on the prompts, and the KL on neutral texts."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [str(node).removesuffix("@all") for node in curve.nodes]
    mode, downstream = curve.conventions["mode"], curve.conventions["downstream"]
    figure.suptitle(
        f"{first_of(names)}, mode {mode}, downstream {downstream}", fontsize=10, parse_math=False
    )
    if mode == "set":  # else the clean metric is the response at dose 0
        left.axhline(curve.clean.mean(), color="0.4", lw=0.8, ls=":", label="clean")
    low, high = _curve(left, curve, "response", "low", "high", "random")
    left.set_ylabel(f"{curve.conventions['metric']},\nmean over {len(curve.responses)} prompts")
    _foretold(left, curve)
    left.set_ylim(low, high)  # the line may leave the panel
    _curve(right, curve, "kl", "kl_low", "kl_high", "random_kl")
    right.set_ylabel(f"KL(clean || steered), nats,\nmean over {curve.n_neutral} neutral texts")
    for axes in (left, right):
        axes.set_xlabel(f"dose, in multiples of the latent's {curve.conventions['unit']}")
    handles, labels = left.get_legend_handles_labels()
    ncols = 4 if len(handles) < 5 else 3
    place = {"loc": "outside lower center", "ncols": ncols}
    figure.legend(handles, labels, frameon=False, fontsize=9, **place)
    return figure


def _curve(
    axes: Axes, curve: SteeringCurve, mean: str, low: str, high: str, random: str
) -> tuple[float, float]:
    """One quantity with its interval, over that of the random directions; the panel's limits."""
    frame = curve.table
    column = {name: np.asarray(frame[name], float) for name in frame}
    dose = column["dose"]
    axes.axvline(0, color="0.9", zorder=0)
    if n_random := len(curve.random_responses):
        ends = column[f"{random}_min"], column[f"{random}_max"]
        label = f"{n_random} random directions, smallest to largest"
        axes.fill_between(dose, *ends, color="0.85", linewidth=0, label=label)
        axes.plot(dose, column[random], color="0.55", lw=1, label="their mean")
    axes.fill_between(dose, column[low], column[high], color=STEERED, alpha=0.2, linewidth=0)
    axes.plot(dose, column[mean], "o-", ms=4, color=STEERED, label="steered, 95 % interval")
    return axes.get_ylim()


def _foretold(axes: Axes, curve: SteeringCurve) -> None:
    """What the gradient on the clean pass foretells."""
    label = f"foretold by {curve.conventions['estimator']}"
    axes.plot(curve.table["dose"], curve.table["foretold"], "--", color=FORETOLD, label=label)
