"""Attributed against measured effects: of single nodes, and of many nodes of a site at once.

These are two questions. Gradient x activation estimates what ablating *one* node does; joint
integrated gradients what ablating a *whole site* does. The report asks every estimator both:

1. *Single*: the strongest latents and errors of each prompt, ablated one by one.
2. *Joint*: random subsets of a site's nodes, 10 to 100 % of them, ablated at once; attributed is
   the sum of their effects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from tqdm import tqdm

from attribution import Effects, integrated_each, integrated_effects, logit_diff, total_effects
from attribution.metrics import bind
from circuits import ErrorNode, LatentNode, Prompt, Reference, Site, SplicedModel, UserError
from experiments.attribution_accuracy_plot import report_figure
from experiments.changes import changes_to
from experiments.checks import check_prompts
from experiments.kinds import AblationKind, patch
from experiments.measure import measure
from experiments.pooled import MetricOf, baseline, metric_of_name
from experiments.records import record_prompts
from experiments.results import Result
from experiments.statistics import agreement

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

SHARES = (0.1, 0.3, 0.5, 1.0)
"""Of a site's nodes that are ablated at once."""

SINGLE = "single"
TRANSITIONS = ("on -> on", "on -> off", "off -> on")
NUMBERS = ("pearson", "spearman", "top_k_overlap", "sign_agreement", "slope", "relative_l1")


@dataclass(frozen=True, eq=False, repr=False)
class AttributionReport(Result):
    """How well attributed effects foretell measured ones.

    Columns of `frame()`, a row a question, an estimator and a group of nodes:

    - `question`: `single`, or `joint 30 %`: that share of a site's nodes at once.
    - `estimator`: how effects were attributed.
    - `group`: `all`; `latents at attn`, ...; `errors`; `on -> on`, `on -> off`, `off -> on` (of
      latents, on the clean prompt and in what they are set to).
    - `over`: `prompts`: each number is the mean over prompts of that number; `pooled`: all prompts'
      nodes together.
    - `n`: pairs of numbers, and what `experiments.statistics.agreement` says of them.

    Attributes:
        pairs: Every pair of numbers: prompt, question, estimator, node or site, attributed,
            measured.
        n_prompts: How many prompts.
        conventions: Metric, kind of ablation and the convention downstream.
        provenance: Everything that the numbers depend on.
    """

    kind: ClassVar[str] = "attribution report"
    shown: ClassVar[tuple[str, ...]] = ("question", "estimator", "group", "over", "n", *NUMBERS)

    pairs: DataFrame
    n_prompts: int
    conventions: dict[str, str]
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        told = ", ".join(f"{key} {value}" for key, value in self.conventions.items())
        return f"AttributionReport({len(self.pairs)} pairs on {self.n_prompts} prompts; {told})"

    def frame(self) -> DataFrame:
        """One line a question, estimator and group."""
        import pandas as pd

        rows = []
        asked = ["question", "estimator"]
        for question, estimator in self.pairs[asked].drop_duplicates().to_numpy().tolist():
            key = {"question": question, "estimator": estimator}
            own = self.pairs.query("question == @question and estimator == @estimator")
            each = [_agree(part) for _, part in own.groupby("prompt")]
            means = {
                name: float(np.nanmean([one[name] for one in each]))
                if any(np.isfinite(one[name]) for one in each)
                else np.nan
                for name in NUMBERS
            }
            rows.append({**key, "group": "all", "over": "prompts", "n": len(own), **means})
            for group, part in _groups(own):
                rows.append({**key, "group": group, "over": "pooled", **_agree(part)})
        return pd.DataFrame(rows).assign(n_prompts=self.n_prompts, **self.conventions)

    def figure(self) -> Figure:
        """Attributed against measured, a panel a question and an estimator."""
        return report_figure(self)


def attribution_report(
    model: SplicedModel,
    prompts: Sequence[Prompt],
    metric: MetricOf = logit_diff,
    *,
    kind: AblationKind | None = None,
    downstream: str = "recompute",
    n_nodes: int = 50,
    n_errors: int = 10,
    shares: Sequence[float] = SHARES,
    n_points: int = 10,
    seed: int = 0,
    batch_size: int | None = None,
    memory: str | int | None = None,
) -> AttributionReport:
    """Set every estimator's effects beside what ablation measures, one by one and jointly.

    Args:
        model: The spliced model.
        prompts: The prompts, with partners for `patch`.
        metric: From a prompt to its metric.
        kind: What nodes are set to; `patch()` by default. Donors are averaged into one reference.
        downstream: `recompute` or `freeze`, for both numbers.
        n_nodes: Latents of each prompt that are ablated one by one: those with the largest effect
            by gradient x activation or by joint integrated gradients.
        n_errors: Errors, chosen alike.
        shares: Of a site's nodes that are ablated at once, one random subset a site and share.
        n_points: Of integrated gradients.
        seed: Of the subsets.
        batch_size, memory: Of one pass of ablations.

    Raises:
        UserError: no prompts, or a share that is none.
    """
    import pandas as pd

    kind = kind or patch()
    check_prompts(prompts)
    if not all(0 < share <= 1 for share in shares):
        raise UserError(f"shares={list(shares)}; give shares of a site above 0, up to 1")
    parts = []
    for i, prompt in enumerate(tqdm(prompts, "report", unit="prompt", disable=None, delay=1)):
        case = _Case.of(model, prompt, metric, kind, downstream, n_points)
        rng = np.random.default_rng([seed, i])
        how = {"batch_size": batch_size, "memory": memory}
        single = _single(case, n_nodes, n_errors, n_points, how)
        joint = [_joint(case, share, rng, how) for share in shares]
        parts += [frame.assign(prompt=i) for frame in (single, *joint)]
    conventions = {
        "metric": metric_of_name(metric),
        "reference": kind.name,
        "downstream": downstream,
    }
    settings = {**conventions, "n_nodes": n_nodes, "n_errors": n_errors, "shares": list(shares)}
    return AttributionReport(
        pairs=pd.concat(parts, ignore_index=True),
        n_prompts=len(prompts),
        conventions=conventions,
        provenance=record_prompts(model, prompts, conventions["metric"], settings, seed=seed),
    )


@dataclass(frozen=True, eq=False)
class _Case:
    """One prompt with what is attributed to its nodes.

    Attributes:
        estimates: Both estimators that score all nodes at once, by their names.
    """

    model: SplicedModel
    prompt: Prompt
    metric: Any
    clean: Reference
    reference: Reference
    downstream: str
    estimates: dict[str, Effects]

    @classmethod
    def of(
        cls,
        model: SplicedModel,
        prompt: Prompt,
        metric: MetricOf,
        kind: AblationKind,
        downstream: str,
        n_points: int,
    ) -> _Case:
        reference, asked = baseline(kind, model, prompt), metric(prompt)
        how = {"downstream": downstream, "reference": reference}
        found = [
            total_effects(model, prompt, asked, **how),
            integrated_effects(model, prompt, asked, n=n_points, **how),
        ]
        clean = Reference("clean", model.trace(prompt))
        by_name = {effects.estimator: effects for effects in found}
        return cls(model, prompt, asked, clean, reference, downstream, by_name)

    def measure(self, groups: Sequence[Sequence[LatentNode | ErrorNode]], **how: Any) -> np.ndarray:
        """What the metric loses when each group is set to the reference at once, `[n_groups]`."""
        ids = self.model.tokens(self.prompt)
        rows = changes_to(self.clean, self.reference, groups)
        score = bind(self.metric, self.model)
        clean, values = measure(self.model, ids, score, rows, downstream=self.downstream, **how)
        return clean - values.double().numpy()


def _single(
    case: _Case, n_nodes: int, n_errors: int, n_points: int, how: dict[str, Any]
) -> DataFrame:
    """The strongest nodes one by one, by three estimators."""
    import pandas as pd

    nodes = [
        *_strongest(case, n_nodes, errors=False),
        *_strongest(case, n_errors, errors=True),
    ]
    measured = case.measure([[node] for node in nodes], **how)
    each = integrated_each(
        case.model, case.prompt, case.metric, nodes, n=n_points,
        downstream=case.downstream, reference=case.reference,
    )  # fmt: skip
    columns = {name: [e.of(node) for node in nodes] for name, e in case.estimates.items()}
    columns[f"per-latent integrated gradients (n={n_points})"] = each.tolist()
    shared = {
        "question": SINGLE,
        "node": [str(node) for node in nodes],
        "site_kind": [node.site.kind for node in nodes],
        "error": [isinstance(node, ErrorNode) for node in nodes],
        "transition": [_transition(case, node) for node in nodes],
        "measured": measured,
    }
    return pd.concat(
        [pd.DataFrame({**shared, "estimator": k, "attributed": v}) for k, v in columns.items()]
    )


def _joint(case: _Case, share: float, rng: np.random.Generator, how: dict[str, Any]) -> DataFrame:
    """At every site a random subset of its nodes at once, by the sums of two estimators."""
    import pandas as pd

    subsets: dict[Site, list[LatentNode | ErrorNode]] = {}
    for site in case.model.sites:
        nodes = _nodes_at(case, site)
        size = max(1, round(share * len(nodes)))
        drawn = rng.choice(len(nodes), size=min(size, len(nodes)), replace=False)
        subsets[site] = [nodes[i] for i in sorted(drawn.tolist())]
    measured = case.measure(list(subsets.values()), **how)
    parts = []
    for name, effects in case.estimates.items():
        values = _effect_of(effects)
        shared = {
            "question": f"joint {share:.0%}".replace("%", " %"),
            "node": [str(site) for site in subsets],
            "site_kind": [site.kind for site in subsets],
            "error": False,
            "transition": "",
            "measured": measured,
        }
        sums = [sum(values.get(node, 0.0) for node in subset) for subset in subsets.values()]
        parts.append(pd.DataFrame({**shared, "estimator": name, "attributed": sums}))
    return pd.concat(parts)


def _effect_of(effects: Effects) -> dict[LatentNode | ErrorNode, float]:
    found: dict[LatentNode | ErrorNode, float] = {}
    for site, e in effects.sites.items():
        triples = zip(e.latent.tolist(), e.pos.tolist(), e.effect.tolist(), strict=True)
        found |= {LatentNode(site, latent, pos): value for latent, pos, value in triples}
        found |= {ErrorNode(site, p): value for p, value in enumerate(e.error_effect.tolist())}
    return found


def _nodes_at(case: _Case, site: Site) -> list[LatentNode | ErrorNode]:
    """Latents on in the prompt or the reference, and the errors where dictionaries read."""
    e = next(iter(case.estimates.values())).sites[site]
    nodes: list[LatentNode | ErrorNode] = [
        LatentNode(site, latent, pos)
        for latent, pos in zip(e.latent.tolist(), e.pos.tolist(), strict=True)
    ]
    reads = case.model.reads(case.model.tokens(case.prompt))[0]
    return [*nodes, *(ErrorNode(site, pos) for pos in reads.nonzero()[:, 0].tolist())]


def _strongest(case: _Case, n: int, *, errors: bool) -> list[LatentNode | ErrorNode]:
    """By the larger of the two absolute effects."""
    sizes: dict[LatentNode | ErrorNode, float] = {}
    for effects in case.estimates.values():
        for node, value in _effect_of(effects).items():
            if isinstance(node, ErrorNode) == errors:
                sizes[node] = max(sizes.get(node, 0.0), abs(value))
    ranked = sorted(sizes, key=lambda node: -sizes[node])
    return [node for node in ranked[:n] if sizes[node] > 0]


def _transition(case: _Case, node: LatentNode | ErrorNode) -> str:
    if isinstance(node, ErrorNode):
        return ""
    before, after = (bool(torch.any(r.value(node) != 0)) for r in (case.clean, case.reference))
    return {(True, True): TRANSITIONS[0], (True, False): TRANSITIONS[1]}.get(
        (before, after), TRANSITIONS[2]
    )


def _groups(own: Any) -> list[tuple[str, Any]]:
    """All nodes, latents by kind of site, errors, and latents by what ablation does to them."""
    groups = [("all", own)]
    latents = own[~own["error"]]
    groups += [(f"latents at {k}", part) for k, part in latents.groupby("site_kind", sort=False)]
    groups += [("errors", own[own["error"]])]
    groups += [(name, own[own["transition"] == name]) for name in TRANSITIONS]
    return [(str(name), part) for name, part in groups if len(part)]


def _agree(pairs: Any) -> dict[str, float]:
    found = asdict(agreement(pairs["attributed"].to_numpy(), pairs["measured"].to_numpy()))
    return {"n": found["n"], **{name: found[name] for name in NUMBERS}}
