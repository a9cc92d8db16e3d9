"""The plot of a data set's circuit: which spans its nodes are at, how strong and how firm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from experiments.plots import COLOURS

if TYPE_CHECKING:
    from experiments.circuit.pooled_circuit import DatasetCircuit


def circuit_figure(circuit: DatasetCircuit) -> Figure:
    """Mean effect by span: one mark a node, as large as it is firm."""
    nodes, table, told = circuit.nodes, circuit.table, circuit.conventions
    spans = circuit.provenance["settings"]["spans"]
    used = [span for span in spans if any(node.span == span for node in nodes)]
    figure = Figure(figsize=(max(4.8, 1.6 + 0.8 * len(used)), 4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="0.8", zorder=0)
    for kind in dict.fromkeys(node.site.kind for node in nodes):
        rows = [i for i, node in enumerate(nodes) if node.site.kind == kind]
        shift = 0.12 * (list(COLOURS).index(kind) - 2)
        axes.scatter(
            [used.index(nodes[i].span) + shift for i in rows],
            table["mean"].iloc[rows],
            s=6 + 40 * table["inclusion"].iloc[rows],
            color=COLOURS[kind],
            alpha=0.7,
            label=kind,
        )
    axes.set_xticks(range(len(used)), labels=used, rotation=45, ha="right")
    axes.set_xlim(-0.6, len(used) - 0.4)
    axes.set_xlabel("span")
    axes.set_ylabel(f"mean effect on {told['metric']}")
    axes.set_title(
        f"{told['estimator']} against {told['reference']}, downstream {told['downstream']}\n"
        "size: share of replicates with the node",
        fontsize=8,
        parse_math=False,
    )
    axes.legend(frameon=False, fontsize=8)
    return figure
