"""How much of the behaviour an effect is, where there is enough of it to divide by.

    share = mean effect / mean at stake

A ratio of means, as faithfulness is: what is at stake on a prompt is `m(clean) - m(corrupted)`, or
`m(clean)` where prompts have no partner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attribution.metrics import bind
from circuits import Prompt, SplicedModel
from experiments.circuit.question import SMALLEST_GAP, enough
from experiments.pooled import MetricOf
from experiments.statistics import cluster_interval, ratio_interval

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Behaviour:
    """What effects are shares of.

    Attributes:
        name: `clean - corrupted` or `clean`.
        at_stake: Of each prompt, in the metric's units, `[n_prompts]`.
        clean: The metric on each clean prompt, `[n_prompts]`.
    """

    name: str
    at_stake: Array
    clean: Array

    @classmethod
    def of(
        cls, model: SplicedModel, prompts: Sequence[Prompt], metric: MetricOf, clean: Array
    ) -> Behaviour:
        """Run the partners; the clean prompts have been run."""
        if any(prompt.corrupted is None for prompt in prompts):
            return cls("clean", clean, clean)
        without = []
        for prompt in prompts:
            score, partner = bind(metric(prompt), model), prompt.corrupted or ""
            without.append(score(model.run(model.tokens(partner), output=score.output)).item())
        return cls("clean - corrupted", clean - np.array(without), clean)

    def shares(
        self, effects: Array, clusters: Array, **draws: Any
    ) -> tuple[dict[str, Array], list[str]]:
        """`share`, `share_low` and `share_high` of effects `[n_prompts, k]`, each `[k]`.

        Args:
            effects: In the metric's units.
            clusters: A number for each prompt, the same for a pair and its reverse.
            draws: `n_bootstrap` and `seed` of the 95 % interval.

        Returns:
            The columns; and where all are NaN, a sentence that says why.
        """
        notes = self._too_little(clusters, **draws)
        if notes:
            share = low = high = np.full(effects.shape[1], np.nan)
        else:
            share = effects.mean(0) / self.at_stake.mean()
            low, high = ratio_interval(effects, self.at_stake, clusters, **draws)
        return {"share": share, "share_low": low, "share_high": high}, notes

    def _too_little(self, clusters: Array, **draws: Any) -> list[str]:
        """The sentence that says why shares would divide by next to nothing, if they would."""
        mean, clean = self.at_stake.mean(), self.clean.mean()
        if not enough(mean, clean):
            return [
                f"share is missing: {self.name} is {mean:.3g}, less than {SMALLEST_GAP:.0%} of "
                f"the metric on clean prompts, {clean:.3g}"
            ]
        (low,), (high,) = cluster_interval(self.at_stake[:, None], clusters, **draws)
        if low <= 0 <= high:
            return [
                f"share is missing: {self.name} is {mean:.3g}, which cannot be told from zero on "
                f"these prompts (95 % interval {low:.3g} to {high:.3g})"
            ]
        return []
