"""Data sets of prompt pairs: bundled, from files or Hugging Face; and what of them fits a model."""

from experiments.datasets.catalogue import DATASETS, load_pairs, word_list
from experiments.datasets.fitting import fitting
from experiments.datasets.pairs import Pairs, overlap, without_overlap
from experiments.datasets.readers import from_hugging_face, read_pairs

__all__ = [
    "DATASETS",
    "Pairs",
    "fitting",
    "from_hugging_face",
    "load_pairs",
    "overlap",
    "read_pairs",
    "without_overlap",
    "word_list",
]
