"""Dose and response of latents that are steered together, beside random directions as large.

1. *Scale*: a dose of 1 is each latent's largest activation on the prompts. It is added to what the
   latent has, or is what the latent is set to (`mode`).
2. *Respond*: the metric of every prompt at every dose, and what the gradient foretells of it under
   the same convention downstream.
3. *Side effects*: how far the same doses move the next-token distributions of neutral texts.
4. *Controls*: both again along random directions, with the norm at each site and position of what
   the dose has changed there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from attribution import logit_diff
from attribution.bootstrap import checked_draws
from attribution.gradients import check_batch_size, check_convention
from circuits import Prompt, SplicedModel, UserError
from circuits.whole_numbers import whole_number
from experiments.checks import check_prompts
from experiments.pooled import MetricOf, metric_of_name, pairs_of
from experiments.records import record_of, record_prompts
from experiments.spans import ALL, END, REST, SpanNode, Spans, check_spans
from experiments.steering.modes import check_mode
from experiments.steering.result import SteeringCurve
from experiments.steering.runs import SteeringPlan, divergences, largest_activations, responses
from experiments.steering.vectors import checked_numbers, random_directions, steered_nodes

DOSES = (-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)

N_NEUTRAL = 32
"""Of the model's example texts, how many are drawn as neutral ones."""


def steer(
    model: SplicedModel,
    prompts: Sequence[str | Prompt],
    nodes: Sequence[SpanNode | str],
    metric: MetricOf = logit_diff,
    *,
    mode: str = "add",
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
    """Steer `nodes` together by each dose, and measure what they do and what else they do.

    A latent for one of two answers helps prompts of the one and harms those of the other, if the
    metric is target less foil; over a mixture both cancel. Choose prompts of one answer, or a
    metric of fixed words: `lambda prompt: logit_diff("is", "are")`.

    Args:
        model: The spliced model.
        prompts: Texts or prompts, whatever `metric` takes.
        nodes: Latents: `mlp.3/latent.901` at every position but BOS, `mlp.3/latent.901@subject` at
            the positions of a span, `mlp.3/latent.901@end` without `spans` at the last position.
        metric: From a prompt to its metric.
        mode: `add` raises each latent by the dose, on or off. `set` gives it the dose in the place
            of what it has, at every steered position; a dose of 0 takes it out.
        doses: Multiples of each latent's scale; 0 is always among them.
        scales: For each latent, in units of its activation; with negative ones positive doses lower
            it. By default its largest activation on the prompts, at any position.
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
            on nowhere, an unknown mode, or no neutral texts.
    """
    n_bootstrap, seed = checked_draws(n_bootstrap, seed)
    n_random = whole_number("n_random", n_random, 0)
    nodes = steered_nodes(model, nodes)
    doses = checked_numbers(doses, "a dose of")
    _check(prompts, nodes, mode, doses, spans)
    check_convention(downstream)
    check_batch_size(batch_size, automatic=False)
    texts = _neutral_texts(model, neutral, seed)
    plan = SteeringPlan(
        nodes=nodes,
        scales=_scales(model, prompts, nodes, scales),
        mode=mode,
        doses=tuple(sorted({0.0, *doses})),
        directions=random_directions(model, nodes, n_random, seed),
        downstream=downstream,
        batch_size=batch_size,
    )
    spans = _ends(model, prompts) if spans is None else spans
    conventions = {
        "metric": metric_of_name(metric),
        "mode": mode,
        "unit": "largest activation" if scales is None else "given scale",
        "downstream": downstream,
        "estimator": "gradient x change",
    }
    draws = {"n_bootstrap": n_bootstrap, "seed": seed}
    return SteeringCurve.of(
        plan,
        responses(model, prompts, metric, plan, spans),
        divergences(model, texts, plan),
        pairs_of(prompts),
        draws,
        conventions=conventions,
        provenance=_provenance(model, prompts, plan, spans, texts, conventions | draws),
    )


def _provenance(
    model: SplicedModel,
    prompts: Sequence[str | Prompt],
    plan: SteeringPlan,
    spans: Spans,
    texts: Sequence[str],
    told: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that the numbers depend on; `told` are conventions, `n_bootstrap` and `seed`."""
    settings = {
        **told,
        "nodes": [str(node) for node in plan.nodes],
        "scales": list(plan.scales),
        "doses": list(plan.doses),
        "spans": list(spans.names),
        "neutral": record_of(texts),
        "n_random": len(plan.directions),
    }
    seed = settings.pop("seed")
    return record_prompts(model, prompts, told["metric"], settings, seed=seed)


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


def _scales(
    model: SplicedModel,
    prompts: Sequence[str | Prompt],
    nodes: Sequence[SpanNode],
    given: Sequence[float] | None,
) -> tuple[float, ...]:
    """The scales given, or the largest activations."""
    if given is None:
        return largest_activations(model, prompts, nodes)
    found = checked_numbers(given, "a scale of")
    if len(found) != len(nodes) or not all(found):
        raise UserError(
            f"scales {list(found)} for {len(nodes)} latents; give each one that is not 0"
        )
    return found


def _check(
    prompts: Sequence[str | Prompt],
    nodes: Sequence[SpanNode],
    mode: str,
    doses: Sequence[float],
    spans: Spans | None,
) -> None:
    check_prompts(prompts, texts=True)
    check_mode(mode)
    if not any(doses) or len(set(doses)) < len(doses):
        raise UserError(f"doses {list(doses)}; give each once, and at least one that is not 0")
    named = next((node for node in nodes if node.span not in (ALL, END)), None)
    if named and spans is None:
        raise UserError(
            f"{named} is at a span, but no spans were given; give spans=, those it was found with "
            "(where they are positions, spans=aligned(model, prompts)), or leave "
            f"@{named.span} out to steer everywhere, or give @{END} for the last position"
        )
    if spans is not None:
        check_spans(spans, prompts)
