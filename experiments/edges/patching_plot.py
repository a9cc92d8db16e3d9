"""The plot of patched paths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from circuits import Node
    from experiments.edges.patching import PathPatch


def path_figure(result: PathPatch) -> Figure:
    """Bars of each path's effect, of what is left over and of the total; crosses: attributed."""
    told = result.summary()
    told = told[told["path"] != "sum"].iloc[::-1]
    colours = {"left over": "0.75", "total": "0.35"}
    figure = Figure(figsize=(8, 1.4 + 0.36 * len(told)), layout="constrained")
    axes = figure.subplots()
    at = np.arange(len(told))
    names = told["path"].tolist()
    steps = [_steps(path) for path in result.paths]
    labels = [*steps, "left over", "total"][::-1]
    axes.barh(at, told["effect"], color=[colours.get(name, "#0072b2") for name in names])
    if told["attributed"].notna().any():
        axes.plot(told["attributed"], at, "x", color="#d55e00", label="attributed")
        axes.legend(frameon=False, fontsize=8)
    axes.axvline(0, color="0.8", linewidth=0.8)
    axes.set_yticks(at, labels=labels, fontsize=7)
    conventions = result.conventions
    axes.set_xlabel(f"effect on {conventions['metric']}", fontsize=9, parse_math=False)
    axes.set_title(
        f"paths from {result.paths[0][0]}: {conventions['reference']}, other sites held "
        f"clean;\ntotal with downstream {conventions['downstream']}",
        fontsize=9,
        parse_math=False,
    )
    return figure


def _steps(path: Sequence[Node]) -> str:
    """The path without its source, which all share."""
    return " > ".join(str(node).replace("latent.", "") for node in path[1:]) or "directly"
