"""One pass of one prompt, kept so that passes which differ from it later on can start from it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circuits.formula import ErrorRule, Formula, check_downstream, error_rule
from circuits.hooks import SiteHook, attention_cache, watched_layers
from circuits.outputs import Output
from circuits.sites import Site

if TYPE_CHECKING:
    from circuits.model import SplicedModel


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

    def error_rule(self, site: Site, positions: Tensor) -> ErrorRule:
        """What the convention does to the error of `site` at `positions [n]`, a row of one."""
        clean = self.errors[site][:, positions] if site in self.errors else None
        return error_rule(self.downstream, self.reads[:, positions], clean)


@torch.no_grad()
def keep(
    model: SplicedModel, ids: Tensor, sites: Collection[Site], downstream: str, output: Output
) -> Kept:
    """Run `ids [1, pos]` once, and keep what passes that edit `sites` will need.

    Args:
        downstream: What errors do: see `SplicedModel.run`.
        output: What is wanted of this pass itself.

    Raises:
        UserError: an unknown convention.
    """
    check_downstream(downstream)
    assert len(ids) == 1, f"one prompt is kept, not {len(ids)}"
    reads = model.reads(ids)
    errors = model.errors(ids) if downstream == "freeze" else {}
    formula = Formula(model.dictionaries)
    read: dict[Site, Tensor] = {}
    written: dict[Site, Tensor] = {}

    def site_hook(site: Site) -> SiteHook:
        drop = formula.at(site, reads, error_rule(downstream, reads, errors.get(site)))

        def hook(x: Tensor, out: Tensor) -> Tensor:
            if site in sites:
                read[site], written[site] = x, out
            return drop(x, out) if downstream == "drop" else out

        return hook

    hooks = {site: site_hook(site) for site in (model.sites if downstream == "drop" else sites)}
    entering: list[Tensor] = []
    keywords: list[dict[str, Any]] = []
    cache = _Recorder()

    def enter(x: Tensor, called_with: dict[str, Any]) -> None:
        entering.append(x)
        keywords.append(called_with)

    layers = watched_layers(model.bridge, enter, entering.append)
    with layers, attention_cache(model.bridge, cache):
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
