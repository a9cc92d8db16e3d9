"""Many edited passes of one prompt, of which only what differs from the clean pass is computed.

A row of a batch is one edited pass. Below the first site that it edits nothing changes, nor at
positions before the first that it edits. So

1. the clean pass is *kept* (`circuits.kept`);
2. each row *starts*: its first site reads what it read in the clean pass, so that what its edits
   change there is known without a pass, and is added to what the clean pass has in that place;
3. rows *go up* together, each joining at its layer, from the lowest of their positions on;
   attention reads the clean keys and values of the positions before;
4. logits are *read* at the top, and at positions before the lowest from the clean pass.

The numbers are those of `SplicedModel.run` but for rounding: in half precision, where errors
downstream are frozen or dropped, the two may differ in which latents near their thresholds are on,
as two batch sizes of `run` may.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circuits.active import Active, write_active
from circuits.formula import Formula, read_active
from circuits.freeze import ForwardHook
from circuits.hooks import SiteHook, attention_cache, has_hooks, hooked, site_hooks
from circuits.interventions import Edit, Intervention, edit_at, new_values
from circuits.kept import Kept
from circuits.nodes import ErrorNode, LatentNode
from circuits.outputs import Logits, Output, Part, arrange, logit_positions, parts
from circuits.sites import Site

if TYPE_CHECKING:
    from circuits.model import SplicedModel

Row = Sequence[Intervention]
"""What is changed in one pass; nothing is the clean pass."""

Token = tuple[int, int]
"""A row and a position."""


@dataclass(frozen=True, eq=False)
class Start:
    """Where and how a row begins to differ from the clean pass.

    Attributes:
        layer: The first layer that is computed; the number of layers for none.
        site: Where in that layer `change` is added; None for what enters it.
        first: The lowest position at which the row changes anything; the last one of the prompt if
            it changes nothing.
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
    """Whether passes can be resumed.

    They cannot where more than logits is wanted, where a latent writes to several layers, or where
    somebody else's hooks expect whole passes.
    """
    crossing = any(model.dictionaries.summary(site).n_later for site in model.sites)
    logits = all(isinstance(part, Logits) for part in parts(output))
    return logits and not crossing and not has_hooks(model.bridge)


@torch.no_grad()
def starts(kept: Kept, rows: Sequence[Row]) -> list[Start]:
    """The start of each row. Each site's dictionary is read once for all rows.

    Args:
        kept: The clean pass, with the sites of all rows.
        rows: Of which each names a node once.
    """
    firsts = [min((i.node.site for i in row), default=None) for row in rows]
    here: defaultdict[Site, list[int]] = defaultdict(list)
    for n, site in enumerate(firsts):
        if site is not None:
            here[site].append(n)
    nothing = (), kept.entering[0][0, :0]
    changes: dict[int, tuple[tuple[int, ...], Tensor]] = {}
    for site in sorted(here):
        at_site = [[i for i in rows[n] if i.node.site == site] for n in here[site]]
        changes |= zip(here[site], _first_changes(kept, site, at_site), strict=True)
    return [
        _start(kept, row, site, *changes.get(n, nothing))
        for n, (row, site) in enumerate(zip(rows, firsts, strict=True))
    ]


@torch.no_grad()
def resume(kept: Kept, rows: Sequence[Start], output: Output) -> Any:
    """What `output` names of each row, as `SplicedModel.run` gives it.

    Args:
        rows: One or more; the nearer they are in layer and position, the less is computed in vain.
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
    kept: Kept, row: Row, site: Site | None, positions: tuple[int, ...], change: Tensor
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


def _first_changes(
    kept: Kept, site: Site, rows: Sequence[Row]
) -> list[tuple[tuple[int, ...], Tensor]]:
    """For each row, the positions of its edits at `site` and what they add to what it wrote there.

    The site is read once at each position, whatever the number of rows that edit it there.
    """
    positions = [tuple(sorted({i.node.pos for i in row})) for row in rows]
    every = [(n, pos) for n, of_row in enumerate(positions) for pos in of_row]
    tokens = {at: token for token, at in enumerate(every)}
    edits = sorted(
        ((tokens[n, i.node.pos], i) for n, row in enumerate(rows) for i in row),
        key=lambda edit: edit[0],
    )
    dictionary, device = kept.model.dictionaries[site], kept.ids.device
    at = torch.tensor(sorted({pos for _, pos in every}), device=device)
    written = kept.written[site][:, at]
    active, decoded = read_active(dictionary, kept.read[site][:, at], kept.reads[:, at])
    errors = kept.error_rule(site, at)(written - decoded)[0]

    def of(kind: type) -> tuple[Tensor, Tensor, list[Intervention]]:
        """The token of each edit of such nodes, its place among those read, and the edit."""
        some = [(t, i) for t, i in edits if isinstance(i.node, kind)]
        pos = torch.tensor([i.node.pos for _, i in some], device=device, dtype=torch.long)
        token = torch.tensor([t for t, _ in some], device=device, dtype=torch.long)
        return token, torch.searchsorted(at, pos), [i for _, i in some]

    token, place, some = of(LatentNode)
    latent = token.new_tensor([i.node.latent for i in some if isinstance(i.node, LatentNode)])
    acts = active.at(place, latent, dictionary.d_sae)
    changed = Active(token, latent, new_values(acts, some) - acts)
    change, _ = write_active(dictionary.W_dec, changed, len(every))
    token, place, some = of(ErrorNode)
    if some:
        change.index_add_(0, token, (new_values(errors[place], some) - errors[place]).to(change))
    return list(zip(positions, change.split([len(of_row) for of_row in positions]), strict=True))


def _edit(tokens: Sequence[Row]) -> Edit:
    """The interventions at each of some tokens, which lie in one row one after the other."""
    placed = [((0, n), i) for n, interventions in enumerate(tokens) for i in interventions]
    return edit_at([place for place, _ in placed], [i for _, i in placed])


def _hooks(kept: Kept, rows: Sequence[Start], first: int) -> list[ForwardHook]:
    """What acts on the rows as they go up: their starts, later edits, and the convention."""
    model = kept.model
    starting: defaultdict[Site, list[tuple[int, Start]]] = defaultdict(list)
    later: defaultdict[Site, dict[Token, list[Intervention]]] = defaultdict(dict)
    for n, row in enumerate(rows):
        if row.site is not None:
            starting[row.site].append((n, row))
        for i in row.later:
            later[i.node.site].setdefault((n, i.node.pos), []).append(i)
    sites = {*starting, *later}
    if kept.downstream != "recompute":
        sites |= set(model.sites)
    table = []
    for site in sorted(sites):
        hook = _site_hook(kept, site, first, later[site], starting[site])
        table += site_hooks(model, site, hook)
    return table


def _site_hook(
    kept: Kept,
    site: Site,
    first: int,
    later: dict[Token, list[Intervention]],
    starting: Sequence[tuple[int, Start]],
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
            formula = Formula(kept.model.dictionaries).at(
                site, kept.reads[:, at], kept.error_rule(site, at), edit
            )
            new = formula(read.flatten(0, 1)[None, tokens], flat[None, tokens])
            flat = flat.index_copy(0, tokens, new[0])
        if starting:
            flat = flat.index_add(0, *_changes(starting, first, n_here, flat))
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
    cuts = {
        "attention_mask": lambda mask: mask[..., first:, :],
        "position_embeddings": lambda both: tuple(x[:, first:] for x in both),
        "position_ids": lambda ids: ids[..., first:],
        "cache_position": lambda positions: positions[first:],
    }
    return {
        name: cuts[name](x) if name in cuts and x is not None else x
        for name, x in kept.keywords[layer].items()
    }


def _read_logits(kept: Kept, x: Tensor, first: int, output: Output) -> Any:
    """Logits of what left the last layer, `[row, pos from first, d_model]`."""
    model = kept.model
    computed = logit_positions(output, kept.n_pos)
    clean = kept.entering[-1][:, [pos for pos in computed if pos < first]]
    changed = x[:, [pos - first for pos in computed if pos >= first]]
    logits = torch.cat(
        [
            model.bridge.unembed(model.bridge.ln_final(part)).expand(len(x), -1, -1)
            for part in (clean, changed)
            if part.shape[1]
        ],
        1,
    )
    seen: dict[Part, Tensor] = {}
    for part in parts(output):
        assert isinstance(part, Logits)
        seen[part] = model.family.capped(model.config, logits) if part.soft_capped else logits
    return arrange(output, seen, computed, kept.n_pos)


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
