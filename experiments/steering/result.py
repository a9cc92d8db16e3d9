"""Dose and response of steered latents: the numbers, beside those of random directions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from experiments.results import Result
from experiments.spans import SpanNode
from experiments.statistics import cluster_interval
from experiments.steering.plot import steering_figure
from experiments.steering.runs import Divergences, Responses, SteeringPlan

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Array = np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class SteeringCurve(Result):
    """A row a dose, ascending.

    Columns of `frame()`; intervals are 95 % bootstrap intervals of the mean:

    - `dose`: what each latent is raised by or set to, in multiples of its scale.
    - `response`, `low`, `high`: the metric, mean over prompts, resampled by prompt pairs.
    - `clean`: of the model as it is; `foretold`: the response that `estimator` foretells, from the
      gradient on the clean pass and what the dose changes of what sites write.
    - `random`, `random_min`, `random_max`: the response along random directions, each as large as
      what the dose changes: the mean over them, and the smallest and largest of their means.
    - `kl`, `kl_low`, `kl_high`: `KL(clean || steered)` of the next token in nats, mean over the
      positions of the neutral texts that dictionaries read, resampled by text.
    - `random_kl`, `random_kl_min`, `random_kl_max`: of the random directions.
    - `slope`, `slope_low`, `slope_high`: of the response at dose 0, in the metric's units a dose:
      the difference quotient over the smallest dose of which both signs were given, from `-step` to
      `step`; if none was, from 0 to the smallest dose (`step`), which bends with the curve.
    - `attributed`: that of `foretold`; `ratio`: `slope / attributed`.
    - `slope_sides`: 2 or 1, on how many sides of dose 0 both slopes are taken.

    Attributes:
        nodes: The latents.
        scales: What a dose of 1 raises each by, or sets it to, in units of its activation.
        clean: On each prompt, `[n_prompts]`.
        responses: On each prompt, `[n_prompts, n_doses]`; so is `foretold`, and `random_responses`
            along each direction, `[n_random, n_prompts, n_doses]`.
        slopes: On each prompt, `[n_prompts]`; `attributed_slopes` by the gradient.
        table: The columns above.
        n_neutral: How many neutral texts.
        conventions: Metric, mode, unit of the doses, the convention downstream and the estimator.
        provenance: Everything that the numbers depend on.
    """

    kind: ClassVar[str] = "steering curve"
    shown: ClassVar[tuple[str, ...]] = (
        "dose", "response", "low", "high", "random", "random_min", "random_max", "kl", "random_kl",
    )  # fmt: skip

    nodes: tuple[SpanNode, ...]
    scales: tuple[float, ...]
    clean: Array
    responses: Array
    foretold: Array
    random_responses: Array
    slopes: Array
    attributed_slopes: Array
    table: DataFrame
    n_neutral: int
    conventions: dict[str, str]
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        told = ", ".join(f"{key} {value}" for key, value in self.conventions.items())
        return (
            f"SteeringCurve({', '.join(map(str, self.nodes))} on {len(self.responses)} prompts; "
            f"slope {self.slope:+.4g}, attributed {self.attributed:+.4g} a dose, "
            f"ratio {self.ratio:.3g}; {told})"
        )

    @classmethod
    def of(
        cls,
        plan: SteeringPlan,
        found: Responses,
        kl: Divergences,
        pairs: Array,
        draws: dict[str, int],
        *,
        conventions: dict[str, str],
        provenance: dict[str, Any],
    ) -> SteeringCurve:
        """What was measured, with means and intervals.

        Args:
            pairs: A number for each prompt, the same for a prompt and its partner, `[n_prompts]`.
            draws: `n_bootstrap` and `seed`, of the intervals.
        """
        low, high = _step(plan.doses)
        slopes, attributed = (
            (values[:, plan.doses.index(high)] - values[:, plan.doses.index(low)]) / (high - low)
            for values in (found.values[0], found.foretold)
        )
        columns = {
            "dose": np.array(plan.doses),
            **_with_interval("response", found.values[0], pairs, "", draws),
            "clean": found.clean.mean(),
            "foretold": found.foretold.mean(0),
            **_among("random", found.values[1:]),
            **_with_interval("kl", kl.values[0], kl.text_of, "kl_", draws),
            **_among("random_kl", kl.values[1:]),
            **_with_interval("slope", slopes[:, None], pairs, "slope_", draws),
            "step": high,
            "slope_sides": 2 if low else 1,
            "attributed": attributed.mean(),
        }
        return cls(
            nodes=plan.nodes,
            scales=plan.scales,
            clean=found.clean,
            responses=found.values[0],
            foretold=found.foretold,
            random_responses=found.values[1:],
            slopes=slopes,
            attributed_slopes=attributed,
            table=_table(columns),
            n_neutral=kl.n_texts,
            conventions=conventions,
            provenance=provenance,
        )

    @property
    def slope(self) -> float:
        """Of the response at dose 0, measured; mean over prompts."""
        return float(self.slopes.mean())

    @property
    def attributed(self) -> float:
        """The slope that the gradient foretells; mean over prompts."""
        return float(self.attributed_slopes.mean())

    @property
    def ratio(self) -> float:
        """`slope / attributed`: 1 where the gradient foretells it; NaN where that is 0."""
        return self.slope / self.attributed if self.attributed else math.nan

    def amounts(self, dose: float) -> dict[SpanNode, float]:
        """What `dose` raises each latent by, or sets it to, as `generate` takes it."""
        return {node: dose * scale for node, scale in zip(self.nodes, self.scales, strict=True)}

    def frame(self) -> DataFrame:
        """One line a dose, with the latents and conventions as columns."""
        told = {"n_prompts": len(self.responses), "n_neutral": self.n_neutral, **self.conventions}
        nodes = ", ".join(map(str, self.nodes))
        return self.table.assign(ratio=self.ratio, nodes=nodes, **told)

    def figure(self) -> Figure:
        """The response and the KL on neutral text, by dose, over those of random directions."""
        return steering_figure(self)


def _table(columns: dict[str, Any]) -> DataFrame:
    import pandas as pd

    n_doses = len(columns["dose"])
    return pd.DataFrame({k: np.broadcast_to(values, n_doses) for k, values in columns.items()})


def _with_interval(
    name: str, values: Array, clusters: Array, prefix: str, draws: dict[str, int]
) -> dict[str, Array]:
    """Column means of `values [n, k]`, and the intervals."""
    low, high = cluster_interval(values, clusters, **draws)
    return {name: values.mean(0), f"{prefix}low": low, f"{prefix}high": high}


def _among(name: str, values: Array) -> dict[str, Array]:
    """Of `[n_random, n, n_doses]` the mean over all, and the smallest and largest direction."""
    if not len(values):
        values = np.full((1, *values.shape[1:]), np.nan)
    means = values.mean(1)
    return {name: means.mean(0), f"{name}_min": means.min(0), f"{name}_max": means.max(0)}


def _step(doses: tuple[float, ...]) -> tuple[float, float]:
    """Slopes are taken between the smallest dose of both signs, or 0 and the smallest."""
    both = [dose for dose in doses if dose > 0 and -dose in doses]
    if both:
        return -min(both), min(both)
    return 0.0, min((dose for dose in doses if dose), key=abs)
