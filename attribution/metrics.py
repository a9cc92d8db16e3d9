"""Metrics: a scalar of the logits at the answer's position, named for tables and records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuits import Prompt, SplicedModel, UserError

Score = Callable[[Tensor], Tensor]
"""From logits `[batch, pos, vocab]` to one number a row, `[batch]`, differentiable."""


@dataclass(frozen=True)
class Metric:
    """A scalar of the logits that does not know yet which model it will be read from.

    Attributes:
        name: For tables, records and the graph's logit node.
        bind: Looks up the tokens in the model's vocabulary and returns the score. It is given the
            logits of the last position alone, `[batch, 1, vocab]`: with 256,000 words, those of
            the others would take most of the memory. All rows are equally long.
        flat_at_clean: Whether its gradient on the clean run is zero, so that it can be measured
            but not attributed.
    """

    name: str
    bind: Callable[[SplicedModel], Score]
    flat_at_clean: bool = False


@dataclass(frozen=True)
class AtLast:
    """A score that needs the logits of the last position alone."""

    score: Score

    def __call__(self, logits: Tensor) -> Tensor:
        return self.score(logits)


def bind(metric: Metric | Score, model: SplicedModel) -> Score:
    """The score of `metric` on `model`; a plain function of all logits is a score already."""
    if not isinstance(metric, Metric) and not callable(metric):
        raise UserError(
            f"{metric!r} is no metric; give logit_diff(prompt), or a function of logits"
        )
    return AtLast(metric.bind(model)) if isinstance(metric, Metric) else metric


def metric_name(metric: Metric | Score) -> str:
    """The metric's name, or the function's."""
    return metric.name if isinstance(metric, Metric) else getattr(metric, "__name__", "metric")


def logit_diff(prompt: Prompt | str, foil: str | None = None) -> Metric:
    """`logit(target) - logit(foil)`, in logits.

    Args:
        prompt: A `Prompt` with target and foil, or the target itself, followed by the foil.
    """
    target, foil = _pair(prompt, foil)

    def bound(model: SplicedModel) -> Score:
        right, wrong = model.token_id(target), model.token_id(foil)
        return lambda logits: logits[:, -1, right].float() - logits[:, -1, wrong].float()

    return Metric(f"{target} - {foil}", bound)


def logit(target: Prompt | str) -> Metric:
    """The target's logit (after the final soft-cap)."""
    word = _target(target)

    def bound(model: SplicedModel) -> Score:
        token = model.token_id(word)
        return lambda logits: logits[:, -1, token].float()

    return Metric(f"logit {word}", bound)


def log_prob(target: Prompt | str) -> Metric:
    """The target's log probability, in nats."""
    word = _target(target)

    def bound(model: SplicedModel) -> Score:
        token = model.token_id(word)
        return lambda logits: logits[:, -1].float().log_softmax(-1)[:, token]

    return Metric(f"log p({word})", bound)


def prob(target: Prompt | str) -> Metric:
    """The target's probability."""
    return prob_diff([_target(target)], [], name=f"p({_target(target)})")


def prob_diff(targets: Sequence[str], foils: Sequence[str], *, name: str | None = None) -> Metric:
    """The probability on all `targets` minus that on all `foils`: valid and invalid years, say."""
    if isinstance(targets, str) or isinstance(foils, str):
        raise UserError("prob_diff compares lists of words; write [word] for a single one")

    def bound(model: SplicedModel) -> Score:
        plus = [model.token_id(word) for word in targets]
        minus = [model.token_id(word) for word in foils]

        def score(logits: Tensor) -> Tensor:
            p = logits[:, -1].float().softmax(-1)
            return p[:, plus].sum(-1) - p[:, minus].sum(-1)

        return score

    return Metric(name or f"p({_list(targets)}) - p({_list(foils)})", bound)


def kl(prompt: Prompt | str) -> Metric:
    """`KL(clean || changed)` of the next-token distributions, in nats.

    Zero, with zero gradient, on the clean pass itself: it measures an ablation, and attribution
    of it is only meaningful away from the clean run.
    """

    def bound(model: SplicedModel) -> Score:
        with torch.no_grad():
            logits = model.run(model.tokens(prompt), last_only=True)
            clean = logits[:, -1].float().log_softmax(-1)

        def score(logits: Tensor) -> Tensor:
            changed = logits[:, -1].float().log_softmax(-1)
            return (clean.exp() * (clean - changed)).sum(-1)

        return score

    return Metric("KL from clean", bound, flat_at_clean=True)


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
    return target, foil


def _list(words: Sequence[str]) -> str:
    return ", ".join(words) if len(words) < 4 else f"{words[0]}, ... {words[-1]}"
