"""Are a graph's edges and paths real? A source is changed while everything beside them is held."""

from experiments.edges.knockout import EdgeKnockouts, edge_knockout
from experiments.edges.patching import PathPatch, path_patch
from experiments.edges.strongest import strongest_paths

__all__ = ["EdgeKnockouts", "PathPatch", "edge_knockout", "path_patch", "strongest_paths"]
