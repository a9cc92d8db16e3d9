"""Methods that rank the planted model's latents, each under its own name."""

from __future__ import annotations

import torch
from torch import Tensor

from attribution import integrated_each, integrated_effects
from experiments.ablation import ablate_each
from experiments.planted.case import Case

POINTS = 10
"""Of integrated gradients."""
ROWS = 1000
"""Of one pass: they are short, and the model is small."""


def node_scores(case: Case, downstream: str) -> dict[str, Tensor]:
    """What each method gives each of `case.nodes`, `[n]`, by its name.

    All but the last two are estimates or measurements of what the metric loses when the node is
    set to its reference value, with what lies downstream as `downstream` says.
    """
    question = (case.model, case.prompt, case.metric)
    how = {"downstream": downstream, "reference": case.reference}
    rows = ablate_each(*question, case.nodes, batch_size=ROWS, **how)
    joint = integrated_effects(*question, n=POINTS, **how)
    each = integrated_each(*question, case.nodes, n=POINTS, batch_size=ROWS, **how)
    return {
        "exact ablation": torch.tensor([row.measured for row in rows]),
        f"per-latent integrated gradients (n={POINTS})": each,
        joint.estimator: torch.tensor([joint.of(node) for node in case.nodes]),
        rows.estimator: torch.tensor([row.attributed for row in rows]),
        "change of activation": case.acts - case.baseline,
        "activation": case.acts,
    }
