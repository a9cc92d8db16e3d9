"""Many edited passes of one prompt, of which only what differs from the clean pass is computed.

A row of a batch is one edited pass. Below the first site that it edits nothing changes, nor at
positions before the first that it edits. So

1. the clean pass is *kept* (`circuits.kept`);
2. each row *starts*: its first site reads what it read in the clean pass, so that what its edits
   change there is known without a pass, and is added to what the clean pass has in that place;
3. rows *go up* together, each joining at its layer, from the lowest of their positions on;
   attention reads the clean keys and values of the positions before;
4. logits are *read* at the top, at clean positions from the clean pass.

The numbers are those of `SplicedModel.run` but for rounding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circuits.formula import Formula
from circuits.freeze import ForwardHook
from circuits.hooks import SiteHook, attention_cache, hooked, site_hooks
from circuits.interventions import Intervention, edit_at
from circuits.kept import Kept
from circuits.outputs import Logits, Output, Part, arrange, at_position, logit_positions, parts
from circuits.sites import Site

if TYPE_CHECKING:
    from circuits.splice import SplicedModel

Token = tuple[int, int]
"""A row and a position."""


@dataclass(frozen=True, eq=False)
class Start:
    """Where and how a row begins to differ from the clean pass.

    Attributes:
        layer: The first layer that is computed; the number of layers for none.
        site: Where in that layer `change` is added; None for what enters it.
        first: The lowest position at which the row changes anything.
        positions: Where there is a change at the start, `n` of them.
        change: `[n, d_out]`.
        later: What is changed further up.
    """

    layer: int
    site: Site | None
    first: int
    positions: tuple[int, ...]
    change: Tensor
    later: tuple[Intervention, ...]


def can_resume(model: SplicedModel, output: Output) -> bool:
    """Whether passes can be resumed: logits are wanted, and no latent writes to several layers."""
    crossing = any(model.dictionaries.summary(site).n_later for site in model.sites)
    return not crossing and all(isinstance(part, Logits) for part in parts(output))


@torch.no_grad()
def starts(kept: Kept, rows: Sequence[Sequence[Intervention]], *, block: int = 1024) -> list[Start]:
    """The start of each row. Each site's dictionary is read once for all rows.

    Args:
        kept: The clean pass, with the sites of all rows.
        rows: What is changed in each; a row without interventions is the clean pass.
        block: Positions whose latents are held densely at a time.
    """
    firsts = [min((i.node.site for i in row), default=None) for row in rows]
    here: defaultdict[Site, dict[Token, list[Intervention]]] = defaultdict(dict)
    for row, interventions in enumerate(rows):
        for i in interventions:
            if i.node.site == firsts[row]:
                here[i.node.site].setdefault((row, i.node.pos), []).append(i)
    changes: dict[int, tuple[tuple[int, ...], Tensor]] = {}
    for site in sorted(here):
        tokens = list(here[site])
        change = _first_change(kept, site, list(here[site].items()), block)
        found = 0
        for row, of_row in groupby(tokens, lambda token: token[0]):
            positions = tuple(pos for _, pos in of_row)
            changes[row] = positions, change[found : found + len(positions)]
            found += len(positions)
    nothing = (), kept.entering[0][0, :0]
    return [
        _start(kept, row, first, *changes.get(n, nothing))
        for n, (row, first) in enumerate(zip(rows, firsts, strict=True))
    ]


@torch.no_grad()
def resume(kept: Kept, rows: Sequence[Start], output: Output) -> Any:
    """What `output` names of each row, as `SplicedModel.run` gives it.

    Args:
        rows: Of any layers and positions; the fewer of both, the less is computed twice.
        output: Of logits alone; see `can_resume`.
    """
    order = sorted(range(len(rows)), key=lambda n: rows[n].layer)
    ordered = [rows[n] for n in order]
    first = min(row.first for row in rows)
    model = kept.model
    x = kept.entering[0].new_empty(0, kept.n_pos - first, kept.entering[0].shape[-1])
    hooks = _hooks(kept, ordered, first)
    with hooked(model.bridge, hooks), attention_cache(model.bridge, _Prefix(kept, first)):
        for layer in range(model.n_layers + 1):
            joining = [row for row in ordered if row.layer == layer]
            if joining:
                x = torch.cat([x, _entering(kept, joining, layer, first)])
            if layer < model.n_layers and len(x):
                x = model.bridge.blocks[layer](x, **_keywords(kept, layer, first))
                x = x[0] if isinstance(x, tuple) else x  # before transformers 5
    back = torch.tensor(order, device=x.device).argsort()
    return _read_logits(kept, x[back], first, output)


def _start(
    kept: Kept,
    row: Sequence[Intervention],
    site: Site | None,
    positions: tuple[int, ...],
    change: Tensor,
) -> Start:
    """The start of one row, of which `site` is the first that it edits."""
    later = tuple(i for i in row if i.node.site != site)
    lowest = min((i.node.pos for i in row), default=kept.n_pos - 1)
    if site is None:
        return Start(kept.model.n_layers, None, lowest, positions, change, later)
    acting = {i.node.site for i in later} if kept.downstream == "recompute" else kept.model.sites
    if site.kind in ("embed", "attn") or any(site < s and site.layer == s.layer for s in acting):
        layer, where = site.layer, site
    else:  # nothing lies between what the site adds to the residual and the next layer
        layer, where = site.layer + 1, None
    return Start(layer, where, lowest, positions, change, later)


def _first_change(
    kept: Kept, site: Site, tokens: Sequence[tuple[Token, list[Intervention]]], block: int
) -> Tensor:
    """What edits add to what `site` wrote in the clean pass, `[token, d_out]`."""
    changes = []
    for start in range(0, len(tokens), block):
        some = tokens[start : start + block]
        at = torch.tensor([pos for (_, pos), _ in some], device=kept.ids.device)
        _, change = Formula(kept.model.dictionaries).changes(
            site,
            kept.reads[:, at],
            kept.keep_errors(site, at),
            _edit([interventions for _, interventions in some]),
            kept.read[site][:, at],
            kept.written[site][:, at],
        )
        changes.append(change[0])
    return torch.cat(changes)


def _edit(tokens: Sequence[Sequence[Intervention]]):
    """The interventions at each of some tokens, which lie in one row one after the other."""
    placed = [((0, n), i) for n, interventions in enumerate(tokens) for i in interventions]
    return edit_at([place for place, _ in placed], [i for _, i in placed])


def _hooks(kept: Kept, rows: Sequence[Start], first: int) -> list[ForwardHook]:
    """What acts on the rows as they go up: their starts, later edits, and the convention."""
    model = kept.model
    start: defaultdict[Site, list[int]] = defaultdict(list)
    later: defaultdict[Site, dict[Token, list[Intervention]]] = defaultdict(dict)
    for n, row in enumerate(rows):
        if row.site is not None:
            start[row.site].append(n)
        for i in row.later:
            later[i.node.site].setdefault((n, i.node.pos), []).append(i)
    sites = {*start, *later}
    if kept.downstream != "recompute":
        sites |= set(model.sites)
    table = []
    for site in sorted(sites):
        hook = _site_hook(kept, site, first, later[site], [(n, rows[n]) for n in start[site]])
        table += site_hooks(model, site, hook)
    return table


def _site_hook(
    kept: Kept,
    site: Site,
    first: int,
    later: dict[Token, list[Intervention]],
    start: Sequence[tuple[int, Start]],
) -> SiteHook:
    """The formula at the tokens of rows that it concerns, and the changes of rows that start."""

    def hook(read: Tensor, written: Tensor) -> Tensor:
        n_here, device = written.shape[1], written.device
        flat = written.flatten(0, 1)
        edited = {row * n_here + pos - first: some for (row, pos), some in later.items()}
        concerned = range(len(flat)) if kept.downstream != "recompute" else edited
        if concerned:
            tokens = torch.tensor(list(concerned), device=device)
            at = first + tokens % n_here
            edit = _edit([edited.get(token, []) for token in concerned]) if edited else None
            hook = Formula(kept.model.dictionaries).at(
                site, kept.reads[:, at], kept.keep_errors(site, at), edit
            )
            new = hook(read.flatten(0, 1)[None, tokens], flat[None, tokens])
            flat = flat.index_copy(0, tokens, new[0])
        if start:
            flat = flat.index_add(0, *_changes(start, first, n_here, flat))
        return flat.view_as(written)

    return hook


def _entering(kept: Kept, rows: Sequence[Start], layer: int, first: int) -> Tensor:
    """What enters a layer in the rows that join there, `[row, pos, d_model]`."""
    x = kept.entering[layer][:, first:].repeat(len(rows), 1, 1)
    changed = [(n, row) for n, row in enumerate(rows) if row.site is None]
    if changed:
        flat = x.flatten(0, 1)
        flat.index_add_(0, *_changes(changed, first, x.shape[1], flat))
    return x


def _changes(
    rows: Sequence[tuple[int, Start]], first: int, n_here: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """The tokens that rows change where they start, `[n]`, and by what, `[n, d]`."""
    tokens = [n * n_here + pos - first for n, row in rows for pos in row.positions]
    change = torch.cat([row.change for _, row in rows]).to(like.dtype)
    return torch.tensor(tokens, device=like.device, dtype=torch.long), change


def _keywords(kept: Kept, layer: int, first: int) -> dict[str, Any]:
    """What a layer is called with, for the positions from `first` on."""
    keywords = dict(kept.keywords[layer])
    if keywords.get("attention_mask") is not None:
        keywords["attention_mask"] = keywords["attention_mask"][..., first:, :]
    if keywords.get("position_embeddings") is not None:
        keywords["position_embeddings"] = tuple(
            x[:, first:] for x in keywords["position_embeddings"]
        )
    for name, there in (("position_ids", (..., slice(first, None))), ("cache_position", first)):
        if keywords.get(name) is not None:
            there = slice(first, None) if name == "cache_position" else there
            keywords[name] = keywords[name][there]
    return keywords


def _read_logits(kept: Kept, x: Tensor, first: int, output: Output) -> Any:
    """Logits of what left the last layer, `[row, pos from first, d_model]`."""
    model, clean = kept.model, kept.entering[-1]
    computed = logit_positions(output, kept.n_pos)
    columns = [
        x[:, pos - first] if pos >= first else clean[:, pos].expand(len(x), -1) for pos in computed
    ]
    logits = model.bridge.unembed(model.bridge.ln_final(torch.stack(columns, 1)))
    seen: dict[Part, Tensor] = {}
    for part in parts(output):
        assert isinstance(part, Logits)
        every = model.family.capped(model.config, logits) if part.soft_capped else logits
        seen[part] = at_position(every, part.pos, computed, kept.n_pos)
    return arrange(output, seen)


class _Prefix:
    """A cache as attention sees it, which has the clean keys and values of the first positions."""

    def __init__(self, kept: Kept, first: int) -> None:
        self._kept, self._first = kept, first

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        before = (of[layer][:, :, : self._first] for of in (self._kept.keys, self._kept.values))
        keys, values = (
            torch.cat([clean.expand(len(new), -1, -1, -1), new], 2)
            for clean, new in zip(before, (keys, values), strict=True)
        )
        return keys, values
