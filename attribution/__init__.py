"""How much each latent, error and path moves a metric."""

from attribution.attention import AttentionPairs, attention_pairs
from attribution.attribute import Attribution, attribute, forecast
from attribution.edges.expectation import Forecast
from attribution.effects import Effects, SiteEffects, total_effects
from attribution.integrated import integrated_each, integrated_effects
from attribution.many.dataset import DatasetAttribution, attribute_dataset
from attribution.metrics import (
    Metric,
    Targets,
    kl,
    log_prob,
    logit,
    logit_diff,
    prob,
    prob_diff,
    total,
)
from attribution.targets import attention_score, direction, latent, top_logits

__all__ = [
    "AttentionPairs",
    "Attribution",
    "DatasetAttribution",
    "Effects",
    "Forecast",
    "Metric",
    "SiteEffects",
    "Targets",
    "attention_pairs",
    "attention_score",
    "attribute",
    "attribute_dataset",
    "direction",
    "forecast",
    "integrated_each",
    "integrated_effects",
    "kl",
    "latent",
    "log_prob",
    "logit",
    "logit_diff",
    "prob",
    "prob_diff",
    "top_logits",
    "total",
    "total_effects",
]
