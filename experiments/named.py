"""Prompts and spans by the name of a task, a data set or a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from random import Random

from circuits import Prompt, SplicedModel, UserError
from experiments.datasets import (
    DATASETS,
    Pairs,
    fitting,
    load_pairs,
    read_pairs,
    without_overlap,
)
from experiments.datasets.patterns import SPANS as DATASET_SPANS
from experiments.pooled import MetricOf
from experiments.spans import Spans, aligned, by_pattern, whole
from experiments.tasks import TASKS
from experiments.tasks.spans import SPANS as TASK_SPANS
from experiments.tasks.task import Split, Task

MOST = 64
"""Times as many prompts of a task are drawn, at most, as are wanted."""


def prompts_named(
    name: str,
    n: int,
    seed: int = 0,
    *,
    n_others: int | None = None,
    model: SplicedModel | None = None,
    aligned: bool = True,
) -> tuple[Pairs, Pairs, MetricOf]:
    """`n` pairs, `n_others` others, and their metric; no text or pair is among both.

    Of a task of the bundled model the first are held-out prompts and the others those of its
    training split. Of a data set or a file both are drawn with the seed, each text once; a prompt
    whose partner is asked about among the first is not among the others, for the two are no
    different witnesses. There may be fewer of either than asked for.

    Args:
        name: Of a task, a bundled data set, or a file (it has a suffix).
        n: Of the first.
        seed: Of what is drawn.
        n_others: As many as `n` by default.
        model: What does not fit it (`datasets.fitting`) is left out, and told, before any is
            counted.
        aligned: Whether partners must be as long, as patching needs; see `fitting`.

    Raises:
        UserError: there is nothing of that name.
    """
    n_others = n if n_others is None else n_others

    def fit(pairs: Pairs) -> Pairs:
        return pairs if model is None else fitting(model, pairs, aligned=aligned)

    if name in TASKS:
        task = TASKS[name]
        some = _of_task(task, "heldout", n, seed, fit)
        others = _of_task(task, "train", n_others, seed, lambda p: fit(without_overlap(some, p)))
        return some, others, task.metric
    pairs = read_pairs(name) if Path(name).suffix else _bundled(name, seed)
    # not by the whole path: the draw is the same wherever the file lies
    order = Random(f"{Path(name).name} {seed}").sample(list(pairs), len(pairs))
    pairs = fit(replace(pairs, prompts=tuple(order)))
    first: dict[str, Prompt] = {}
    for prompt in pairs:  # a text may be asked about several answers: once is enough here
        first.setdefault(prompt.text, prompt)
    chosen = list(first.values())
    asked = {prompt.corrupted for prompt in chosen[:n]}
    apart = [prompt for prompt in chosen[n:] if prompt.text not in asked]
    some, others = (replace(pairs, prompts=tuple(p)) for p in (chosen[:n], apart[:n_others]))
    return some, others, pairs.metric


def _of_task(task: Task, split: Split, n: int, seed: int, fit: Callable[[Pairs], Pairs]) -> Pairs:
    """The first `n` prompts of a split that fit; a task is asked for more until there are."""
    many = max(1, n)  # of no others none
    while True:
        drawn = task.prompts(split, n=many, seed=seed)
        pairs = fit(Pairs(tuple(drawn), f"{task.name} {split}", metric=task.metric))
        if len(pairs) >= n or len(drawn) < many or many >= MOST * n:
            return pairs[:n]
        many *= 4


def _bundled(name: str, seed: int) -> Pairs:
    if name not in DATASETS:
        known = [*TASKS, *DATASETS]
        close = get_close_matches(name, known, n=3, cutoff=0.4) or known
        raise UserError(
            f"no task, data set or file {name!r}; there is {', '.join(close)}, and a file's name "
            "ends in .jsonl or .csv"
        )
    return load_pairs(name, seed=seed)


def spans_for(
    model: SplicedModel, name: str, prompts: Sequence[Prompt], how: str | None = None
) -> Callable[[Sequence[Prompt]], Spans]:
    """How to find the spans of any of `prompts`, always with the same names.

    Args:
        name: Of a task or bundled data set, which name spans, or of a file.
        prompts: All that are to be compared.
        how: `named`, `aligned` or `whole`. By default named where there are names, else aligned
            where all prompts have one length, else whole.

    Raises:
        UserError: named spans of what names none.
    """
    patterns = TASK_SPANS.get(name) or DATASET_SPANS.get(name)
    if how == "named" and patterns is None:
        raise UserError(
            f"{name} names no spans; tasks and bundled data sets do, and from Python "
            "by_pattern(model, prompts, pattern) names others"
        )
    if patterns is not None and how in ("named", None):
        return lambda some: by_pattern(model, some, patterns)
    lengths = {model.tokens(prompt).shape[1] for prompt in prompts}
    if how == "aligned" or (how is None and len(lengths) == 1):
        return lambda some: aligned(model, some)
    return lambda some: whole(model, some)
