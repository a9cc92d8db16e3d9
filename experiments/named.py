"""Prompts and spans by the name of a task, a data set or a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from circuits import Prompt, SplicedModel, UserError
from experiments.datasets import load_pairs, read_pairs
from experiments.pooled import MetricOf
from experiments.spans import Spans, aligned, by_pattern, whole
from experiments.tasks import TASKS
from experiments.tasks.spans import SPANS


def prompts_named(
    name: str, n: int, seed: int = 0
) -> tuple[Sequence[Prompt], Sequence[Prompt], MetricOf]:
    """`n` pairs, `n` others, and their metric.

    Of a task of the bundled model the first are held-out prompts and the others those of its
    training split; of a data set or a file they follow each other, with no text twice.

    Raises:
        UserError: there is nothing of that name.
    """
    if name in TASKS:
        task = TASKS[name]
        some, others = (task.prompts(split, n=n, seed=seed) for split in ("heldout", "train"))
        return some, others, task.metric
    pairs = read_pairs(name) if Path(name).suffix else load_pairs(name, seed=seed)
    first: dict[str, Prompt] = {}
    for prompt in pairs:  # a text may be asked about several answers: once is enough here
        first.setdefault(prompt.text, prompt)
    chosen = list(first.values())
    some, others = (replace(pairs, prompts=tuple(p)) for p in (chosen[:n], chosen[n : 2 * n]))
    return some, others, pairs.metric


def spans_for(
    model: SplicedModel, name: str, prompts: Sequence[Prompt], how: str | None = None
) -> Callable[[Sequence[Prompt]], Spans]:
    """How to find the spans of any of `prompts`, always with the same names.

    Args:
        name: Of the task; some name spans.
        prompts: All that are to be compared.
        how: `named`, `aligned` or `whole`. By default named where the task names spans, else
            aligned where all prompts have one length, else whole.

    Raises:
        UserError: named spans of what names none.
    """
    if how == "named" and name not in SPANS:
        raise UserError(
            f"{name} names no spans; those of {', '.join(SPANS)} are named, and from Python "
            "by_pattern(model, prompts, pattern) names others"
        )
    if how == "named" or (how is None and name in SPANS):
        return lambda some: by_pattern(model, some, SPANS[name])
    lengths = {model.tokens(prompt).shape[1] for prompt in prompts}
    if how == "aligned" or (how is None and len(lengths) == 1):
        return lambda some: aligned(model, some)
    return lambda some: whole(model, some)
