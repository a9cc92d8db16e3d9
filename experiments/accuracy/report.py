"""Attributed against measured effects: of single nodes, and of many nodes of a site at once.

These are two questions. Gradient x activation estimates what ablating *one* node does; joint
integrated gradients what ablating a *whole site* does. The report asks every estimator both:

1. *Single*: the strongest latents and errors of each prompt, ablated one by one. They are chosen by
   what is attributed to them, so the agreement is that of a ranking's top.
2. *Single random*: as many of the other nodes, drawn at random. What attribution overlooks is here:
   nodes that do more than their rank says.
3. *Joint*: random subsets of a site's nodes, 10 to 100 % of them, ablated at once; attributed is
   the sum of their effects.

Nodes are latents and errors at the positions that dictionaries read, for all three. At BOS (and
EOS) the error is the whole activation, nothing that a dictionary has missed: zeroed on the bundled
model, joint integrated gradients give it a hundred times what it does, and a few such errors decide
the correlation of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from tqdm import tqdm

from attribution import logit_diff
from attribution.gradients import check_batch_size
from circuits import Prompt, SplicedModel, UserError
from circuits.whole_numbers import checked_seed, whole_number
from experiments.accuracy.pairs import (
    RANDOM,
    SINGLE,
    TRANSITIONS,
    Case,
    choose,
    joint_pairs,
    single_pairs,
)
from experiments.accuracy.plot import report_figure
from experiments.checks import check_prompts
from experiments.kinds import AblationKind, checked_kind
from experiments.pooled import MetricOf, metric_of_name
from experiments.records import record_prompts
from experiments.results import Result
from experiments.statistics import agreement

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

SHARES = (0.1, 0.3, 0.5, 1.0)
"""Of a site's nodes that are ablated at once."""

NUMBERS = ("pearson", "spearman", "top_k_overlap", "sign_agreement", "slope", "relative_l1")


@dataclass(frozen=True, eq=False, repr=False)
class AttributionReport(Result):
    """How well attributed effects foretell measured ones.

    Columns of `frame()`, a row a question, an estimator and a group of nodes:

    - `question`: `single`: nodes that attribution ranks highest, one by one; `single random`: as
      many others, one by one; `joint 30 %`: that share of a site's nodes at once.
    - `estimator`: how effects were attributed.
    - `group`: `all`; `latents at attn`, ... (of joint questions, whose subsets hold errors too,
      `latents and errors at attn`); `errors`; `on -> on`, `on -> off`, `off -> on` (of latents, on
      the clean prompt and in what they are set to).
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
            for group, part in _groups(own, question):
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
            by gradient x activation or by joint integrated gradients. As many are drawn from the
            others that an ablation would change.
        n_errors: Errors, chosen and drawn alike, where dictionaries read.
        shares: Of a site's nodes that are ablated at once, one random subset a site and share.
        n_points: Of integrated gradients.
        seed: Of the subsets and the random nodes.
        batch_size, memory: Of one pass of ablations (see `experiments.measure`) or of per-latent
            integrated gradients (see `attribution.integrated_each`).

    Raises:
        UserError: no prompts, or a share that is none.
    """
    import pandas as pd

    kind = checked_kind(kind)
    check_prompts(prompts)
    check_batch_size(batch_size)
    n_nodes, n_errors = whole_number("n_nodes", n_nodes, 0), whole_number("n_errors", n_errors, 0)
    n_points, seed = whole_number("n_points", n_points), checked_seed(seed)
    if not all(0 < share <= 1 for share in shares):
        raise UserError(f"shares={list(shares)}; give shares of a site above 0, up to 1")
    parts = []
    for i, prompt in enumerate(tqdm(prompts, "report", unit="prompt", disable=None, delay=1)):
        case = Case.of(model, prompt, metric, kind, downstream, n_points)
        subsets, others = np.random.default_rng([seed, i]), np.random.default_rng([seed, i, 1])
        how = {"batch_size": batch_size, "memory": memory}
        chosen = choose(case, n_nodes, n_errors, others)
        single = single_pairs(case, chosen, n_points, how)
        joint = [joint_pairs(case, share, subsets, how) for share in shares]
        parts += [frame.assign(prompt=i) for frame in (single, *joint)]
    conventions = {
        "metric": metric_of_name(metric),
        "reference": kind.name,
        "downstream": downstream,
    }
    settings = {**conventions, "n_nodes": n_nodes, "n_errors": n_errors, "shares": list(shares)}
    settings |= {"n_points": n_points, "reference_settings": kind.settings}
    return AttributionReport(
        pairs=pd.concat(parts, ignore_index=True),
        n_prompts=len(prompts),
        conventions=conventions,
        provenance=record_prompts(model, prompts, conventions["metric"], settings, seed=seed),
    )


def _groups(own: Any, question: str) -> list[tuple[str, Any]]:
    """All nodes, latents by kind of site, errors, and latents by what ablation does to them.

    The subsets of joint questions are of latents and errors together, and have no error row.
    """
    groups = [("all", own)]
    latents = own[~own["error"]]
    what = "latents" if question in (SINGLE, RANDOM) else "latents and errors"
    groups += [(f"{what} at {k}", part) for k, part in latents.groupby("site_kind", sort=False)]
    groups += [("errors", own[own["error"]])]
    groups += [(name, own[own["transition"] == name]) for name in TRANSITIONS]
    return [(str(name), part) for name, part in groups if len(part)]


def _agree(pairs: Any) -> dict[str, float]:
    found = asdict(agreement(pairs["attributed"].to_numpy(), pairs["measured"].to_numpy()))
    return {"n": found["n"], **{name: found[name] for name in NUMBERS}}
