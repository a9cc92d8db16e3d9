"""Tables on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.results import WIDEST, layout

if TYPE_CHECKING:
    from experiments.ablation import Ablations
    from graphs import AttributionGraph


def attributed_table(graph: AttributionGraph, top: int) -> str:
    """The strongest latents of a graph with their attributed effects."""
    rows = []
    for node in graph.latents(top=top):
        attributes = graph.digraph.nodes[node]
        rows.append(
            (
                str(node),
                graph.words[node.pos],
                f"{attributes['effect']:+.3f}",
                _short(attributes["label"]),
            )
        )
    return layout(("latent", "at", "attributed", "label"), rows, left=(0, 1, 3))


def ablation_table(ablations: Ablations, top: int | None = None) -> str:
    """Attributed beside measured, in the order of the rows."""
    rows = [
        (str(r.node), r.word, f"{r.attributed:+.3f}", f"{r.measured:+.3f}", _short(r.label))
        for r in ablations.rows[:top]
    ]
    return layout(("node", "at", "attributed", "measured", "label"), rows, left=(0, 1, 4))


def _short(label: str | None) -> str:
    label = " ".join((label or "").split())
    return label if len(label) <= WIDEST else label[: WIDEST - 3] + "..."
