"""Pairs of a clean and a corrupted prompt, with what was left out and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

from attribution import logit_diff
from circuits import Prompt
from experiments.pooled import MetricOf


@dataclass(frozen=True, repr=False)
class Pairs(Sequence[Prompt]):
    """Prompts with partners, as a list that remembers where it is from.

    Attributes:
        prompts: Also reached as `pairs[i]` and by iterating; a slice is `Pairs` again.
        name: For tables and records.
        source: Repository, commit, licence; empty for the user's own.
        metric: From a prompt to its metric.
        left_out: What is not among the prompts, by reason.
    """

    prompts: tuple[Prompt, ...]
    name: str
    source: str = ""
    metric: MetricOf = logit_diff
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    def __len__(self) -> int:
        return len(self.prompts)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> Pairs: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return replace(self, prompts=self.prompts[index])
        return self.prompts[index]

    def __repr__(self) -> str:
        return f"Pairs({self.report()})"

    def report(self) -> str:
        """How many pairs there are, and how many were left out for each reason, with an example."""
        reasons = [
            f"{len(texts)} left out: {reason} ({texts[0]!r})"
            for reason, texts in self.left_out.items()
        ]
        return "; ".join([f"{len(self)} pairs of {self.name}", *reasons])

    def without(self, left_out: Mapping[str, Sequence[Prompt]]) -> Pairs:
        """The same without some prompts, which are told with those that were left out before."""
        gone = {id(prompt) for prompts in left_out.values() for prompt in prompts}
        told = dict(self.left_out)
        for reason, prompts in left_out.items():
            told[reason] = (*told.get(reason, ()), *(prompt.text for prompt in prompts))
        kept = tuple(prompt for prompt in self.prompts if id(prompt) not in gone)
        return replace(self, prompts=kept, left_out=told)


def as_pairs(prompts: Iterable[Prompt]) -> Pairs:
    """Any prompts as `Pairs`."""
    return prompts if isinstance(prompts, Pairs) else Pairs(tuple(prompts), "the prompts given")


def unique(pairs: Pairs) -> Pairs:
    """Each question once: the same texts with the same answers count as one."""
    seen: set[Prompt] = set()
    again = []
    for prompt in pairs:
        if prompt in seen:
            again.append(prompt)
        seen.add(prompt)
    if not again:
        return pairs
    told = {**pairs.left_out, "the same row again": tuple(prompt.text for prompt in again)}
    return replace(pairs, prompts=tuple(dict.fromkeys(pairs)), left_out=told)


def overlap(train: Iterable[Prompt], test: Iterable[Prompt]) -> int:
    """How many different texts of `test` are texts of `train` too; pairs are not compared."""
    return len({prompt.text for prompt in test} & {prompt.text for prompt in train})


def without_overlap(train: Iterable[Prompt], test: Iterable[Prompt]) -> Pairs:
    """`test` without the prompts that are no new witnesses beside `train`; these are told.

    They ask about a text of `train`, or about one of its pairs the other way round, clean and
    corrupted exchanged.
    """
    test = as_pairs(test)
    shared = _shared(train, test)
    return test.without(shared) if shared else test


def _shared(train: Iterable[Prompt], test: Iterable[Prompt]) -> dict[str, list[Prompt]]:
    """Prompts of `test` that `train` has in some way, by which way it is."""
    train = list(train)
    texts, pairs = {prompt.text for prompt in train}, {_both(prompt) for prompt in train}
    found: dict[str, list[Prompt]] = {}
    for prompt in test:
        if prompt.text in texts:
            found.setdefault("a text of the other split", []).append(prompt)
        elif _both(prompt) in pairs:
            found.setdefault("a pair of the other split, reversed", []).append(prompt)
    return found


def _both(prompt: Prompt) -> frozenset[str | None]:
    """The texts of a pair, whichever is the clean one."""
    return frozenset((prompt.text, prompt.corrupted))
