"""The plot of an attribution report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from experiments.plots import COLOURS

if TYPE_CHECKING:
    from experiments.accuracy.report import AttributionReport


def report_figure(report: AttributionReport) -> Figure:
    """Rows are estimators, columns questions; on the diagonal where attribution is right."""
    pairs, frame = report.pairs, report.frame()
    questions, estimators = pairs["question"].unique(), pairs["estimator"].unique()
    shape = len(estimators), len(questions)
    figure = Figure(figsize=(2.4 * shape[1] + 0.8, 2.4 * shape[0] + 0.8), layout="constrained")
    panels = figure.subplots(*shape, squeeze=False)
    for (i, j), axes in np.ndenumerate(panels):
        own = pairs[(pairs["question"] == questions[j]) & (pairs["estimator"] == estimators[i])]
        if own.empty:
            axes.set_axis_off()
            continue
        axes.axline((0, 0), slope=1, color="0.8", zorder=0)
        for kind, part in own.groupby("site_kind"):
            axes.scatter(
                part["attributed"], part["measured"], s=6, alpha=0.6, color=COLOURS[str(kind)],
                label=kind,
            )  # fmt: skip
        told = frame[
            (frame["question"] == questions[j])
            & (frame["estimator"] == estimators[i])
            & (frame["over"] == "prompts")
        ].iloc[0]
        axes.set_title(
            f"{questions[j]}\n{estimators[i]}\nr = {told['pearson']:.3f}", fontsize=7,
            parse_math=False,
        )  # fmt: skip
        axes.tick_params(labelsize=6)
    figure.supxlabel("attributed", fontsize=9)
    figure.supylabel("measured", fontsize=9)
    told = report.conventions
    figure.suptitle(
        f"effects on {told['metric']}, ablated by {told['reference']}, "
        f"downstream {told['downstream']}, {report.n_prompts} prompts",
        fontsize=9,
    )
    return figure
