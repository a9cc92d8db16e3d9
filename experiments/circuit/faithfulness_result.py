"""Faithfulness by size: the numbers, and what sums them up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from experiments.circuit.faithfulness_plot import faithfulness_figure
from experiments.results import Result
from experiments.statistics import (
    MIB_PROPORTIONS,
    circuit_model_distance,
    circuit_performance_ratio,
    log_area,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True)
class CircuitScore:
    """One circuit and the random circuits of its size. What there is none of is NaN.

    Attributes:
        size: Number of nodes.
        share: Of the candidates, how many it holds.
        faithfulness: F(C), how sufficient it is; 1 for the whole model, 0 for the empty circuit.
        low, high: 95 % bootstrap interval of F(C), prompt pairs resampled; NaN for one pair.
        example_low, example_high: 5 and 95 % quantile of F(C) of single prompts, without those
            where too little is at stake.
        completeness: F(M without C).
        random_mean: Mean F of the random circuits.
        random_low, random_high: Their 5 and 95 % quantile.
    """

    size: int
    share: float
    faithfulness: float
    low: float
    high: float
    example_low: float
    example_high: float
    completeness: float
    random_mean: float
    random_low: float
    random_high: float

    @property
    def necessity(self) -> float:
        """1 - F(M without C): the share of the metric that is lost without the circuit."""
        return 1 - self.completeness


@dataclass(frozen=True, repr=False)
class FaithfulnessCurve(Result):
    """Faithfulness by size, and the conventions it depends on.

    Attributes:
        scores: One a size, ascending.
        metric: The metric's name.
        full: m(M), in the metric's units; over prompts the mean.
        empty: m(empty), likewise.
        n_nodes: How many candidates there are to keep or ablate, on all prompts together.
        n_prompts: How many prompts.
        n_flat: Prompts without an F of their own: too little is at stake there.
        downstream: What errors do downstream of an ablation: `recompute` or `freeze`.
        errors: `kept`, `scored` or `removed`.
        reference: What ablated nodes are set to: `zero`, `patch`, `mean`, ...
        matched: What random circuits have as many nodes of: each `site`, or each site and `span`.
        provenance: Model, dictionaries, prompts, metric, settings, versions, seed; JSON-able.
    """

    kind: ClassVar[str] = "faithfulness"
    shown: ClassVar[tuple[str, ...]] = (
        "size", "faithfulness", "low", "high", "completeness", "random_mean", "random_low",
        "random_high", "example_low", "example_high",
    )  # fmt: skip

    scores: tuple[CircuitScore, ...]
    metric: str
    full: float
    empty: float
    n_nodes: int
    n_prompts: int
    n_flat: int
    downstream: str
    errors: str
    reference: str
    matched: str
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        sizes = ", ".join(f"F({s.size}) = {s.faithfulness:.2f}" for s in self.scores)
        reached = f"k50 {self.k50 or 'not reached'}, k90 {self.k90 or 'not reached'}"
        return (
            f"FaithfulnessCurve({sizes}; {reached}; {self.n_prompts} prompts of {self.metric}, "
            f"others set to {self.reference}, errors {self.errors}, downstream {self.downstream})"
        )

    @property
    def k50(self) -> int | None:
        """The smallest measured size with F of a half or more; None if there is none."""
        return self._reaches(0.5)

    @property
    def k90(self) -> int | None:
        """The smallest measured size with F of 0.9 or more; None if there is none."""
        return self._reaches(0.9)

    @property
    def area(self) -> float:
        """Mean F over the logarithm of the size; see `statistics.log_area`."""
        return self._over("size", lambda score: score.faithfulness, log_area)

    @property
    def excess_area(self) -> float:
        """The area between F and the mean of random circuits; NaN without any."""
        return self._over("size", lambda score: score.faithfulness - score.random_mean, log_area)

    @property
    def cpr(self) -> float:
        """MIB's CPR over the measured shares; NaN unless they cover `MIB_PROPORTIONS`."""
        return self._by_share(circuit_performance_ratio)

    @property
    def cmd(self) -> float:
        """MIB's CMD, likewise."""
        return self._by_share(circuit_model_distance)

    def frame(self) -> DataFrame:
        """One line a size; conventions are columns, so that a line says what it is on its own."""
        import pandas as pd

        rows = [{**asdict(score), "necessity": score.necessity} for score in self.scores]
        return pd.DataFrame(rows).assign(
            n_nodes=self.n_nodes,
            n_prompts=self.n_prompts,
            n_flat=self.n_flat,
            metric=self.metric,
            full=self.full,
            empty=self.empty,
            downstream=self.downstream,
            errors=self.errors,
            reference=self.reference,
            matched=self.matched,
        )

    def figure(self) -> Figure:
        """Faithfulness by size with the random circuits' band."""
        return faithfulness_figure(self)

    def _reaches(self, level: float) -> int | None:
        return next((s.size for s in self.scores if s.faithfulness >= level), None)

    def _by_share(self, area: Callable[[Sequence[float], Sequence[float]], float]) -> float:
        shares = [score.share for score in self.scores]
        if min(shares) > MIB_PROPORTIONS[0] or max(shares) < MIB_PROPORTIONS[-1]:
            return float(np.nan)
        return self._over("share", lambda score: score.faithfulness, area)

    def _over(
        self,
        across: str,
        value: Callable[[CircuitScore], float],
        area: Callable[[Sequence[float], Sequence[float]], float],
    ) -> float:
        """An area over sizes or shares above 0 (of equals the first); NaN for fewer than two."""
        by_place = {}
        for score in self.scores:
            by_place.setdefault(getattr(score, across), value(score))
        places = sorted(place for place in by_place if place > 0)
        if len(places) < 2:
            return float(np.nan)
        return area(places, [by_place[place] for place in places])
