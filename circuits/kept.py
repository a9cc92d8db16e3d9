"""One pass of one prompt, kept so that passes which differ from it later on can start from it."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circuits.formula import Formula, Keep, keep_errors
from circuits.hooks import SiteHook, attention_cache, without_cache
from circuits.outputs import Output
from circuits.sites import Site

if TYPE_CHECKING:
    from circuits.splice import SplicedModel


@dataclass(frozen=True, eq=False)
class Kept:
    """What a pass over `ids [1, pos]` computed, nothing edited.

    Attributes:
        model: The spliced model.
        ids: The prompt.
        downstream: What errors do, in this pass and in those that start from it.
        output: What the pass gave back.
        entering: What enters each layer, and last what leaves the last one, `[1, pos, d_model]`.
        keywords: What Hugging Face's model calls each layer with.
        keys: Of each layer, after the rotation, `[1, head, pos, d_head]`.
        values: Of each layer, `[1, head, pos, d_head]`.
        read: By site, what it read, `[1, pos, d_in]`.
        written: By site, what the model wrote there, `[1, pos, d_out]`.
        reads: Where dictionaries read, `[1, pos]`.
        errors: With `freeze`, the error at each site, `[1, pos, d_out]`.
    """

    model: SplicedModel
    ids: Tensor
    downstream: str
    output: Any
    entering: list[Tensor]
    keywords: list[dict[str, Any]]
    keys: list[Tensor]
    values: list[Tensor]
    read: dict[Site, Tensor]
    written: dict[Site, Tensor]
    reads: Tensor
    errors: dict[Site, Tensor]

    @property
    def n_pos(self) -> int:
        return self.ids.shape[1]

    def keep_errors(self, site: Site, positions: Tensor) -> Keep:
        """What the convention does to the error of `site` at `positions [n]`, a row of one."""
        clean = self.errors[site][:, positions] if site in self.errors else None
        return keep_errors(self.downstream, self.reads[:, positions], clean)


@torch.no_grad()
def keep(
    model: SplicedModel, ids: Tensor, sites: Collection[Site], downstream: str, output: Output
) -> Kept:
    """Run `ids [1, pos]` once, and keep what passes that edit `sites` will need.

    Args:
        downstream: `recompute`, `freeze` or `drop`; see `SplicedModel.run`.
        output: What is wanted of this pass itself.
    """
    reads = model.reads(ids)
    errors = model.errors(ids) if downstream == "freeze" else {}
    formula = Formula(model.dictionaries)
    read: dict[Site, Tensor] = {}
    written: dict[Site, Tensor] = {}

    def keeping(site: Site) -> SiteHook:
        dropping = formula.at(site, reads, keep_errors(downstream, reads, errors.get(site)))

        def hook(x: Tensor, out: Tensor) -> Tensor:
            if site in sites:
                read[site], written[site] = x, out
            return dropping(x, out) if downstream == "drop" else out

        return hook

    hooks = {site: keeping(site) for site in (model.sites if downstream == "drop" else sites)}
    entering: list[Tensor] = []
    keywords: list[dict[str, Any]] = []
    cache = _Recorder()

    def enter(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entering.append(args[0])
        keywords.append(without_cache(kwargs))

    with ExitStack() as stack:
        stack.enter_context(attention_cache(model.bridge, cache))
        for block in model.bridge.blocks:
            handle = block.register_forward_pre_hook(enter, with_kwargs=True)
            stack.callback(handle.remove)
        handle = model.bridge.ln_final.register_forward_pre_hook(
            lambda module, args: entering.append(args[0])
        )
        stack.callback(handle.remove)
        given = model.forward(ids, hooks, output=output)
    return Kept(
        model, ids, downstream, given, entering, keywords, cache.keys, cache.values,
        read, written, reads, errors,
    )  # fmt: skip


class _Recorder:
    """A cache as attention sees it, which keeps the keys and values of a whole prompt."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def update(self, keys: Tensor, values: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        self.keys.append(keys)
        self.values.append(values)
        return keys, values
