"""Intervals, tests, agreement, stability and areas: what the studies compute from their numbers."""

from experiments.statistics.agreement import (
    Agreement,
    RankCorrelation,
    agreement,
    pearson,
    rank_correlation,
)
from experiments.statistics.areas import (
    MIB_PROPORTIONS,
    circuit_model_distance,
    circuit_performance_ratio,
    log_area,
)
from experiments.statistics.correction import benjamini_hochberg, percentile_among
from experiments.statistics.intervals import cluster_interval, ratio_interval
from experiments.statistics.permutation import sign_flip_p
from experiments.statistics.stability import (
    TopK,
    cancellation,
    mean_absolute,
    top_k_inclusion,
)

__all__ = [
    "MIB_PROPORTIONS",
    "Agreement",
    "RankCorrelation",
    "TopK",
    "agreement",
    "benjamini_hochberg",
    "cancellation",
    "circuit_model_distance",
    "circuit_performance_ratio",
    "cluster_interval",
    "log_area",
    "mean_absolute",
    "pearson",
    "percentile_among",
    "rank_correlation",
    "ratio_interval",
    "sign_flip_p",
    "top_k_inclusion",
]
