"""Methods that rank the planted model's latents, each under its own name."""

from __future__ import annotations

import torch
from torch import Tensor

from attribution import integrated_each, integrated_effects, logit_diff
from circuits import LatentNode
from experiments.ablation import ablate_each
from experiments.kinds import patch, zero
from experiments.methods import Question, method_named
from experiments.planted.case import Case
from experiments.spans import aligned

POINTS = 10
"""Of integrated gradients."""
ROWS = 1000
"""Of one pass: they are short, and the model is small."""
KINDS = {"corrupted": patch, "zero": zero}
"""Of ablation, by the name of the reference."""


def node_scores(case: Case, downstream: str) -> dict[str, Tensor]:
    """What each method gives each of `case.nodes`, `[n]`, by its name.

    All but the last two are estimates or measurements of what the metric loses when the node is
    set to its reference value, with what lies downstream as `downstream` says; RelP's are without
    their sign.
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
        "RelP": by_method(case, "RelP", downstream),
        "change of activation": case.acts - case.baseline,
        "activation": case.acts,
    }


def by_method(case: Case, name: str, downstream: str) -> Tensor:
    """What a method of `experiments.methods` gives each of `case.nodes`, `[n]`."""
    spans = aligned(case.model, [case.prompt])
    kind = KINDS[case.reference.name]()
    asked = Question(case.model, [case.prompt], spans, logit_diff, kind, downstream)
    nodes, scores = method_named(name).score(asked)
    found = {
        LatentNode(node.site, node.latent, int(node.span)): score
        for node, score in zip(nodes, scores.tolist(), strict=True)
        if node.latent is not None
    }
    return torch.tensor([found[node] for node in case.nodes])


def learned_masks(case: Case, downstream: str) -> Tensor:
    """Of each of `case.nodes` the mask that is learned, from 0 to 1, `[n]`; it takes seconds."""
    return by_method(case, "learned masks", downstream).sigmoid()
