"""The references of each prompt, made once for a study that goes through its prompts repeatedly."""

from __future__ import annotations

from dataclasses import replace

from circuits import Prompt, Reference, SplicedModel
from circuits.memory import parse_bytes
from experiments.kinds import AblationKind, checked_kind

KEPT = 2**30
"""Bytes of references that are kept if nobody says how much: 20 tokens take 17 MB on
Gemma 2 2B with every site spliced."""


def traced_once(kind: AblationKind | None, *, memory: str | int = KEPT) -> AblationKind:
    """The same kind; each prompt's references are made once and kept as far as `memory` goes.

    Studies attribute on every prompt before they choose what to ablate on it, and each part asks
    for the references. Those that do not fit are made again every time: the values are the same.

    Args:
        kind: `patch()` for None.
        memory: Bytes, or an amount such as `"2GB"`.

    Raises:
        UserError: no kind of ablation, or no amount of memory.
    """
    kind = checked_kind(kind)
    kept: dict[tuple[SplicedModel, str | Prompt], tuple[Reference, ...]] = {}
    left = parse_bytes(memory)

    def references(model: SplicedModel, prompt: str | Prompt) -> tuple[Reference, ...]:
        nonlocal left
        key = model, prompt
        if key in kept:
            return kept[key]
        made = kind.references(model, prompt)
        size = sum(map(_bytes, made))
        if size <= left:
            kept[key] = made
            left -= size
        return made

    return replace(kind, references=references)


def _bytes(reference: Reference) -> int:
    """What its tensors take."""
    trace = reference.trace
    tensors = [trace.ids, trace.embedding]
    for here in trace.sites.values():
        tensors += [here.pos, here.latent, here.acts, here.error]
    return sum(tensor.nbytes for tensor in tensors)
