"""Attributed beside measured effects of one prompt's nodes, for an attribution report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from attribution import Effects, integrated_each, integrated_effects, total_effects
from attribution.metrics import bind
from circuits import (
    ErrorNode,
    Intervention,
    LatentNode,
    Prompt,
    Reference,
    Site,
    SplicedModel,
)
from experiments.changes import AnyNode, by_place, changes_to, values_of
from experiments.kinds import AblationKind
from experiments.measure import measure
from experiments.pooled import MetricOf, baseline

if TYPE_CHECKING:
    from pandas import DataFrame

SINGLE, RANDOM = "single", "single random"
ON_ON, ON_OFF, OFF_ON = TRANSITIONS = ("on -> on", "on -> off", "off -> on")


@dataclass(frozen=True, eq=False)
class Case:
    """One prompt with what is attributed to its nodes.

    Attributes:
        nodes: Latents on in the prompt or the reference, and errors, where dictionaries read; those
            of a site together.
        effects: By both estimators that score all nodes at once, by their names, `[n_nodes]`.
    """

    model: SplicedModel
    prompt: Prompt
    metric: Any
    clean: Reference
    reference: Reference
    downstream: str
    nodes: list[AnyNode]
    effects: dict[str, np.ndarray]

    @classmethod
    def of(
        cls,
        model: SplicedModel,
        prompt: Prompt,
        metric: MetricOf,
        kind: AblationKind,
        downstream: str,
        n_points: int,
    ) -> Case:
        reference, asked = baseline(kind, model, prompt), metric(prompt)
        how = {"downstream": downstream, "reference": reference}
        found = [
            total_effects(model, prompt, asked, **how),
            integrated_effects(model, prompt, asked, n=n_points, **how),
        ]
        values = [_effect_of(effects) for effects in found]
        reads = model.reads(model.tokens(prompt))[0].tolist()
        nodes = [node for node in values[0] if reads[node.pos]]
        effects = {
            e.estimator: np.array([own.get(node, 0.0) for node in nodes])
            for e, own in zip(found, values, strict=True)
        }
        clean = Reference("clean", model.trace(prompt))
        return cls(model, prompt, asked, clean, reference, downstream, nodes, effects)

    def measure(self, groups: Sequence[Sequence[int]], **how: Any) -> np.ndarray:
        """What the metric loses when each group is set to the reference at once, `[n_groups]`."""
        ids, score = self.model.tokens(self.prompt), bind(self.metric, self.model)
        rows = self.changes(groups)
        clean, values = measure(self.model, ids, score, rows, downstream=self.downstream, **how)
        return clean - values.double().numpy()

    def changes(self, groups: Sequence[Sequence[int]]) -> list[list[Intervention]]:
        """Each group, numbers of nodes, as it is set to the reference."""
        nodes = [[self.nodes[i] for i in group] for group in groups]
        return changes_to(self.clean, self.reference, nodes)


def _effect_of(effects: Effects) -> dict[AnyNode, float]:
    """Every latent and error, site by site, and what is attributed to it."""
    found: dict[AnyNode, float] = {}
    for site, e in effects.sites.items():
        triples = zip(e.latent.tolist(), e.pos.tolist(), e.effect.tolist(), strict=True)
        found |= {LatentNode(site, latent, pos): value for latent, pos, value in triples}
        found |= {ErrorNode(site, p): value for p, value in enumerate(e.error_effect.tolist())}
    return found


def choose(
    case: Case, n_nodes: int, n_errors: int, rng: np.random.Generator
) -> dict[str, list[int]]:
    """By question the nodes to ablate one by one: the strongest, and as many of the others.

    Only nodes that an ablation changes: elsewhere attributed and measured are zero by construction.
    """
    changed = np.array([bool(row) for row in case.changes([[i] for i in range(len(case.nodes))])])
    is_error = np.array([isinstance(node, ErrorNode) for node in case.nodes])
    size = np.abs(list(case.effects.values())).max(0)
    chosen: dict[str, list[int]] = {SINGLE: [], RANDOM: []}
    for errors, n in ((False, n_nodes), (True, n_errors)):
        pool = np.flatnonzero(changed & (is_error == errors))
        pool = pool[np.argsort(-size[pool], kind="stable")]
        n_first = min(n, int((size[pool] > 0).sum()))
        others = pool[n_first:]
        drawn = rng.choice(others, min(n_first, len(others)), replace=False)
        chosen[SINGLE] += pool[:n_first].tolist()
        chosen[RANDOM] += sorted(drawn.tolist())
    return chosen


def single_pairs(
    case: Case, chosen: dict[str, list[int]], n_points: int, how: dict[str, Any]
) -> DataFrame:
    """Nodes one by one, by three estimators."""
    import pandas as pd

    numbers = [i for group in chosen.values() for i in group]
    nodes = [case.nodes[i] for i in numbers]
    each = integrated_each(
        case.model, case.prompt, case.metric, nodes, n=n_points,
        downstream=case.downstream, reference=case.reference, **how,
    )  # fmt: skip
    columns = {name: effects[numbers] for name, effects in case.effects.items()}
    columns[f"per-latent integrated gradients (n={n_points})"] = each.double().cpu().numpy()
    shared = {
        "question": [question for question, group in chosen.items() for _ in group],
        "node": [str(node) for node in nodes],
        "site_kind": [node.site.kind for node in nodes],
        "error": np.array([isinstance(node, ErrorNode) for node in nodes], dtype=bool),
        "transition": transitions(case, nodes),
        "measured": case.measure([[i] for i in numbers], **how),
    }
    return pd.concat(
        [pd.DataFrame({**shared, "estimator": k, "attributed": v}) for k, v in columns.items()]
    )


def joint_pairs(
    case: Case, share: float, rng: np.random.Generator, how: dict[str, Any]
) -> DataFrame:
    """At every site a random subset of its nodes at once, by the sums of two estimators."""
    import pandas as pd

    at_site: dict[Site, list[int]] = {site: [] for site in case.model.sites}
    for i, node in enumerate(case.nodes):
        at_site[node.site].append(i)
    subsets = []
    for own in at_site.values():
        size = max(1, round(share * len(own)))
        drawn = rng.choice(len(own), size=min(size, len(own)), replace=False)
        subsets.append([own[i] for i in sorted(drawn.tolist())])
    shared = {
        "question": f"joint {100 * share:g} %",
        "node": [str(site) for site in at_site],
        "site_kind": [site.kind for site in at_site],
        "error": False,
        "transition": "",
        "measured": case.measure(subsets, **how),
    }
    sums = {k: [v[subset].sum() for subset in subsets] for k, v in case.effects.items()}
    return pd.concat(
        [pd.DataFrame({**shared, "estimator": k, "attributed": v}) for k, v in sums.items()]
    )


def transitions(case: Case, nodes: Sequence[AnyNode]) -> list[str]:
    """What an ablation makes of each latent, one of `TRANSITIONS`; of an error nothing, ""."""
    told: dict[AnyNode, str] = dict.fromkeys(nodes, "")
    for latents in by_place([node for node in nodes if isinstance(node, LatentNode)]):
        was, becomes = (values_of(r, latents) != 0 for r in (case.clean, case.reference))
        for node, before, after in zip(latents, was.tolist(), becomes.tolist(), strict=True):
            told[node] = ON_ON if before and after else ON_OFF if before else OFF_ON
    return [told[node] for node in nodes]
