"""How much each latent, error and path moves a metric."""

from attribution.attribute import Attribution, attribute
from attribution.effects import Effects, SiteEffects, total_effects
from attribution.integrated import integrated_each, integrated_effects
from attribution.metrics import Metric, kl, log_prob, logit, logit_diff, prob, prob_diff

__all__ = [
    "Attribution",
    "Effects",
    "Metric",
    "SiteEffects",
    "attribute",
    "integrated_each",
    "integrated_effects",
    "kl",
    "log_prob",
    "logit",
    "logit_diff",
    "prob",
    "prob_diff",
    "total_effects",
]
