"""How much of the metric survives when everything outside a circuit is ablated, by its size.

    F(C) = (m(C) - m(empty)) / (m(M) - m(empty))

`m(C)` is the metric with the nodes of C left alone and every other one set to the reference,
`m(empty)` with none left alone, `m(M)` of the model as it is. F(M \\ C) of the complement is the
circuit's completeness: low is good. F(C) says whether the circuit is sufficient, 1 - F(M \\ C)
whether it is necessary.

Over several prompts each m is a mean, and F the ratio of means, as in MIB (arXiv 2504.13151) and
its code: a mean of ratios would be ruled by the prompts where hardly anything is at stake.

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
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from attribution.gradients import check_batch_size
from circuits import Reference, SplicedModel, UserError
from circuits.whole_numbers import checked_seed, whole_number
from experiments.circuit.faithfulness_result import CircuitScore, FaithfulnessCurve
from experiments.circuit.question import AnyMetric, AnyNodes, AnyPrompts, CircuitQuestion, Gains
from experiments.circuit.random_circuits import matched_circuits
from experiments.kinds import AblationKind
from experiments.pooled import pairs_of
from experiments.spans import Spans
from experiments.statistics import ratio_interval

BAND = (0.05, 0.95)
"""Quantiles of random circuits', and of single prompts', faithfulness that are shown."""

Array = NDArray[np.float64]


def faithfulness_curve(
    model: SplicedModel,
    prompts: AnyPrompts,
    metric: AnyMetric,
    nodes: AnyNodes,
    *,
    sizes: Sequence[float],
    spans: Spans | None = None,
    reference: Reference | AblationKind | None = None,
    downstream: str = "recompute",
    errors: str = "kept",
    n_random: int = 20,
    matched: str = "site",
    seed: int = 0,
    batch_size: int | None = None,
    memory: str | int | None = None,
) -> FaithfulnessCurve:
    """Faithfulness of the circuits of the first nodes of a ranking, beside random circuits.

    Candidates are all latents of all sites that are active on a prompt or in its reference,
    whether they are ranked or not; with `errors="scored"`, errors too. A circuit's nodes take the
    values that the changed pass gives them. F is 1 with all candidates kept and 0 with none,
    whatever the convention, unless errors are removed.

    What is asked depends on `errors` and `downstream`: see the module.

    Args:
        model: The spliced model.
        prompts: The prompt that a graph is of; or several, that had no part in the ranking.
        metric: Of one prompt a `Metric`, `Targets` (their weighted sum), or a function from logits
            `[batch, pos, vocab]` to `[batch]`. Of several a function from a prompt to those:
            `logit_diff`, or `task.metric`.
        nodes: Best first. Of one prompt a graph, whose strongest latents (with `scored` errors
            too, which in a graph also stand for the latents left out of it) make the circuits, or
            latents and errors; of several, nodes at spans. One that is off on a prompt and in its
            reference does nothing there: it stays off, whatever the changed pass makes of it.
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
        batch_size: Circuits of one forward pass; by default 64, or as many as `memory` holds.
        memory: What a pass may take for activations of latents, such as `"1GB"`; 256 MB by default.

    Raises:
        UserError: nodes of another prompt or model, an unknown convention, no sizes, or the
            metric hardly changes when everything is ablated, so that F means nothing.
    """
    _check(sizes)
    n_random, seed = whole_number("n_random", n_random, 0), checked_seed(seed)
    check_batch_size(batch_size)
    question = CircuitQuestion.of(
        model, prompts, metric, nodes,
        spans=spans, reference=reference, downstream=downstream, errors=errors,
    )  # fmt: skip
    groups = question.groups(matched)
    circuits, counts = question.cases.first(question.ranked, sizes)
    randoms = matched_circuits(circuits, groups, n_random, seed=seed)
    kept = np.concatenate([circuits, ~circuits, randoms.reshape(-1, len(question.cases))])
    gains = Gains.of(question, kept, batch_size=batch_size, memory=memory)
    shares = (circuits.sum(1) / max(1, len(question.cases))).tolist()
    scores = _scores(counts, shares, gains, pairs_of(question.prompts), seed)
    return _curve(question, scores, gains, n_random=n_random, matched=matched, seed=seed)


def _curve(
    question: CircuitQuestion,
    scores: tuple[CircuitScore, ...],
    gains: Gains,
    *,
    n_random: int,
    matched: str,
    seed: int,
) -> FaithfulnessCurve:
    """The scores with what they depend on."""
    return FaithfulnessCurve(
        scores=scores,
        full=float(gains.full.mean()),
        empty=float(gains.empty.mean()),
        n_nodes=len(question.cases),
        n_prompts=len(gains.full),
        n_flat=int((~gains.usable).sum()),
        matched=matched,
        **question.conventions(),
        provenance=question.provenance({"n_random": n_random, "matched": matched}, seed=seed),
    )


def _scores(
    counts: Sequence[int], shares: Sequence[float], gains: Gains, pairs: Array, seed: int
) -> tuple[CircuitScore, ...]:
    """Of `k` circuits, from the gains of circuits, complements and random circuits.

    Args:
        counts: Nodes of each circuit.
        shares: Of all candidates, how many each holds.
        gains: Of `k + k + k * n_random` circuits.
        pairs: A number for each prompt, the same for a prompt and its partner, `[n_prompts]`.
    """
    k = len(counts)
    f, of_circuits, usable = gains.faithfulness, gains.circuits[:k], gains.usable
    randoms = f[2 * k :].reshape(k, -1)
    low, high = ratio_interval(of_circuits.T, gains.gap, pairs, seed=seed)
    example_low, example_high = _quantiles(of_circuits[:, usable] / gains.gap[usable])
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


def _check(sizes: Sequence[float]) -> None:
    given = isinstance(sizes, Collection) and len(sizes)
    if not given or not all(isinstance(size, Real) and size >= 0 for size in sizes):
        raise UserError(f"sizes={sizes!r}; give a list of numbers of nodes, none below 0")
    if any(isinstance(size, float) and size > 1 for size in sizes):
        raise UserError(f"sizes={list(sizes)}; give whole numbers, or shares of all up to 1.0")
