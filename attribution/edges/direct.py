"""Direct effects: how much a source moves a target with every other spliced site held constant.

1. *One pass* cut at every spliced site (`attribution.edges.local_pass`).
2. *Targets go down together*: `J^T W_enc[:, target]` at every leaf that reaches a site, J the
   Jacobian of the stretch of model between. Where no live attention lies between, J is a chain of
   linear maps that the prompt has set, applied to all targets at once
   (`attribution.edges.descent`); where it does, and to what the graph explains, autograd takes a
   row of gradients a target.
3. *One product a position*: `acts . W_dec[source] . J^T . W_enc[:, target]`; errors and tokens with
   their vectors in the place of `acts . W_dec`, biases with `b_dec`, summed over positions.

Against a reference, `acts` and the vectors are what they are on the prompt less what they are
there, and biases count nothing (`attribution.baseline`). A latent that is off on the prompt and on
in the reference is a source; it is no target, for nothing goes on through a latent that is off.

A target's gradient never travels beyond its direct predecessors, nor to positions after its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from tqdm import tqdm

from attribution.edges.adjoints import Adjoint
from attribution.edges.arrivals import Arrivals
from attribution.edges.descent import ARRIVED, attentions_below, descend
from attribution.edges.expectation import expected
from attribution.edges.local_pass import LocalPass
from attribution.edges.node_table import NodeTable
from attribution.edges.path_maps import PathMaps
from attribution.edges.rows import EdgeRows, Rows
from attribution.edges.side_by_side import side_by_side
from attribution.edges.sources import Piece, Readers, Sources, find_sources
from circuits import Reference, Site, SplicedModel
from circuits.memory import halving

WORKING_MEMORY = 2**28
"""Bytes that one batch of targets may take."""

LARGE = 5000
"""Targets from which on it is worth saying beforehand how long they will take."""


@dataclass(frozen=True, eq=False)
class Stretches:
    """Everything that edges are computed from.

    Attributes:
        table: The nodes.
        cut: The pass.
        sources: What every node adds at its leaf, and where the tokens have arrived.
        readers: What every latent reads.
        maps: For going down as paths; `None` where that does not pay.
        memory: Bytes that one batch of targets may take.
        kept: Between which of the nodes there are edges, `[n]`; `None` for all.
    """

    table: NodeTable
    cut: LocalPass
    sources: Mapping[Site | str | None, Sources | Arrivals]
    readers: Mapping[Site, Readers]
    maps: PathMaps | None
    memory: int
    kept: np.ndarray | None = None

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        model: SplicedModel,
        table: NodeTable,
        cut: LocalPass,
        memory: int = WORKING_MEMORY,
        reference: Reference | None = None,
    ) -> Stretches:
        """Reads each dictionary once.

        Args:
            model: The spliced model.
            table: Every token, bias and error node of the prompt, the chosen latents, logit nodes.
            cut: From `local_pass`.
            memory: Bytes that one batch of targets may take, besides the edges themselves. A batch
                for which there is no memory is halved; the edges stay what they are.
            reference: What edges are against; zero by default.
        """
        found, readers = find_sources(model, table, cut, reference)
        sources: dict[Site | str | None, Sources | Arrivals] = {**found}
        arrivals = Arrivals.of(cut, found[None].vectors, memory // 4)
        if arrivals is not None:
            sources[ARRIVED] = arrivals
        maps = _path_maps(table, cut, memory // 4)
        if maps is not None:
            for leaf, here in sources.items():
                below = _crossed_above(leaf)
                if below is not None:
                    sources[leaf] = here.along(maps.basis[below])
        return cls(table, cut, sources, readers, maps, memory)

    def among(self, kept: np.ndarray) -> Stretches:
        """With edges between the nodes `kept [n]` alone, each what it is among all of them.

        Tokens and logit nodes are kept.
        """
        sources = {
            leaf: here if isinstance(here, Arrivals) else here.among(kept)
            for leaf, here in self.sources.items()
        }
        return replace(self, sources=sources, kept=kept)

    @property
    def targets(self) -> dict[Site, Tensor]:
        """The latents of each site that have incoming edges, `[k]`, ascending."""
        targets = {site: nodes.targets for site, nodes in self.table.sites.items()}
        if self.kept is None:
            return targets
        kept = torch.from_numpy(self.kept)
        return {
            site: some[kept[self.table.sites[site].latents_at.start + some]]
            for site, some in targets.items()
        }

    def edges(self) -> sparse.csr_array:
        """Direct effects `[target, source]`, `[n, n]`, float32.

        Entry `[t, s]` is the direct effect of node `s` on the pre-activation of latent `t`, or on
        what is explained if `t` is a logit node. Against zero, the entry of a latent and its own
        site's bias is `b_enc`. Exact zeros are not stored.

        Raises:
            UserError: there is not enough memory for a single target.
        """
        targets = self.targets
        n_latents = sum(map(len, targets.values()))
        rows = EdgeRows(len(self.table), n_latents + len(self.table.logits))
        with self.bar("edges", n_latents) as bar:
            self.add_latents(rows, targets, bar)
        self.add_logits(rows)
        return rows.matrix()

    def bar(self, label: str, n_latents: int, *, stored: bool = True) -> tqdm:
        """For work on so many targets; of many it says beforehand how long they will take."""
        if n_latents >= LARGE and sys.stderr.isatty():
            label = f"{label}, {expected(self, stored=stored)}"
        return tqdm(total=n_latents, desc=label, unit="latent", disable=None, delay=1, leave=None)

    def add_latents(self, rows: Rows, chosen: Mapping[Site, Tensor], bar: tqdm) -> None:
        """The edges to the latents `chosen [k]` of each site, ascending."""
        for site, part, pieces in self.batches(chosen):
            nodes = self.table.sites[site]
            rows.add(nodes.latents_at.start + part.numpy(), nodes.latents.pos[part], pieces)
            bar.update(len(part))

    def add_logits(self, rows: Rows) -> None:
        """The edges to what is explained."""
        scores, n_pos = self.cut.scores, self.table.n_pos
        at = self.table.logits_at.start

        def pieces(part: Tensor) -> list[Piece]:
            seeds = torch.eye(len(scores), dtype=scores.dtype)[part].to(scores.device)
            return self._by_autograd(scores, seeds, last[part])

        last = torch.full((len(scores),), n_pos - 1)
        size = max(1, self.memory // (n_pos * self._width(by_autograd=True)))
        for batch in torch.arange(len(scores)).split(size):
            for part, found in halving(pieces, batch):
                rows.add(at + part.numpy(), last[part], found)

    def batches(self, chosen: Mapping[Site, Tensor]) -> Iterator[tuple[Site, Tensor, list[Piece]]]:
        """The edges to the latents `chosen [k]` of each site, ascending, within the memory."""

        def run(job: tuple[Site, Tensor]) -> list[tuple[Site, Tensor, list[Piece]]]:
            site, batch = job
            found = halving(lambda part: self.pieces(site, part), batch)
            return [(site, part, pieces) for part, pieces in found]

        jobs = [(site, part) for site, all_ in chosen.items() for part in self._split(site, all_)]
        # one backward pass after the other: they share what the forward pass recorded
        for by_autograd, some in groupby(jobs, lambda job: self._needs_autograd(job[0])):
            these = list(some)
            few = by_autograd or len(these) < FEW_BATCHES * self._n_threads
            for found in side_by_side(run, these, 1 if few else self._n_threads):
                yield from found

    @torch.no_grad()
    def pieces(self, site: Site, chosen: Tensor) -> list[Piece]:
        """The edges to one batch of latents, `chosen [k]` of `site`, ascending."""
        nodes, readers = self.table.sites[site], self.readers[site]
        pos, reads = nodes.latents.pos[chosen], readers.reads[chosen]
        if self._needs_autograd(site):
            x = self.cut.inputs[site]
            seeds = x.new_zeros(len(chosen), *x.shape)
            seeds[torch.arange(len(chosen)), 0, pos] = reads.to(x.dtype)
            pieces = self._by_autograd(x, seeds, pos, below=site)
        else:
            arrived = ARRIVED in self.sources
            grad = Adjoint(reads.float(), pos)
            down = descend(self.cut, site, grad, arrived=arrived, maps=self.maps)
            by_leaf = [self.sources[leaf].edges(grad) for leaf, grad in down]
            pieces = [piece for leaf in reversed(by_leaf) for piece in leaf]
        if self.kept is None or self.kept[nodes.bias_at]:
            pieces.append(_own_bias(nodes.bias_at, readers.biases[chosen]))
        same = groupby(pieces, lambda piece: (piece.targets.start, piece.targets.stop))
        return [Piece.joined(list(some)) for _, some in same]

    def _by_autograd(
        self, values: Tensor, seeds: Tensor, pos: Tensor, below: Site | None = None
    ) -> list[Piece]:
        """A row of gradients for each of `seeds [k, ...]`, at all leaves or those below a site."""
        leaves = [s for s in self.cut.leaves if below is None or s is None or s < below]
        with torch.enable_grad():
            grads = torch.autograd.grad(
                values,
                [self.cut.leaves[leaf] for leaf in leaves],
                seeds,
                is_grads_batched=True,
                allow_unused=True,
                retain_graph=True,
            )
        pieces: list[Piece] = []
        for leaf, grad in zip(leaves, grads, strict=True):
            if grad is None:  # every path crosses another site
                continue
            spread = Adjoint(grad[:, 0].transpose(0, 1).float().contiguous(), pos, 0)
            pieces += self.sources[leaf].edges(spread)
        return pieces

    def _needs_autograd(self, site: Site) -> bool:
        """Whether live attention lies below `site`: its derivative is no map held by the prompt."""
        return not self.cut.freeze.attention and attentions_below(site, self.cut.leaves) > 0

    @property
    def _n_threads(self) -> int:
        """Batches at a time: a batch is too little work for many cores."""
        return torch.get_num_threads() if self.cut.scores.device.type == "cpu" else 1

    def _split(self, site: Site, chosen: Tensor) -> Iterator[Tensor]:
        """`chosen [k]`, ascending, in batches within the memory.

        Targets that spread are kept with those at their own position, as far as that leaves enough
        for a large matrix product: a batch reaches back from its last position.
        """
        if not len(chosen):
            return
        places = self.table.sites[site].latents.pos[chosen].tolist()
        spreads = attentions_below(site, self.cut.leaves) > 0
        by_autograd = self._needs_autograd(site)
        width = self._width(by_autograd=by_autograd)
        memory = self.memory if by_autograd else self.memory // self._n_threads
        start = n_rows = 0
        for i, place in enumerate(places):
            reach = self.table.n_pos if by_autograd else place + 1 if spreads else 1
            full = (n_rows + reach) * width > memory
            large = spreads and n_rows >= ENOUGH_ROWS and place != places[i - 1]
            if i > start and (full or large):
                yield chosen[start:i]
                start, n_rows = i, 0
            n_rows += reach
        yield chosen[start:]

    def _width(self, *, by_autograd: bool) -> int:
        """Bytes that a target takes at each position it reaches."""
        leaves = self.cut.leaves.values()
        width = max(leaf.shape[-1] for leaf in leaves)
        if by_autograd:  # a gradient at every leaf
            return 4 * COPIES * width * len(leaves)
        for number, layer in enumerate(self.cut.layers):
            if Site(number, "transcoder") not in self.cut.leaves:  # targets may go through the MLP
                width = max(width, layer.mlp.gate.shape[-1])
        if self.maps is not None:
            heads = self.cut.layers[0].attention.W_O.shape[1]
            width = max(width, (self.maps.width * (3 + self.maps.depth) + 2 * heads) // COPIES)
        return 4 * COPIES * width


COPIES = 4
"""Tensors of a batch's size that are there at a time."""

FEW_BATCHES = 4
"""A thread: fewer are better computed one after the other, each by all threads."""

ENOUGH_ROWS = 4096
"""Rows of a matrix product that use the machine well."""


def _path_maps(table: NodeTable, cut: LocalPass, memory: int) -> PathMaps | None:
    if not cut.freeze.attention:
        return None
    crossed = max(attentions_below(site, cut.leaves) for site in table.sites)
    per_site = sum(len(nodes.latents.pos) for nodes in table.sites.values()) / len(table.sites)
    return PathMaps.of(
        cut.layers, n_pos=table.n_pos, per_site=per_site, crossed=crossed, memory=memory
    )


def _crossed_above(leaf: Site | str | None) -> int | None:
    """The layer above whose attention gradients are that come to a leaf, if they come as paths."""
    if leaf is None or leaf == ARRIVED:
        return -1 if leaf is None else 0
    assert isinstance(leaf, Site)
    if leaf.kind == "embed":
        return -1
    return None if leaf.kind == "attn" else leaf.layer


def _own_bias(bias_at: int, biases: Tensor) -> Piece:
    """The encoder's bias, which a latent's own site adds."""
    every = slice(0, len(biases))
    return Piece(every, np.zeros(1, int), np.array([bias_at]), np.array([-1]), biases[None])
