"""Methods that rank the planted model's edges, each under its own name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from attribution import attribute
from attribution.metrics import bind
from circuits import LatentNode, LogitNode, Prompt
from experiments.ablation import ablate_each
from experiments.edges.held import Held, shifts
from experiments.planted.case import Case
from experiments.planted.truth import METRIC

GRAPHS: dict[str, dict[str, str]] = {
    "local Jacobian": {},
    "local Jacobian, live attention": {"attention": "live"},
    "integrated gradients of MLPs": {"mlp": "integrated"},
    "RelP": {"mlp": "relp"},
}
"""How `attribute` makes edges, by the name shown; attention is frozen where nothing is said."""


def edge_scores(case: Case) -> dict[str, Tensor]:
    """What each method gives each of `case.edges`, `[n]`, by its name; `downstream="freeze"`.

    Against the corrupted prompt, a graph of the clean prompt has latents that are off there as
    sources but not as targets; the same graph of the corrupted prompt has them, and both together
    all edges.
    """
    scores = {"exact knock-out x measured effect": knock_outs(case)}
    partner = _partner(case) if case.reference.name == "corrupted" else None
    for name, choice in GRAPHS.items():
        here = graph_edges(case, choice)
        scores[f"{name} x gradient"] = here
        if partner is not None:
            found = graph_edges(partner, choice).abs().tolist()
            there = dict(zip(partner.edges, found, strict=True))
            both = here.abs() + torch.tensor([there[edge] for edge in case.edges])
            scores[f"{name} x gradient, graphs of both prompts"] = both
    return scores | {"local Jacobian alone": graph_edges(case, {}, weighted=False)}


def knock_outs(case: Case) -> Tensor:
    """What the metric loses through each edge, `[n]`: nothing in it is a gradient.

        (what the target's pre-activation loses) * (the target's measured effect / its change)

    A target with the same value in the reference weighs nothing. With the metric as the target,
    what it loses.
    """
    rows = ablate_each(
        case.model,
        case.prompt,
        case.metric,
        case.nodes,
        reference=case.reference,
        downstream="freeze",
    )
    effects = torch.tensor([row.measured for row in rows])
    change = case.acts - case.baseline
    per_unit = torch.where(change == 0, 0, effects / change)
    weights: dict[LatentNode | str, float] = {METRIC: 1.0}
    weights |= zip(case.nodes, per_unit.tolist(), strict=True)
    return losses(case) * torch.tensor([weights[target] for _, target in case.edges])


def losses(case: Case) -> Tensor:
    """What each edge's target loses when the source alone is set to its reference value, `[n]`.

    Every other site is held at what it writes on the clean prompt; the target is read from what
    then arrives: its pre-activation, or the metric. Norms and attention are live.
    """
    model, nodes = case.model, case.nodes
    changes = zip(nodes, case.baseline - case.acts, strict=True)
    rows = [shifts(model, node, change) for node, change in changes]
    held = Held.of(model, model.tokens(case.prompt))
    lost = held.losses(rows, nodes, bind(case.metric, model))
    place: dict[LatentNode | str, int] = {METRIC: len(nodes)}
    place |= {node: i for i, node in enumerate(nodes)}
    return torch.stack([lost[place[source], place[target]] for source, target in case.edges])


def graph_edges(case: Case, choice: Mapping[str, str], *, weighted: bool = True) -> Tensor:
    """The edges of the prompt's graph, `[n]`, each times its target's gradient to the metric.

    Edges are against the reference, as effects are. 0 for an edge that the graph does not have: one
    to a latent that is off on the prompt.
    """
    made = attribute(
        case.model,
        case.prompt,
        case.metric,
        max_latents=None,
        downstream="freeze",
        reference=case.reference,
        **choice,  # pyright: ignore[reportArgumentType]: attention and mlp, both strings
    )
    place = {METRIC if isinstance(n, LogitNode) else n: i for i, n in enumerate(made.nodes)}
    edges = torch.from_numpy(made.edges.toarray())
    if weighted:
        edges = edges * made.target_grads[:, None]
    return torch.tensor(
        [edges[place[t], place[s]] if s in place and t in place else 0.0 for s, t in case.edges]
    )


def _partner(case: Case) -> Case:
    """The question with clean and corrupted prompt exchanged."""
    asked = case.prompt
    prompt = Prompt(asked.corrupted or "", asked.foil, asked.target, asked.text)
    return Case.of(case.model, prompt, case.reference.name)
