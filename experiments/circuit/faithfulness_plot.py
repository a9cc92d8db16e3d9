"""The plot of faithfulness by size."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from experiments.circuit.faithfulness_result import FaithfulnessCurve


def faithfulness_figure(curve: FaithfulnessCurve) -> Figure:
    """F(C) and F(M \\ C) by size, over the band of random circuits."""
    scores = [score for score in curve.scores if score.size > 0]  # the axis is logarithmic
    sizes = [score.size for score in scores]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for level in (0, 1):
        axes.axhline(level, color="0.85", zorder=0)
    if scores and not isnan(scores[0].random_mean):
        lows, highs = [s.random_low for s in scores], [s.random_high for s in scores]
        label = f"random circuits (matched by {curve.matched}), 5-95 %"
        axes.fill_between(sizes, lows, highs, color="0.85", linewidth=0, label=label)
        means = [score.random_mean for score in scores]
        axes.plot(sizes, means, color="0.55", label="random circuits, mean")
    values = [score.faithfulness for score in scores]
    if scores and not isnan(scores[0].low):
        below = [s.faithfulness - s.low for s in scores]
        above = [s.high - s.faithfulness for s in scores]
        axes.errorbar(sizes, values, (below, above), fmt="none", color="#0072b2", capsize=3)
    if curve.n_prompts > 1:
        for name in ("example_low", "example_high"):
            edge = [getattr(score, name) for score in scores]
            label = "single prompts, 5 and 95 %" if name == "example_low" else None
            axes.plot(sizes, edge, ":", color="#0072b2", lw=0.8, label=label)
    axes.plot(sizes, values, "o-", color="#0072b2", label="circuit, F(C)")
    rest = [score.completeness for score in scores]
    axes.plot(sizes, rest, "s--", color="#d55e00", label="complement, F(M \\ C)")
    axes.set_xscale("log")
    axes.set_xticks(sizes, labels=[str(size) for size in sizes])
    axes.minorticks_off()
    what = "nodes" if curve.errors == "scored" else "latents"
    axes.set_xlabel(f"{what} kept, of {curve.n_nodes}")
    axes.set_ylabel("share of the metric")
    prompts = f" on {curve.n_prompts} prompts" if curve.n_prompts > 1 else ""
    axes.set_title(
        f"{curve.metric}{prompts}\nothers set to {curve.reference}, errors {curve.errors}, "
        f"downstream {curve.downstream}",
        fontsize=10,
        parse_math=False,
    )
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    return figure
