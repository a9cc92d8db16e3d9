"""The feature graph: build, prune, score, draw, export."""

from graphs.graph import AttributionGraph
from graphs.influence import influence
from graphs.labels import label_latents, labels_of
from graphs.measured import with_measured
from graphs.prune import prune
from graphs.render import render
from graphs.scores import completeness_score, replacement_score
from graphs.viewers import export

__all__ = [
    "AttributionGraph",
    "completeness_score",
    "export",
    "influence",
    "label_latents",
    "labels_of",
    "prune",
    "render",
    "replacement_score",
    "with_measured",
]
