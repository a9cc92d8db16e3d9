"""What every node adds at its leaf, and what every latent reads at its site."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attribution.adjoints import Adjoint
from attribution.local_pass import LocalPass
from attribution.node_table import NodeTable, SiteNodes
from circuits import Dictionary, Site, SplicedModel
from circuits.active import constant, write_active, write_later
from circuits.cross_layer import Carried


@dataclass(frozen=True, eq=False)
class Writers:
    """The latents of one site, as what they write at a leaf: their own, or one above it.

    Attributes:
        vectors: `acts . W_dec`, `[n, d]`, by ascending position; float32.
        starts: Where each position's latents begin, `[pos + 1]`.
        at: Indices of the latents among all nodes.
    """

    vectors: Tensor
    starts: list[int]
    at: range

    def rows(self, first: int, stop: int) -> range:
        """Which of them are at positions from `first` to before `stop`."""
        return range(self.starts[first], self.starts[stop])

    def indices(self, first: int, stop: int) -> np.ndarray:
        """The same, among all nodes."""
        rows = self.rows(first, stop)
        return self.at.start + np.arange(rows.start, rows.stop)

    def positions(self, first: int, stop: int) -> np.ndarray:
        """Of those, `[n]`."""
        return np.repeat(np.arange(first, stop), np.diff(self.starts[first : stop + 1]))


@dataclass(frozen=True, eq=False)
class Sources:
    """The nodes at one leaf, as vectors `[d]` that they add there; float32.

    Attributes:
        writers: The latents that write there, site by site: none at the embedding, several sites'
            where cross-layer transcoders of lower layers write too.
        vectors: One a position, `[pos, d]`: the error, or the embedding.
        vectors_at: Indices of those nodes.
        bias: `b_dec` where the dictionary reads, `[pos, d]`; `None` at the embedding.
        bias_at: Its index.
    """

    writers: tuple[Writers, ...]
    vectors: Tensor
    vectors_at: range
    bias: Tensor | None
    bias_at: int

    def edges(self, grad: Adjoint) -> list[Piece]:
        """How far each source moves each of k targets, which are in the order of their positions.

        A target that is alone is reached from its own position, one that is spread from all of
        them: one matrix product a position.
        """
        if grad.first is not None:
            return [self._piece(grad.first, grad.values, slice(0, len(grad.pos)))]
        ends = torch.unique_consecutive(grad.pos, return_counts=True)
        pieces, start = [], 0
        for pos, count in zip(*(x.tolist() for x in ends), strict=True):
            targets = slice(start, start + count)
            pieces.append(self._piece(pos, grad.values[None, targets], targets))
            start = targets.stop
        return pieces

    def _piece(self, first: int, grads: Tensor, targets: slice) -> Piece:
        """The edges from positions `first`, `first + 1`, ... by gradients `[n, k, d]` there."""
        stop = first + len(grads)
        vectors = self.vectors[first:stop]
        blocks = [] if self.bias is None else [self._from_bias(first, grads)]
        for writers in self.writers:
            for i, grad in enumerate(grads, first):
                rows = writers.rows(i, i + 1)
                blocks.append(grad @ writers.vectors[rows.start : rows.stop].T)
        blocks.append(torch.bmm(grads, vectors[:, :, None])[..., 0].T)
        bias = [] if self.bias is None else [self.bias_at]
        positions = np.arange(first, stop)
        columns = [writers.indices(first, stop) for writers in self.writers]
        pos = [writers.positions(first, stop) for writers in self.writers]
        return Piece(
            targets,
            np.concatenate([np.array(bias, int), *columns, self.vectors_at.start + positions]),
            np.concatenate([np.full(len(bias), -1), *pos, positions]),
            torch.cat(blocks, 1),
        )

    def _from_bias(self, first: int, grads: Tensor) -> Tensor:
        assert self.bias is not None
        bias = self.bias[first : first + len(grads), :, None]
        return torch.bmm(grads, bias)[..., 0].sum(0)[:, None]


@dataclass(frozen=True, eq=False)
class Piece:
    """Edges from the nodes of one leaf to neighbouring targets of a batch.

    Attributes:
        targets: Which of the batch.
        columns: Indices of the sources, `[n]`; ascending but for latents of lower layers.
        pos: Their positions, -1 for a bias, `[n]`.
        values: `[k, n]`.
    """

    targets: slice
    columns: np.ndarray
    pos: np.ndarray
    values: Tensor


@dataclass(frozen=True, eq=False)
class Readers:
    """The latents of one site, as what they read.

    Attributes:
        nodes: Which they are.
        reads: Their columns of the encoder, `[n, d_in]`, in the dictionary's dtype.
        biases: Their encoder biases, `[n]`, float32.
    """

    nodes: SiteNodes
    reads: Tensor
    biases: Tensor


def find_sources(
    model: SplicedModel, table: NodeTable, cut: LocalPass
) -> tuple[dict[Site | None, Sources], dict[Site, Readers]]:
    """Sources leaf by leaf and readers site by site; each dictionary is read once.

    An error's vector is what the site writes less its bias, its skip connection and the latents
    *that are nodes*: latents left out of the graph are carried by their error node, so that sums
    close.
    """
    embedding = cut.leaves[None].detach()[0].float()
    sources: dict[Site | None, Sources] = {
        None: Sources((), embedding, range(table.n_pos), None, -1)
    }
    readers = {}
    decoded = Carried()
    writers: dict[Site, list[Writers]] = {site: [] for site in table.sites}
    for site, nodes in table.sites.items():
        dictionary = model.dictionaries[site]
        chosen = nodes.latents.latent
        for there, W_dec in zip(model.writes_to(site), dictionary.decoders, strict=True):
            writers[there].append(_writers(W_dec, nodes))
        own, _ = write_active(dictionary.W_dec, nodes.latents, table.n_pos)
        total = decoded.up(site, own, write_later(dictionary, nodes.latents, table.n_pos))
        sources[site] = _sources(dictionary, nodes, tuple(writers[site]), total, cut, site)
        readers[site] = Readers(nodes, dictionary.W_enc.T[chosen], dictionary.b_enc[chosen].float())
    return sources, readers


def _writers(W_dec: Tensor, nodes: SiteNodes) -> Writers:
    active = nodes.latents
    counts = torch.bincount(active.pos, minlength=nodes.n_pos)
    return Writers(
        vectors=W_dec[active.latent].float() * active.acts.float()[:, None],
        starts=[0, *counts.cumsum(0).tolist()],
        at=nodes.latents_at,
    )


def _sources(
    dictionary: Dictionary,
    nodes: SiteNodes,
    writers: tuple[Writers, ...],
    decoded: Tensor,
    cut: LocalPass,
    site: Site,
) -> Sources:
    """The nodes at the leaf of `site`; `decoded [pos, d]` is what latents write there in all."""
    reads = cut.reads[:, None]
    x, written = cut.inputs[site].detach()[0].float(), cut.leaves[site].detach()[0].float()
    fixed = constant(dictionary, x).float() * reads
    return Sources(
        writers=writers,
        vectors=written - fixed - decoded.float(),
        vectors_at=nodes.errors_at,
        bias=dictionary.b_dec.float() * reads,
        bias_at=nodes.bias_at,
    )
