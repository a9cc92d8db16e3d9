"""Ways to rank the nodes of a behaviour, each with its name, so that circuits can be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from attribution.effects import Effects, total_effects
from attribution.integrated import integrated_effects
from circuits import Prompt, SplicedModel, UserError
from circuits.freeze import Freeze
from circuits.whole_numbers import checked_seed
from experiments.kinds import AblationKind
from experiments.masks import learn_masks
from experiments.pooled import Estimator, MetricOf, PooledEffects, pooled_effects
from experiments.spans import SpanNode, Spans, check_spans


@dataclass(frozen=True)
class Question:
    """What nodes are ranked for.

    Raises:
        UserError: no prompts, spans of other prompts, or a seed that is none.
    """

    model: SplicedModel
    prompts: Sequence[Prompt]
    spans: Spans
    metric: MetricOf
    kind: AblationKind
    downstream: str = "recompute"
    seed: int = 0

    def __post_init__(self) -> None:
        check_spans(self.spans, self.prompts)
        checked_seed(self.seed)


@dataclass(frozen=True)
class Method:
    """A way to rank nodes.

    Attributes:
        name: For tables.
        score: From a question to nodes and their scores `[n]`, of which the largest come first.
    """

    name: str
    score: Callable[[Question], tuple[tuple[SpanNode, ...], np.ndarray]] = field(
        repr=False, compare=False
    )

    def rank(self, question: Question, *, errors: bool = False) -> list[SpanNode]:
        """All nodes, best first; with `errors` also errors, but by learned masks, which keep them.

        Of two nodes with one score the one that comes first in the pass does so here.
        """
        nodes, scores = self.score(question)
        order = np.argsort(-scores, kind="stable").tolist()
        return [nodes[i] for i in order if errors or nodes[i].latent is not None]


def by_effect(name: str, estimator: Estimator) -> Method:
    """By the size of the mean effect over the prompts."""

    def score(question: Question) -> tuple[tuple[SpanNode, ...], np.ndarray]:
        pooled = _pooled(question, estimator)
        return pooled.nodes, np.abs(np.asarray(pooled.effect.mean(0)))

    return Method(name, score)


def relp_effects(*args: Any, **options: Any) -> Effects:
    """Gradient x activation with patterns and norms held and MLPs by RelP (arXiv 2508.21258)."""
    freeze = Freeze(attention=True, norms=True, mlp="relp")
    effects = total_effects(*args, **options, freeze=freeze)
    return replace(effects, estimator="RelP, patterns and norms frozen")


def _pooled(question: Question, estimator: Estimator) -> PooledEffects:
    q = question
    return pooled_effects(
        q.model, q.prompts, q.spans, q.metric, q.kind, estimator=estimator, downstream=q.downstream
    )


def _by_change(question: Question) -> tuple[tuple[SpanNode, ...], np.ndarray]:
    pooled = _pooled(question, total_effects)
    return pooled.nodes, np.asarray(pooled.change.mean(0))


def _random(question: Question) -> tuple[tuple[SpanNode, ...], np.ndarray]:
    pooled = _pooled(question, total_effects)
    return pooled.nodes, np.random.default_rng(question.seed).random(len(pooled.nodes))


def _masks(question: Question) -> tuple[tuple[SpanNode, ...], np.ndarray]:
    pooled, q = _pooled(question, total_effects), question
    latents = tuple(node for node in pooled.nodes if node.latent is not None)
    theta = learn_masks(
        q.model, q.prompts, q.spans, q.metric, latents, q.kind, downstream=q.downstream
    )
    return latents, theta


METHODS = {
    method.name: method
    for method in (
        by_effect("gradient x activation", total_effects),
        by_effect("integrated gradients", integrated_effects),
        by_effect("RelP", relp_effects),
        Method("learned masks", _masks),
        Method("activation size", _by_change),
        Method("random", _random),
    )
}
"""`activation size` is how far ablation moves what the site writes, whatever that does."""


def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        UserError: there is none.
    """
    if name not in METHODS:
        raise UserError(f"no method {name!r}; choose {', '.join(METHODS)}")
    return METHODS[name]
