"""Plots of the experiments' results; drawn without pyplot, so nothing global is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from circuits import ErrorNode

if TYPE_CHECKING:
    from experiments.ablation import Ablations

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
