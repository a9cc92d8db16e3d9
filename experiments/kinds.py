"""Kinds of ablation: what ablated nodes are set to, whatever the prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any
from weakref import WeakKeyDictionary

import torch

from circuits import (
    Prompt,
    Reference,
    SplicedModel,
    Trace,
    UserError,
    corrupted_reference,
    mean_reference,
    zero_reference,
)
from circuits.whole_numbers import checked_seed, whole_number
from experiments.records import record_of

KINDS_OF_ABLATION = ("patch", "mean", "resample", "zero")
"""By name; besides, `set to 2.5` sets the latents that are on to a value."""


@dataclass(frozen=True)
class AblationKind:
    """What ablated nodes are set to.

    Attributes:
        name: `patch`, `mean`, `resample`, `zero` or `set to 2.5`; named wherever a number is shown.
        references: From the model and a prompt to the values. Several are donors: what is measured
            is averaged over them.
        settings: What else the values depend on, JSON-able: the prompts that stand in (their number
            and a digest), how many donors are drawn, the seed, the value.
    """

    name: str
    references: Callable[[SplicedModel, str | Prompt], tuple[Reference, ...]] = field(
        repr=False, compare=False
    )
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)


def patch() -> AblationKind:
    """The values on the prompt's corrupted partner (activation patching)."""

    def references(model: SplicedModel, prompt: str | Prompt) -> tuple[Reference, ...]:
        return (corrupted_reference(model, prompt),)  # pyright: ignore[reportArgumentType]

    return AblationKind("patch", references)


def zero() -> AblationKind:
    """Latents off, errors zero."""
    return AblationKind("zero", lambda model, prompt: (zero_reference(model, prompt),))


def mean_of(prompts: Sequence[str | Prompt]) -> AblationKind:
    """The mean over a fixed set of prompts, position by position.

    Of the set, those with as many tokens as the prompt count; a prompt of another length than any
    of them is refused.
    """
    _check_set(prompts)
    made: WeakKeyDictionary[SplicedModel, dict[int, Reference]] = WeakKeyDictionary()

    def references(model: SplicedModel, prompt: str | Prompt) -> tuple[Reference, ...]:
        by_length, n_pos = made.setdefault(model, {}), model.tokens(prompt).shape[1]
        if n_pos not in by_length:
            by_length[n_pos] = mean_reference(model, _as_long(model, prompts, n_pos))
        return (by_length[n_pos],)

    return AblationKind("mean", references, {"prompts": record_of(prompts)})


def resample(donors: Sequence[str | Prompt], *, n: int = 8, seed: int = 0) -> AblationKind:
    """The values on `n` other prompts, drawn anew for each prompt from those of its length.

    A prompt is not its own donor. Where fewer than `n` are as long, all of them are taken.
    """
    _check_set(donors)
    n, seed = whole_number("n", n), checked_seed(seed)

    def references(model: SplicedModel, prompt: str | Prompt) -> tuple[Reference, ...]:
        text = prompt.text if isinstance(prompt, Prompt) else prompt
        others = [d for d in donors if (d.text if isinstance(d, Prompt) else d) != text]
        n_pos = model.tokens(prompt).shape[1]
        long = _as_long(model, others, n_pos)
        drawn = Random(f"{seed} {text}").sample(long, min(n, len(long)))
        return tuple(Reference("resample", model.trace(donor)) for donor in drawn)

    settings = {"prompts": record_of(donors), "n": n, "seed": seed}
    return AblationKind("resample", references, settings)


def set_value(value: float) -> AblationKind:
    """Latents that are on get `value`; those that are off stay off, and errors what they are."""

    def references(model: SplicedModel, prompt: str | Prompt) -> tuple[Reference, ...]:
        trace = model.trace(prompt)
        sites = {
            site: replace(here, acts=torch.full_like(here.acts, value))
            for site, here in trace.sites.items()
        }
        return (Reference(f"set to {value:g}", Trace(trace.ids, trace.embedding, sites)),)

    return AblationKind(f"set to {value:g}", references, {"value": float(value)})


def checked_kind(kind: AblationKind | None, *, name: str = "kind") -> AblationKind:
    """`kind`, or `patch()` for None.

    Args:
        name: Of the argument, for the message.

    Raises:
        UserError: something else, such as the name of a kind.
    """
    if kind is None:
        return patch()
    if not isinstance(kind, AblationKind):
        raise UserError(
            f"{name}={kind!r} is no kind of ablation; give patch(), mean_of(prompts), "
            "resample(prompts), zero() or set_value(2.5)"
        )
    return kind


def kind_named(name: str, prompts: Sequence[str | Prompt], *, seed: int = 0) -> AblationKind:
    """The kind of that name, with `prompts` as the reference set or the donors.

    Raises:
        UserError: no such kind.
    """
    simple = {"patch": patch, "zero": zero}
    if name in simple:
        return simple[name]()
    if name == "mean":
        return mean_of(prompts)
    if name == "resample":
        return resample(prompts, seed=seed)
    if match := re.fullmatch(r"set to (-?\d+(?:\.\d+)?)", name):
        return set_value(float(match[1]))
    raise UserError(
        f"no kind of ablation {name!r}; choose {', '.join(KINDS_OF_ABLATION)} or 'set to 2.5'"
    )


def check_kind_name(name: str) -> None:
    """Refuse, before there are prompts, what `kind_named` does not know.

    Raises:
        UserError: no such kind.
    """
    kind_named(name, ["any"])


def _check_set(prompts: Sequence[str | Prompt]) -> None:
    if isinstance(prompts, str | Prompt) or not prompts:
        raise UserError("give a list of prompts whose values stand in, at least one")


def _as_long(
    model: SplicedModel, prompts: Sequence[str | Prompt], n_pos: int
) -> list[str | Prompt]:
    found = [prompt for prompt in prompts if model.tokens(prompt).shape[1] == n_pos]
    if not found:
        raise UserError(
            f"none of the {len(prompts)} prompts whose values stand in has {n_pos} tokens, as the "
            "ablated one has; give some of that length, or ablate by patch or zero"
        )
    return found
