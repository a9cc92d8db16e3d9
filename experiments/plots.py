"""Plots of the experiments' results; drawn without pyplot, so nothing global is touched."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from circuits import ErrorNode

if TYPE_CHECKING:
    from experiments.ablation import Ablations
    from experiments.faithfulness import FaithfulnessCurve

COLOURS = {
    "embed": "#56b4e9",
    "attn": "#0072b2",
    "transcoder": "#cc79a7",
    "mlp": "#d55e00",
    "resid": "#009e73",
}
"""Of each kind of site; told apart by colour-blind readers too."""


def ablation_figure(ablations: Ablations) -> Figure:
    """Attributed against measured effects: on the diagonal where attribution is right."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.axline((0, 0), slope=1, color="0.8", zorder=0)
    axes.axhline(0, color="0.93", zorder=0)
    axes.axvline(0, color="0.93", zorder=0)
    for kind, colour in COLOURS.items():
        for is_error, marker in ((False, "o"), (True, "x")):
            rows = [
                row
                for row in ablations.rows
                if row.node.site.kind == kind and isinstance(row.node, ErrorNode) == is_error
            ]
            if rows:
                axes.scatter(
                    [row.attributed for row in rows],
                    [row.measured for row in rows],
                    s=18,
                    alpha=0.8,
                    color=colour,
                    marker=marker,
                    label=f"{kind} errors" if is_error else kind,
                )
    attributed = f"{ablations.estimator}, downstream {ablations.attributed_downstream}"
    axes.set_xlabel(f"attributed: {attributed}", fontsize=9)
    measured = f"set to {ablations.reference}, downstream {ablations.downstream}"
    axes.set_ylabel(f"measured: {measured}", fontsize=9)
    title = f"effect on {ablations.metric}: r = {ablations.correlation:.3f}, {len(ablations)} nodes"
    axes.set_title(title, fontsize=10, parse_math=False)
    if ablations.rows:
        axes.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def faithfulness_figure(curve: FaithfulnessCurve) -> Figure:
    """F(C) and F(M \\ C) by size, over the band of random circuits."""
    scores = [score for score in curve.scores if score.size > 0]  # the axis is logarithmic
    sizes = [score.size for score in scores]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for level in (0, 1):
        axes.axhline(level, color="0.85", zorder=0)
    if scores and not isnan(scores[0].random_mean):
        axes.fill_between(
            sizes,
            [score.random_low for score in scores],
            [score.random_high for score in scores],
            color="0.85",
            linewidth=0,
            label="random circuits, 5-95 %",
        )
        axes.plot(
            sizes,
            [score.random_mean for score in scores],
            color="0.55",
            label="random circuits, mean",
        )
    axes.plot(
        sizes,
        [score.faithfulness for score in scores],
        "o-",
        color="#0072b2",
        label="circuit, F(C)",
    )
    axes.plot(
        sizes,
        [score.completeness for score in scores],
        "s--",
        color="#d55e00",
        label="complement, F(M \\ C)",
    )
    axes.set_xscale("log")
    axes.set_xticks(sizes, labels=[str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel(f"latents kept, of {curve.n_latents}")
    axes.set_ylabel("share of the metric")
    axes.set_title(
        f"{curve.metric}: others set to {curve.reference}, errors {curve.errors}, "
        f"downstream {curve.downstream}",
        fontsize=10,
        parse_math=False,
    )
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    return figure
