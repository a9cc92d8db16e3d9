"""The plot of knocked-out edges."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from experiments.edges.knockout import EdgeKnockouts

GROUPS = {"random": "0.6", "strongest": "#0072b2", "given": "#0072b2"}


def edge_figure(result: EdgeKnockouts) -> Figure:
    """What edges foretell against what their knock-out does; on the diagonal where they are right.

    On the left at the target's pre-activation, on the right at the metric.
    """
    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    told, frame = result.conventions, result.table
    pairs = (
        ("predicted", "pre_activation_change", "target's pre-activation", "r", "slope"),
        ("contribution", "metric_change", told["metric"], "metric_r", "metric_slope"),
    )
    numbers = {row["group"]: row for row in result.agreement().to_dict("records")}
    for axes, (x, y, what, r, slope) in zip(figure.subplots(1, 2), pairs, strict=True):
        axes.axline((0, 0), slope=1, color="0.8", zorder=0)
        axes.axhline(0, color="0.93", zorder=0)
        axes.axvline(0, color="0.93", zorder=0)
        for group, colour in GROUPS.items():
            part = frame[frame["group"] == group]
            if len(part):
                found = [numbers[group][column] for column in (r, slope)]
                fit = "" if isnan(found[0]) else f": r = {found[0]:.3f}, slope {found[1]:.2f}"
                axes.scatter(
                    part[x], part[y], s=14, alpha=0.7, color=colour,
                    label=f"{len(part)} {group}{fit}",
                )  # fmt: skip
        axes.set_xlabel(f"foretold: {what}", fontsize=9, parse_math=False)
        axes.set_ylabel(f"knocked out: {what}", fontsize=9, parse_math=False)
        if len(frame):
            axes.legend(frameon=False, fontsize=8, loc="best")
    figure.suptitle(
        f"edges ({told['edges']}, attention {told['edges_attention']}, norms "
        f"{told['edges_norms']}, against {told['edges_against']}); knock-outs: {told['reference']},"
        f"\nattention and norms live; "
        f"metric: the target alone changed, downstream {told['downstream']}",
        fontsize=9,
    )
    return figure
