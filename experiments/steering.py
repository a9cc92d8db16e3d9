"""Dose and response of latents that are raised together, beside random directions as large.

1. *Scale*: a dose of 1 raises each latent by its largest activation on the prompts.
2. *Respond*: the metric of every prompt at every dose; the slope at dose 0 beside the one that the
   gradient foretells under the same convention downstream.
3. *Side effects*: how far the same doses move the next-token distributions of neutral texts.
4. *Controls*: both again along random directions with the same norm at each site and position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from attribution import logit_diff
from attribution.gradients import check_batch_size, check_convention
from attribution.prompt_store import digest
from circuits import Prompt, SplicedModel, UserError
from experiments.checks import check_prompts
from experiments.pooled import MetricOf, metric_of_name, pairs_of
from experiments.records import record_prompts
from experiments.results import Result
from experiments.spans import ALL, END, REST, SpanNode, Spans
from experiments.statistics import cluster_interval
from experiments.steering_plot import steering_figure
from experiments.steering_runs import SteeringPlan, divergences, largest_activations, responses
from experiments.steering_vectors import (
    checked_numbers,
    random_directions,
    steered_nodes,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Array = np.ndarray

DOSES = (-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)

N_NEUTRAL = 32
"""Of the model's example texts, how many are drawn as neutral ones."""


@dataclass(frozen=True, eq=False, repr=False)
class SteeringCurve(Result):
    """A row a dose, ascending.

    Columns of `frame()`; intervals are 95 % bootstrap intervals of the mean:

    - `dose`: what each latent is raised by, in multiples of its scale.
    - `response`, `low`, `high`: the metric, mean over prompts, resampled by prompt pairs.
    - `random`, `random_min`, `random_max`: the same along random directions: the mean over them,
      and the smallest and largest of their means over prompts.
    - `kl`, `kl_low`, `kl_high`: `KL(clean || steered)` of the next token in nats, mean over the
      positions of the neutral texts that dictionaries read, resampled by text.
    - `random_kl`, `random_kl_min`, `random_kl_max`: of the random directions.
    - `slope`, `slope_low`, `slope_high`: of the response at dose 0, in the metric's units a dose:
      the difference quotient of the smallest dose of which both signs were given (`step`); NaN if
      there is none.
    - `attributed`: the slope that `estimator` foretells; `ratio`: `slope / attributed`.

    Attributes:
        nodes: The latents.
        scales: What a dose of 1 raises each by, in units of its activation.
        responses: On each prompt, `[n_prompts, n_doses]`; `random_responses` along each direction,
            `[n_random, n_prompts, n_doses]`.
        slopes: On each prompt, `[n_prompts]`; `attributed_slopes` by the gradient.
        table: The columns above.
        n_neutral: How many neutral texts.
        conventions: Metric, unit of the doses, the convention downstream and the estimator.
        provenance: Everything that the numbers depend on.
    """

    kind: ClassVar[str] = "steering curve"
    shown: ClassVar[tuple[str, ...]] = (
        "dose", "response", "low", "high", "random", "random_min", "random_max", "kl", "random_kl",
    )  # fmt: skip

    nodes: tuple[SpanNode, ...]
    scales: tuple[float, ...]
    responses: Array
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
        """What `dose` raises each latent by, as `generate` takes it."""
        return {node: dose * scale for node, scale in zip(self.nodes, self.scales, strict=True)}

    def frame(self) -> DataFrame:
        """One line a dose, with the latents and conventions as columns."""
        told = {"n_prompts": len(self.responses), "n_neutral": self.n_neutral, **self.conventions}
        nodes = ", ".join(map(str, self.nodes))
        return self.table.assign(ratio=self.ratio, nodes=nodes, **told)

    def figure(self) -> Figure:
        """The response and the KL on neutral text, by dose, over those of random directions."""
        return steering_figure(self)


def steer(
    model: SplicedModel,
    prompts: Sequence[str | Prompt],
    nodes: Sequence[SpanNode | str],
    metric: MetricOf = logit_diff,
    *,
    doses: Sequence[float] = DOSES,
    scales: Sequence[float] | None = None,
    spans: Spans | None = None,
    neutral: Sequence[str | Prompt] | None = None,
    n_random: int = 5,
    downstream: str = "recompute",
    n_bootstrap: int = 1000,
    seed: int = 0,
    batch_size: int = 64,
) -> SteeringCurve:
    """Raise `nodes` together by each dose, and measure what they do and what else they do.

    A latent for one of two answers helps prompts of the one and harms those of the other, if the
    metric is target less foil; over a mixture both cancel. Choose prompts of one answer, or a
    metric of fixed words: `lambda prompt: logit_diff("is", "are")`.

    Args:
        model: The spliced model.
        prompts: Texts or prompts, whatever `metric` takes.
        nodes: Latents: `mlp.3/latent.901` at every position but BOS, `mlp.3/latent.901@subject` at
            the positions of a span, `mlp.3/latent.901@end` without `spans` at the last position.
        metric: From a prompt to its metric.
        doses: Multiples of each latent's scale; 0, the clean model, is always among them.
        scales: For each latent, in units of its activation; negative ones lower it at positive
            doses. By default its largest activation on the prompts, at any position.
        spans: The spans that `nodes` name.
        neutral: Texts for the KL, where latents are steered at every position but BOS; by default
            32 of the model's example texts, drawn with `seed`.
        n_random: Random directions.
        downstream: What errors downstream do, in passes and in the gradient: `recompute` or
            `freeze`.
        n_bootstrap: Of the intervals.
        seed: Of everything random.
        batch_size: Doses and directions in one pass.

    Raises:
        UserError: no prompts, latents or doses, a latent that the model does not have or that is
            on nowhere, or no neutral texts.
    """
    nodes = steered_nodes(model, nodes)
    doses = checked_numbers(doses, "a dose of")
    _check(prompts, nodes, doses, spans, n_random)
    doses = tuple(sorted({0.0, *doses}))
    check_convention(downstream)
    check_batch_size(batch_size)
    texts = _neutral_texts(model, neutral, seed)
    spans = _ends(model, prompts) if spans is None else spans
    raised = (
        largest_activations(model, prompts, nodes)
        if scales is None
        else _checked_scales(scales, nodes)
    )
    plan = SteeringPlan(
        amounts=dict(zip(nodes, raised, strict=True)),
        doses=doses,
        directions=random_directions(model, nodes, n_random, seed),
        downstream=downstream,
        batch_size=batch_size,
    )
    values, attributed = responses(model, prompts, metric, plan, spans)
    kl, text_of = divergences(model, texts, plan)
    slopes, step = _slopes(values[0], doses)
    draws = {"n_bootstrap": n_bootstrap, "seed": seed}
    columns = {
        "dose": np.array(doses),
        **_with_interval("response", values[0], pairs_of(prompts), "", draws),
        **_among("random", values[1:]),
        **_with_interval("kl", kl[0], text_of, "kl_", draws),
        **_among("random_kl", kl[1:]),
        **_with_interval("slope", slopes[:, None], pairs_of(prompts), "slope_", draws),
        "step": step,
        "attributed": attributed.mean(),
    }
    conventions = {
        "metric": metric_of_name(metric),
        "unit": "largest activation" if scales is None else "given scale",
        "downstream": downstream,
        "estimator": "gradient x change",
    }
    settings = {
        **conventions,
        "nodes": [str(node) for node in nodes],
        "scales": list(raised),
        "doses": list(doses),
        "spans": list(spans.names),
        "neutral": {"n": len(texts), "digest": digest(texts)},
        "n_random": n_random,
        "n_bootstrap": n_bootstrap,
    }
    return SteeringCurve(
        nodes=nodes,
        scales=raised,
        responses=values[0],
        random_responses=values[1:],
        slopes=slopes,
        attributed_slopes=attributed,
        table=_table(columns),
        n_neutral=len(texts),
        conventions=conventions,
        provenance=record_prompts(model, prompts, conventions["metric"], settings, seed=seed),
    )


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


def _slopes(values: Array, doses: tuple[float, ...]) -> tuple[Array, float]:
    """The difference quotient `[n_prompts]` between the smallest dose of both signs, and it."""
    both = [dose for dose in doses if dose > 0 and -dose in doses]
    if not both:
        return np.full(len(values), np.nan), np.nan
    step = min(both)
    up, down = (values[:, doses.index(dose)] for dose in (step, -step))
    return (up - down) / (2 * step), step


def _ends(model: SplicedModel, prompts: Sequence[str | Prompt]) -> Spans:
    """The last position of each prompt as the span `end`, the others as `rest`."""
    lengths = [model.tokens(prompt).shape[1] for prompt in prompts]
    places = [{REST: tuple(range(1, n - 1)), END: (n - 1,)} for n in lengths]
    return Spans((REST, END), tuple(places))


def _neutral_texts(
    model: SplicedModel, neutral: Sequence[str | Prompt] | None, seed: int
) -> list[str]:
    """The texts given, or some of the model's own."""
    if neutral is None:
        texts = list(dict.fromkeys(model.example_texts))
        texts = Random(seed).sample(texts, min(N_NEUTRAL, len(texts)))
    else:
        given = [neutral] if isinstance(neutral, str | Prompt) else neutral
        texts = [text.text if isinstance(text, Prompt) else text for text in given]
    if not texts:
        why = "" if neutral is not None else f" ({model.name} brings none)"
        raise UserError(
            f"no neutral texts to measure the KL on{why}; give neutral=[...], texts that have "
            "nothing to do with the prompts"
        )
    return texts


def _checked_scales(scales: Sequence[float], nodes: Sequence[SpanNode]) -> tuple[float, ...]:
    found = checked_numbers(scales, "a scale of")
    if len(found) != len(nodes) or not all(found):
        raise UserError(
            f"scales {list(found)} for {len(nodes)} latents; give each one that is not 0"
        )
    return found


def _check(
    prompts: Sequence[str | Prompt],
    nodes: Sequence[SpanNode],
    doses: Sequence[float],
    spans: Spans | None,
    n_random: int,
) -> None:
    check_prompts(prompts)
    if not any(doses) or len(set(doses)) < len(doses):
        raise UserError(f"doses {list(doses)}; give each once, and at least one that is not 0")
    named = next((node for node in nodes if node.span not in (ALL, END)), None)
    if named and spans is None:
        raise UserError(
            f"{named} is at a span, but no spans were given; give spans=, or leave "
            f"@{named.span} out to steer everywhere, or give @{END} for the last position"
        )
    if spans is not None and len(spans) != len(prompts):
        raise UserError(f"spans of {len(spans)} prompts for {len(prompts)} prompts; give one each")
    if n_random < 0:
        raise UserError(f"n_random={n_random}; give 0 or more random directions")
