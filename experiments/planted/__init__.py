"""A circuit set by hand, with decoys: what a method finds is scored against what was planted."""

from experiments.planted.language import NUMBERS, prompts, question
from experiments.planted.model import label, planted_model
from experiments.planted.scores import Scores, score_ranking
from experiments.planted.truth import blind_spots, circuit_edges, circuit_nodes

__all__ = [
    "NUMBERS",
    "Scores",
    "blind_spots",
    "circuit_edges",
    "circuit_nodes",
    "label",
    "planted_model",
    "prompts",
    "question",
    "score_ranking",
]
