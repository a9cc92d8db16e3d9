"""The same latents ablated in several ways: which conclusions survive the choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from matplotlib.figure import Figure

from attribution import logit_diff
from attribution.bootstrap import checked_draws
from attribution.gradients import check_batch_size
from circuits import Prompt, SplicedModel, UserError
from experiments.checks import check_prompts, tested_nodes
from experiments.kinds import AblationKind, checked_kind
from experiments.level import LEVEL
from experiments.pooled import MetricOf, measured_by_kind, metric_of_name, pairs_of
from experiments.records import record_prompts
from experiments.results import Result
from experiments.spans import SpanNode, Spans, aligned
from experiments.statistics import (
    benjamini_hochberg,
    cluster_interval,
    rank_correlation,
    sign_flip_p,
)
from experiments.statistics.permutation import checked_permutations

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, eq=False, repr=False)
class KindsCompared(Result):
    """A row a latent, a group of columns a kind of ablation.

    Columns of `frame()`: for each kind its mean effect (in the metric's units), the interval
    (`patch_low`, `patch_high`) and `patch_q` over all latents; `sign_flips`, in how many pairs of
    kinds the latent flips; `survives`: q at most 0.05 under every kind, with one sign.

    A latent *flips* between two kinds where its means have opposite signs and both intervals
    exclude zero: a mean that may be zero has no sign to lose.

    Attributes:
        nodes: The latents.
        kinds: Names of the kinds.
        means: `[n_kinds, n_nodes]`.
        table: The columns above.
        n_prompts: How many prompts.
        conventions: Metric and the convention downstream.
        provenance: Everything that the numbers depend on.
    """

    kind: ClassVar[str] = "kinds of ablation compared"

    nodes: tuple[SpanNode, ...]
    kinds: tuple[str, ...]
    means: np.ndarray
    table: DataFrame
    n_prompts: int
    conventions: dict[str, str]
    provenance: dict[str, Any]

    @property
    def shown(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The node, the mean of each kind, and what survives."""
        return ("node", *self.kinds, "sign_flips", "survives")

    def __repr__(self) -> str:
        kept = int(np.asarray(self.table["survives"]).sum())
        return (
            f"KindsCompared({', '.join(self.kinds)}: {kept} of {len(self.nodes)} latents keep "
            "their sign and significance under all)"
        )

    def frame(self) -> DataFrame:
        """One line a latent, with the conventions as columns."""
        return self.table.assign(n_prompts=self.n_prompts, **self.conventions)

    def correlations(self) -> DataFrame:
        """One line a pair of kinds: rank correlations of means over `n` latents, and sign flips.

        Those are the latents that flip between the two, so that they add up to the same number
        over pairs of kinds as over the latents of `frame()`.
        """
        import pandas as pd

        rows = []
        for i, j in combinations(range(len(self.kinds)), 2):
            found = rank_correlation(self.means[i], self.means[j])
            pair = self.kinds[i], self.kinds[j]
            rows.append(
                {
                    "kind": pair[0],
                    "other": pair[1],
                    "n": found.n,
                    "spearman": found.spearman,
                    "kendall": found.kendall,
                    "sign_flips": int(_flips(self.table, *pair).sum()),
                }
            )
        return pd.DataFrame(rows).assign(**self.conventions)

    def figure(self) -> Figure:
        """Mean effects under the first kind against those under each other one."""
        others = len(self.kinds) - 1
        figure = Figure(figsize=(3.2 * others + 0.6, 3.6), layout="constrained")
        for i, axes in enumerate(np.atleast_1d(figure.subplots(1, others)), 1):
            axes.axline((0, 0), slope=1, color="0.8", zorder=0)
            axes.axhline(0, color="0.93", zorder=0)
            axes.axvline(0, color="0.93", zorder=0)
            kept = self.table["survives"].to_numpy()
            for mask, colour, label in ((kept, "#0072b2", "survives"), (~kept, "0.6", "does not")):
                axes.scatter(
                    self.means[0][mask], self.means[i][mask], s=14, color=colour, label=label
                )
            axes.set_xlabel(self.kinds[0])
            axes.set_ylabel(self.kinds[i])
        axes.legend(frameon=False, fontsize=8)
        figure.suptitle(
            f"effect on {self.conventions['metric']}, downstream {self.conventions['downstream']}",
            fontsize=10,
        )
        return figure


def compare_kinds(
    model: SplicedModel,
    prompts: Sequence[Prompt],
    nodes: Sequence[SpanNode],
    metric: MetricOf = logit_diff,
    *,
    kinds: Sequence[AblationKind],
    spans: Spans | None = None,
    downstream: str = "recompute",
    n_bootstrap: int = 1000,
    n_permutations: int = 10_000,
    seed: int = 0,
    batch_size: int | None = None,
    memory: str | int | None = None,
) -> KindsCompared:
    """Ablate each of `nodes` by each of `kinds`, on the same prompts.

    Args:
        model: The spliced model.
        prompts: The prompts.
        nodes: For example `ablation_table(...).nodes`; each counts once.
        metric: From a prompt to its metric.
        kinds: At least two, such as `[patch(), mean_of(others), resample(others), zero()]`.
        spans: As in `ablation_table`.
        downstream: What errors downstream do.
        n_bootstrap, n_permutations, seed: Of intervals and p.
        batch_size, memory: Of one pass of ablations.

    Raises:
        UserError: no prompts, fewer than two kinds, two of one name, or no nodes at spans.
    """
    check_prompts(prompts)
    check_batch_size(batch_size)
    n_bootstrap, seed = checked_draws(n_bootstrap, seed)
    n_permutations = checked_permutations(n_permutations)
    kinds = [checked_kind(kind) for kind in kinds]
    names = [kind.name for kind in kinds]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"kinds {names}; give two or more, each once")
    nodes = tested_nodes(nodes, errors=True)
    if not nodes:
        raise UserError("no latents to compare kinds of ablation on; give at least one")
    spans = spans or aligned(model, prompts)
    found = measured_by_kind(
        model, prompts, spans, metric, nodes, kinds,
        downstream=downstream, batch_size=batch_size, memory=memory,
    )  # fmt: skip
    effects = {each.reference: each.effect for each in found}
    draws = {"n_bootstrap": n_bootstrap, "n_permutations": n_permutations}
    conventions = {"metric": metric_of_name(metric), "downstream": downstream}
    settings = {**conventions, "spans": list(spans.names), **draws}
    settings |= {"kinds": {kind.name: kind.settings for kind in kinds}}
    return KindsCompared(
        nodes=nodes,
        kinds=tuple(names),
        means=np.stack([effect.mean(0) for effect in effects.values()]),
        table=_table(nodes, effects, pairs_of(prompts), seed=seed, **draws),
        n_prompts=len(prompts),
        conventions=conventions,
        provenance=record_prompts(model, prompts, conventions["metric"], settings, seed=seed),
    )


def _table(
    nodes: Sequence[SpanNode],
    effects: Mapping[str, np.ndarray],
    clusters: np.ndarray,
    *,
    n_bootstrap: int,
    n_permutations: int,
    seed: int,
) -> DataFrame:
    """The columns of `KindsCompared`, from the effects `[n_prompts, n_nodes]` of each kind."""
    import pandas as pd

    columns: dict[str, np.ndarray] = {}
    for name, effect in effects.items():
        low, high = cluster_interval(effect, clusters, n_bootstrap=n_bootstrap, seed=seed)
        p = sign_flip_p(effect, clusters, n_permutations=n_permutations, seed=seed)
        columns |= {
            name: effect.mean(0),
            f"{name}_low": low,
            f"{name}_high": high,
            f"{name}_q": benjamini_hochberg(p),
        }
    table = pd.DataFrame({"node": [str(node) for node in nodes], **columns})
    flips = [_flips(table, *pair) for pair in combinations(effects, 2)]
    significant = np.stack([columns[f"{name}_q"] <= LEVEL for name in effects]).all(0)
    signs = np.sign(np.stack([columns[name] for name in effects]))
    one_sign = np.abs(signs.sum(0)) == len(effects)
    return table.assign(sign_flips=np.sum(flips, axis=0), survives=significant & one_sign)


def _flips(table: DataFrame, one: str, other: str) -> np.ndarray:
    """Whether each latent flips between two kinds: see `KindsCompared`."""
    signs = []
    for name in (one, other):
        mean, low, high = (table[name + end].to_numpy() for end in ("", "_low", "_high"))
        signs.append(np.sign(mean) * ((low > 0) | (high < 0)))
    return signs[0] * signs[1] < 0
