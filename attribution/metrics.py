"""Metrics: a scalar of what a pass computes, most often of the logits at the answer's position."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attribution.digest import digest
from circuits import Logits, Output, Prompt, SplicedModel, UserError
from circuits.outputs import ALL_LOGITS, LAST_LOGITS, position

Score = Callable[[Any], Tensor]
"""From a pass's output, for example logits `[batch, pos, vocab]`, to one number a row, `[batch]`,
differentiable. All rows are equally long."""


@dataclass(frozen=True)
class Metric:
    """A scalar of a pass's output that does not know yet which model it will be read from.

    Attributes:
        name: For tables, records and the graph's logit node.
        bind: Looks up what it needs of the model, such as tokens in the vocabulary, and returns the
            score.
        flat_at_clean: Whether its gradient on the clean run is zero, so that it can be measured
            but not attributed.
        output: What the score is given; by default the logits of the last position alone,
            `[batch, 1, vocab]`.
    """

    name: str
    bind: Callable[[SplicedModel], Score]
    flat_at_clean: bool = False
    output: Output = LAST_LOGITS


@dataclass(frozen=True)
class BoundMetric:
    """A metric of one model: `bound(model.run(ids, output=bound.output))`, `[batch]`."""

    output: Output
    score: Score

    def __call__(self, read: Any) -> Tensor:
        """The metric's values, `[batch]`, from what a pass gave back."""
        return self.score(read)


@dataclass(frozen=True)
class Targets:
    """Several things that a graph explains at once, each a logit node.

    Attributes:
        metrics: With names that differ.
        weights: Of each, in the same order; for logits, the probabilities of their tokens.
    """

    metrics: tuple[Metric, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.metrics, Sequence) or not all(
            isinstance(metric, Metric) for metric in self.metrics
        ):
            raise UserError(
                "Targets are of a tuple of metrics with names: (logit(word), latent(node))"
            )
        if not isinstance(self.weights, Sequence) or not all(
            isinstance(weight, int | float) and math.isfinite(weight) for weight in self.weights
        ):
            raise UserError(f"weights={self.weights!r}; give a finite number for each metric")
        if not self.metrics or len(self.metrics) != len(self.weights) or not any(self.weights):
            raise UserError(
                f"{len(self.metrics)} metrics and weights {list(self.weights)}; "
                "give at least one metric, and a weight for each, not all of them zero"
            )
        names = [metric.name for metric in self.metrics]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"two targets are named {twice!r}; give each once")

    @property
    def name(self) -> str:
        """For tables and records; one metric's own if its weight is 1."""
        if list(self.weights) == [1]:
            return self.metrics[0].name
        terms = list(zip(self.weights, self.metrics, strict=True))
        short, exact = (
            [one.name if weight == 1 else f"{weight:.{n}g} {one.name}" for weight, one in terms]
            for n in (3, 15)
        )
        return f"weighted sum of {_list(short, exact)}"

    @property
    def flat_at_clean(self) -> bool:
        """Whether the gradient of one of them is zero on the clean run."""
        return any(metric.flat_at_clean for metric in self.metrics)


def bind(metric: Metric | Targets | Score, model: SplicedModel) -> BoundMetric:
    """`metric` on `model`: of targets their weighted sum, of a plain function one of all logits."""
    if isinstance(metric, Targets):
        metric = total(metric)
    if isinstance(metric, Metric):
        return BoundMetric(metric.output, metric.bind(model))
    if not callable(metric):
        raise UserError(
            f"{metric!r} is no metric; give logit_diff(prompt), or a function of logits"
        )
    return BoundMetric(ALL_LOGITS, metric)


def bind_all(
    metric: Metric | Targets | Score, model: SplicedModel
) -> tuple[tuple[BoundMetric, ...], tuple[float, ...]]:
    """Each of the targets on `model`, and the weights; a metric is one target of weight 1.

    One pass reads them all: `model.run(ids, output=tuple(bound.output for bound in ...))` gives a
    tuple of what each is to be called with.
    """
    if not isinstance(metric, Targets):
        return (bind(metric, model),), (1.0,)
    return tuple(bind(one, model) for one in metric.metrics), metric.weights


def total(targets: Targets) -> Metric:
    """The weighted sum of `targets` as one metric, whatever each of them reads."""

    def bound(model: SplicedModel) -> Score:
        scores, weights = bind_all(targets, model)

        def score(read: tuple[Any, ...]) -> Tensor:
            values = [one(x) for one, x in zip(scores, read, strict=True)]
            together = torch.stack(values, -1)  # [batch, target]
            return together @ together.new_tensor(weights)

        return score

    outputs = tuple(metric.output for metric in targets.metrics)
    return Metric(targets.name, bound, targets.flat_at_clean, outputs)


def metric_name(metric: Metric | Targets | Score) -> str:
    """The metric's name, or the function's."""
    if isinstance(metric, Metric | Targets):
        return metric.name
    return getattr(metric, "__name__", "metric")


def check_not_flat(metric: object) -> None:
    """Refuse what has no gradient on the clean run.

    Raises:
        UserError: the metric has none, or one of several targets.
    """
    for one in metric.metrics if isinstance(metric, Targets) else (metric,):
        if isinstance(one, Metric) and one.flat_at_clean:
            raise UserError(
                f"{one.name} has no gradient on the clean run, so nothing can be attributed to it; "
                "measure it with ablate_each, or explain a logit or a log probability"
            )


def logit_diff(prompt: Prompt | str, foil: str | None = None, *, pos: int = -1) -> Metric:
    """`logit(target) - logit(foil)`, in logits.

    Args:
        prompt: A `Prompt` with target and foil, or the target itself, followed by the foil.
        pos: The position at which the answer is read; negative ones count from the end.

    Raises:
        UserError: no target or no foil, or the same word for both.
    """
    target, foil = _pair(prompt, foil)

    def bound(model: SplicedModel) -> Score:
        right, wrong = model.token_id(target), model.token_id(foil)

        def score(logits: Tensor) -> Tensor:
            here = logits_at(logits, pos)
            return here[:, right].float() - here[:, wrong].float()

        return score

    return _of_logits(f"{target} - {foil}", bound, pos)


def logit(target: Prompt | str, *, pos: int = -1) -> Metric:
    """The target's logit (after the final soft-cap) at the position `pos`."""
    word = _target(target)

    def bound(model: SplicedModel) -> Score:
        token = model.token_id(word)
        return lambda logits: logits_at(logits, pos)[:, token].float()

    return _of_logits(f"logit {word}", bound, pos)


def log_prob(target: Prompt | str, *, pos: int = -1) -> Metric:
    """The target's log probability at the position `pos`, in nats."""
    word = _target(target)

    def bound(model: SplicedModel) -> Score:
        token = model.token_id(word)
        return lambda logits: logits_at(logits, pos).float().log_softmax(-1)[:, token]

    return _of_logits(f"log p({word})", bound, pos)


def prob(target: Prompt | str, *, pos: int = -1) -> Metric:
    """The target's probability at the position `pos`."""
    return prob_diff([_target(target)], [], name=f"p({_target(target)})", pos=pos)


def prob_diff(
    targets: Sequence[str], foils: Sequence[str], *, name: str | None = None, pos: int = -1
) -> Metric:
    """The probability on all `targets` minus that on all `foils`: valid and invalid years, say.

    Args:
        targets: Words.
        foils: Words; may be none.
        name: Of the metric, without the position; by default it lists the words, or of four or more
            the first and the last, with 8 digits that tell the list from others.
        pos: The position at which the answer is read; negative ones count from the end.

    Raises:
        UserError: a word in the place of a list, or the same words on both sides, or none.
    """
    if isinstance(targets, str) or isinstance(foils, str):
        raise UserError("prob_diff compares lists of words; write [word] for a single one")
    if Counter(targets) == Counter(foils):
        raise UserError(
            f"prob_diff of {list(targets)} and {list(foils)} is always 0; give words that differ"
        )

    def bound(model: SplicedModel) -> Score:
        plus = [model.token_id(word) for word in targets]
        minus = [model.token_id(word) for word in foils]

        def score(logits: Tensor) -> Tensor:
            p = logits_at(logits, pos).float().softmax(-1)
            return p[:, plus].sum(-1) - p[:, minus].sum(-1)

        return score

    return _of_logits(name or f"p({_list(targets)}) - p({_list(foils)})", bound, pos)


def kl(prompt: Prompt | str, *, pos: int = -1) -> Metric:
    """`KL(clean || changed)` of the next-token distributions at the position `pos`, in nats.

    Zero, with zero gradient, on the clean pass itself: it measures an ablation, and attribution
    of it is only meaningful away from the clean run.
    """

    def bound(model: SplicedModel) -> Score:
        with torch.no_grad():
            logits = model.run(model.tokens(prompt), output=Logits(pos))
            clean = logits_at(logits, pos).float().log_softmax(-1)

        def score(logits: Tensor) -> Tensor:
            changed = logits_at(logits, pos).float().log_softmax(-1)
            return (clean.exp() * (clean - changed)).sum(-1)

        return score

    return _of_logits("KL from clean", bound, pos, flat_at_clean=True)


def logits_at(logits: Tensor, pos: int) -> Tensor:
    """`[batch, vocab]` at `pos`, of logits there alone, `[batch, 1, vocab]`, or everywhere."""
    n_pos = logits.shape[1]
    return logits[:, 0 if n_pos == 1 else position(pos, n_pos)]


def at_pos(name: str, pos: int) -> str:
    """`name`, with the position where it is not the last: `logit Mary @7`."""
    return name if pos == -1 else f"{name} @{pos}"


def _of_logits(
    name: str, bound: Callable[[SplicedModel], Score], pos: int, *, flat_at_clean: bool = False
) -> Metric:
    return Metric(at_pos(name, pos), bound, flat_at_clean, Logits(pos))


def _target(prompt: Prompt | str) -> str:
    target = prompt.target if isinstance(prompt, Prompt) else prompt
    if target is None:
        raise UserError("the prompt has no target; give Prompt(..., target=...)")
    return target


def _pair(prompt: Prompt | str, foil: str | None) -> tuple[str, str]:
    target = _target(prompt)
    foil = foil or (prompt.foil if isinstance(prompt, Prompt) else None)
    if foil is None:
        raise UserError(
            "a logit difference needs a foil; give Prompt(..., foil=...), or use logit()"
        )
    if target == foil:
        raise UserError(
            f"{target!r} is both target and foil, so their difference is 0; give another foil"
        )
    return target, foil


def _list(words: Sequence[str], exact: Sequence[str] | None = None) -> str:
    """The words, or the first and the last; with a digest of `exact` where those say less."""
    exact = words if exact is None else exact
    shown = words if len(words) < 4 else [words[0], f"... {words[-1]}"]
    mark = "" if list(shown) == list(exact) else f" #{digest(list(exact))[:8]}"
    return ", ".join(shown) + mark
