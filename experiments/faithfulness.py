"""How much of the metric survives when everything outside a circuit is ablated, by its size.

    F(C) = (m(C) - m(empty)) / (m(M) - m(empty))

`m(C)` is the metric with the nodes of C left alone and every other one set to the reference,
`m(empty)` with none left alone, `m(M)` of the model as it is. F(M \\ C) of the complement is the
circuit's completeness: low is good. F(C) says whether the circuit is sufficient, 1 - F(M \\ C)
whether it is necessary.

Over several prompts each m is a mean, and F the ratio of means, as in MIB (arXiv 2504.13151) and
its code: a mean of ratios would be ruled by the prompts where hardly anything is at stake.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attribution import Metric, Targets
from attribution.gradients import check_batch_size
from attribution.metrics import Score, metric_name
from circuits import ErrorNode, LatentNode, Prompt, Reference, SplicedModel, UserError
from experiments.checks import one_prompt
from experiments.circuit_cases import CircuitCases
from experiments.circuit_runs import ERRORS
from experiments.faithfulness_result import CircuitScore, FaithfulnessCurve
from experiments.kinds import AblationKind, patch, zero
from experiments.pooled import MetricOf, metric_of_name, pairs_of
from experiments.random_circuits import matched_circuits
from experiments.rankings import (
    check_on_one,
    check_sites,
    ranked_on_many,
    ranked_on_one,
)
from experiments.records import record_prompts
from experiments.spans import SpanNode, Spans, aligned
from experiments.statistics import ratio_interval
from graphs import AttributionGraph

BAND = (0.05, 0.95)
"""Quantiles of random circuits', and of single prompts', faithfulness that are shown."""

SMALLEST_GAP = 0.1
"""Of |m(M)|: below it, F divides by next to nothing."""

MATCHED = ("site", "span")
"""What a random circuit has as many nodes of: at each site, or at each site and span."""

Array = NDArray[np.float64]


def faithfulness_curve(
    model: SplicedModel,
    prompts: str | Prompt | Sequence[str | Prompt],
    metric: Metric | Targets | Score | MetricOf,
    nodes: AttributionGraph | Sequence[LatentNode | ErrorNode] | Sequence[SpanNode],
    *,
    sizes: Sequence[float],
    spans: Spans | None = None,
    reference: Reference | AblationKind | None = None,
    downstream: str = "recompute",
    errors: str = "kept",
    n_random: int = 20,
    matched: str = "site",
    seed: int = 0,
    batch_size: int = 64,
) -> FaithfulnessCurve:
    """Faithfulness of the circuits of the first nodes of a ranking, beside random circuits.

    Candidates are all latents of all sites that are active on a prompt or in its reference,
    whether they are ranked or not; with `errors="scored"`, errors too. A circuit's nodes take the
    values that the changed pass gives them. F is 1 with all candidates kept and 0 with none,
    whatever the convention, unless errors are removed.

    What is asked depends on the errors, which carry what dictionaries miss:

    - `errors="kept", downstream="freeze"`: errors are constants, so that what the circuit adds
      can only have come through its latents at every site on the way. The strictest.
    - `errors="kept", downstream="recompute"`: errors follow the changed pass, as in the real
      model. They let information past the ablated latents, above all where every `resid` site is
      spliced: small circuits look better and m(empty) is far from what zero information gives.
    - `errors="scored"`: errors are nodes like any other, one a site and position; outside the
      circuit they are set to the reference's.
    - `errors="removed"`: all errors are set to the reference's. F with all latents kept is then
      not 1 but the share of the metric that latents carry without any error.

    Args:
        model: The spliced model.
        prompts: The prompt that a graph is of; or several, that had no part in the ranking.
        metric: Of one prompt a `Metric`, `Targets` (their weighted sum), or a function from logits
            `[batch, pos, vocab]` to `[batch]`. Of several a function from a prompt to those:
            `logit_diff`, or `task.metric`.
        nodes: Best first. Of one prompt a graph, whose strongest latents (with `scored` errors
            too) make the circuits, or latents and errors; of several, nodes at spans. One that a
            prompt does not have does nothing there.
        sizes: Numbers of nodes, or shares of all candidates as floats up to 1.0 (rounded down:
            `statistics.MIB_PROPORTIONS`). A size above the number of nodes ranked becomes that
            number: what is not ranked cannot be added. The share 1.0 is all candidates.
        spans: Of several prompts, which positions belong together; each by itself by default.
        reference: What is outside a circuit is set to: values, or (of several prompts only this)
            a kind of ablation. By default zero for one prompt, `patch()` for several.
        downstream: What kept errors do: `recompute` or `freeze`.
        errors: `kept`, `scored` or `removed`.
        n_random: Random circuits for each size.
        matched: Random circuits have as many nodes at every `site`, or at every site and `span`
            (stricter: nodes of a span that matters share some of its effect).
        seed: Of random circuits and of the intervals.
        batch_size: Circuits of one forward pass; lower it to save memory.

    Raises:
        UserError: nodes of another prompt or model, an unknown convention, no sizes, or the
            metric hardly changes when everything is ablated, so that F means nothing.
    """
    _check(downstream, errors, sizes, n_random, matched)
    check_batch_size(batch_size)
    given: Any = metric
    if isinstance(prompts, str | Prompt):
        ids = one_prompt(model, prompts)
        asked = [prompts]
        spans = aligned(model, asked)
        ranked = ranked_on_one(model.words(ids[0]), nodes, errors)
        kind, name = _kind(reference) or zero(), metric_name(given)

        def metric_of(prompt: Any) -> Any:
            return given
    else:
        asked = prompts
        spans = spans or aligned(model, asked)
        ranked = ranked_on_many(nodes, spans, errors)
        if isinstance(reference, Reference):
            raise UserError(f"{reference!r} is of one prompt; give a kind, such as patch()")
        kind, name, metric_of = reference or patch(), metric_of_name(given), given
    check_sites(model, ranked)
    cases = CircuitCases.of(
        model, asked, spans, metric_of, kind, errors=errors, downstream=downstream
    )
    if isinstance(prompts, str | Prompt):
        check_on_one(cases, ranked)
    circuits, counts = cases.first(ranked, sizes)
    groups = cases.space.sites_of if matched == "site" else cases.space.spans_of
    randoms = matched_circuits(circuits, groups(cases.codes), n_random, seed=seed)
    n = len(cases)
    ends = np.array([[True] * n, [False] * n])
    kept = np.concatenate([ends, circuits, ~circuits, randoms.reshape(-1, n)])
    metrics = cases.metrics(kept, batch_size=batch_size)
    # all kept is the model, here in the arithmetic of the same batch
    full, empty = cases.full if errors == "removed" else metrics[0], metrics[1]
    check_gap(full, empty, kind.name)
    settings = {
        "downstream": downstream,
        "errors": errors,
        "reference": kind.name,
        "n_random": n_random,
        "matched": matched,
        "ranked_by": nodes.provenance.get("settings")
        if isinstance(nodes, AttributionGraph)
        else "the order given",
    }
    return FaithfulnessCurve(
        scores=_scores(
            counts,
            (circuits.sum(1) / max(1, n)).tolist(),
            metrics[2:] - empty,
            full - empty,
            _usable(full, empty),
            pairs_of(asked),
            seed,
        ),
        metric=name,
        full=float(full.mean()),
        empty=float(empty.mean()),
        n_nodes=n,
        n_prompts=len(full),
        n_flat=int((~_usable(full, empty)).sum()),
        downstream=downstream,
        errors=errors,
        reference=kind.name,
        matched=matched,
        provenance=record_prompts(model, asked, name, settings, seed=seed),
    )


def check_gap(full: Array, empty: Array, reference: str) -> None:
    """Refuse to divide by a difference that is next to nothing.

    Args:
        full: m(M) of each prompt, `[n_prompts]`.
        empty: m(empty).
        reference: What all nodes are set to, for the message.

    Raises:
        UserError: the mean metric hardly changes when everything is ablated.
    """
    m, rest = full.mean(), empty.mean()
    if abs(m - rest) <= SMALLEST_GAP * abs(m):
        raise UserError(
            f"the metric is {m:.3g} and still {rest:.3g} with every latent set to {reference}, "
            f"less than {SMALLEST_GAP:.0%} of change, so faithfulness would divide by next to "
            "nothing; try another metric, reference, downstream='freeze' or errors='removed'"
        )


def _usable(full: Array, empty: Array) -> NDArray[np.bool_]:
    """Prompts where enough is at stake for an F of their own."""
    return np.abs(full - empty) > SMALLEST_GAP * np.abs(full)


def _kind(reference: Reference | AblationKind | None) -> AblationKind | None:
    """A reference of one prompt, as a kind of ablation of that prompt."""
    if isinstance(reference, Reference):
        return AblationKind(reference.name, lambda model, prompt: (reference,))
    return reference


def _scores(
    counts: Sequence[int],
    shares: Sequence[float],
    gains: Array,
    gap: Array,
    usable: NDArray[np.bool_],
    pairs: Array,
    seed: int,
) -> tuple[CircuitScore, ...]:
    """From what circuits, complements and random circuits gain over the empty one, by prompt.

    Args:
        counts: Nodes of each of the `k` circuits.
        shares: Of all candidates, how many each holds.
        gains: `m - m(empty)`, `[k + k + k * n_random, n_prompts]`.
        gap: `m(M) - m(empty)`, `[n_prompts]`.
        usable: Prompts that have an F of their own.
    """
    k = len(counts)
    f = gains.mean(1) / gap.mean()
    randoms = f[2 * k :].reshape(k, -1)
    low, high = ratio_interval(gains[:k].T, gap, pairs, seed=seed)
    example_low, example_high = _quantiles(gains[:k, usable] / gap[usable])
    random_low, random_high = _quantiles(randoms, least=1)
    random_mean = randoms.mean(1) if randoms.size else np.full(k, np.nan)
    columns = (
        f[:k], low, high, example_low, example_high, f[k : 2 * k],
        random_mean, random_low, random_high,
    )  # fmt: skip
    rows = zip(counts, shares, np.stack(columns, axis=1).tolist(), strict=True)
    return tuple(CircuitScore(count, share, *numbers) for count, share, numbers in rows)


def _quantiles(values: Array, *, least: int = 2) -> tuple[Array, Array]:
    """Both ends of `BAND` of each row, `[k]`; NaN for fewer than `least` columns."""
    if values.shape[1] < least:
        return np.full(len(values), np.nan), np.full(len(values), np.nan)
    low, high = np.quantile(values, BAND, axis=1)
    return low, high


def _check(
    downstream: str, errors: str, sizes: Sequence[float], n_random: int, matched: str
) -> None:
    if downstream not in ("recompute", "freeze"):
        raise UserError(
            f"downstream={downstream!r}; a faithfulness curve knows recompute and freeze"
            + (", and errors='removed' in the place of drop" if downstream == "drop" else "")
        )
    if errors not in ERRORS:
        raise UserError(f"errors={errors!r}; choose {', '.join(ERRORS)}")
    if matched not in MATCHED:
        raise UserError(f"matched={matched!r}; choose {' or '.join(MATCHED)}")
    if not len(sizes) or any(size < 0 for size in sizes):
        raise UserError(f"sizes={list(sizes)}; give at least one number of nodes, none below 0")
    if any(isinstance(size, float) and size > 1 for size in sizes):
        raise UserError(f"sizes={list(sizes)}; give whole numbers, or shares of all up to 1.0")
    if n_random < 0:
        raise UserError(f"n_random={n_random}; give 0 or more")
