"""A pass with every other spliced site held at its clean output: what a node brings directly.

1. *Clean*: what each site reads and writes on the prompt is kept.
2. *Held*: each site gives what it wrote there, plus the shifts of the nodes that are changed. What
   a site reads then differs from the clean pass by what reaches it without crossing another site.
3. *Seen*: what some sites read and write in some rows, beside a clean row of the same batch.

What a skip connection passes on is no node: it follows what it reads, as edges do.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attribution.metrics import Score
from circuits import (
    ErrorNode,
    LatentNode,
    Output,
    Prompt,
    Reference,
    Site,
    SplicedModel,
    TokenNode,
)
from circuits.hooks import SiteHook
from circuits.outputs import LAST_LOGITS

Source = LatentNode | ErrorNode | TokenNode
"""Nodes that can be changed; a bias is a constant."""


@dataclass(frozen=True, eq=False)
class Shift:
    """What is added to what a site writes at one position.

    Attributes:
        site: None for the scaled embedding.
        pos: The position.
        vector: `[d_out]`.
    """

    site: Site | None
    pos: int
    vector: Tensor


@dataclass(frozen=True, eq=False)
class Seen:
    """What a site reads and writes (before it is held) at `n` rows and positions.

    Attributes:
        read: `[n, d_in]`.
        written: `[n, d_out]`.
        clean_read: The same positions of the clean row, `[n, d_in]`.
        clean_written: `[n, d_out]`.
    """

    read: Tensor
    written: Tensor
    clean_read: Tensor
    clean_written: Tensor


Places = Mapping[Site, Sequence[tuple[int, int]]]
"""By site, rows and positions."""


@dataclass(frozen=True, eq=False, repr=False)
class Held:
    """The clean pass that others are held at.

    Attributes:
        model: The spliced model.
        ids: The prompt, `[1, pos]`.
        embedding: Scaled, `[1, pos, d_model]`.
        reads: What each site reads, `[1, pos, d_in]`.
        writes: What the model writes there, `[1, pos, d_out]`.
    """

    model: SplicedModel
    ids: Tensor
    embedding: Tensor
    reads: Mapping[Site, Tensor]
    writes: Mapping[Site, Tensor]

    @classmethod
    def of(cls, model: SplicedModel, ids: Tensor) -> Held:
        """From one clean pass over `ids [1, pos]`."""
        return cls(model, ids, *model.activations(ids))

    @torch.no_grad()
    def run(
        self,
        rows: Sequence[Sequence[Shift]],
        places: Places | None = None,
        output: Output = LAST_LOGITS,
    ) -> tuple[dict[Site, Seen], Any]:
        """One pass with the shifts `rows[i]` in row `i`, and a clean row after them.

        Args:
            rows: Shifts; all other sites are held.
            places: Where to look.
            output: What the pass gives back: see `circuits.outputs`.

        Returns:
            What was seen at `places`, in their order, and the output of `len(rows) + 1` rows, the
            last one clean.
        """
        places = places or {}
        ids = self.ids.expand(len(rows) + 1, -1)
        added = _by_site(rows)
        seen: dict[Site, Seen] = {}
        hooks = {
            site: self._hold(site, added.get(site, []), places.get(site, ()), seen)
            for site in self.model.sites
        }

        def embedding(read: Tensor, written: Tensor) -> Tensor:
            return _add(self.embedding.expand_as(written), added.get(None, []))

        out = self.model.forward(ids, hooks, embedding=embedding, output=output)
        return seen, out

    @torch.no_grad()
    def losses(
        self, rows: Sequence[Sequence[Shift]], targets: Sequence[LatentNode], score: Score
    ) -> Tensor:
        """What the pre-activation of each target, and last the metric, loses in each of `rows`.

        `[n_rows, n_targets + 1]`, float32 or wider; a pass as `run` makes it.
        """
        into: defaultdict[Site, list[int]] = defaultdict(list)
        for i, target in enumerate(targets):
            into[target.site].append(i)
        places = {
            site: [(row, targets[i].pos) for row in range(len(rows)) for i in at]
            for site, at in into.items()
        }
        seen, out = self.run(rows, places, score.output)
        values = score(out)
        lost = values.new_empty(len(rows), len(targets) + 1)
        lost[:, -1] = values[-1] - values[:-1]
        for site, at in into.items():
            W_enc = self.model.dictionaries[site].W_enc[:, [targets[i].latent for i in at]]
            wide = torch.promote_types(W_enc.dtype, torch.float32)
            change = seen[site].clean_read.to(wide) - seen[site].read.to(wide)
            lost[:, at] = (change.unflatten(0, (len(rows), -1)) * W_enc.to(wide).T).sum(-1).to(lost)
        return lost

    def _hold(
        self,
        site: Site,
        shifts: list[tuple[int, Shift]],
        places: Sequence[tuple[int, int]],
        seen: dict[Site, Seen],
    ) -> SiteHook:
        def hook(read: Tensor, written: Tensor) -> Tensor:
            if places:
                row, pos = torch.tensor(places, device=read.device).T
                seen[site] = Seen(
                    read[row, pos], written[row, pos], read[-1, pos], written[-1, pos]
                )
            out = self.writes[site].expand_as(written)
            if self.model.dictionaries.summary(site).has_skip:
                dictionary = self.model.dictionaries[site]
                passed = dictionary.skip(read) - dictionary.skip(self.reads[site])
                out = out + (passed * self.model.reads(self.ids)[..., None]).to(out.dtype)
            return _add(out, shifts)

        return hook


def shifts(model: SplicedModel, node: Source, change: Tensor) -> tuple[Shift, ...]:
    """What a change of a node's value adds wherever it writes.

    Args:
        model: The spliced model.
        node: A latent, an error or a token.
        change: Of a latent's activation, a scalar; of an error or an embedding, `[d]`.
    """
    if isinstance(node, TokenNode):
        return (Shift(None, node.pos, change),)
    if isinstance(node, ErrorNode):
        return (Shift(node.site, node.pos, change),)
    decoders = model.dictionaries[node.site].decoders
    wide = torch.promote_types(decoders[0].dtype, torch.float32)
    return tuple(
        Shift(there, node.pos, change.to(wide) * matrix[node.latent].to(wide))
        for there, matrix in zip(model.writes_to(node.site), decoders, strict=True)
    )


def value_in(reference: Reference, node: Source) -> Tensor:
    """A latent's activation, a scalar; an error's or a token's vector, `[d]`."""
    if isinstance(node, TokenNode):
        return reference.trace.embedding[node.pos]
    return reference.value(node)


def foretold_share(node: Source, lost: Tensor, change: float, same: bool) -> float:
    """By what an edge is multiplied to foretell what its source loses.

    Args:
        node: The source.
        lost: Its clean value less what it is set to.
        change: What of a latent the edge is of: `Attribution.changes`.
        same: Whether edges and change are against the same reference.

    Returns:
        1 against the same reference, `lost / change` of a latent against another; NaN for vectors
        there, which may change in direction.
    """
    if same:
        return 1.0
    return lost.item() / change if isinstance(node, LatentNode) and change else math.nan


def same_reference(provenance: Mapping[str, Any], prompt: str | Prompt, name: str) -> bool:
    """Whether a graph's edges are against the reference of that `name` for the prompt.

    By name alone for zero and a partner that the graph records too; others, such as means over
    sets of prompts, may differ under one name.
    """
    if provenance.get("settings", {}).get("edge_reference", "zero") != name:
        return False
    partner = prompt.corrupted if isinstance(prompt, Prompt) else None
    recorded = provenance.get("prompt", {}).get("corrupted")
    return name == "zero" or (name == "corrupted" and recorded == partner)


def _by_site(rows: Sequence[Sequence[Shift]]) -> dict[Site | None, list[tuple[int, Shift]]]:
    found: defaultdict[Site | None, list[tuple[int, Shift]]] = defaultdict(list)
    for row, there in enumerate(rows):
        for shift in there:
            found[shift.site].append((row, shift))
    return found


def _add(out: Tensor, added: Sequence[tuple[int, Shift]]) -> Tensor:
    """`out [batch, pos, d]` with vectors added at rows and positions."""
    if not added:
        return out
    at = torch.tensor([(row, shift.pos) for row, shift in added], device=out.device).T
    vectors = torch.stack([shift.vector.to(out) for _, shift in added])
    return out.index_put(tuple(at), vectors, accumulate=True)
