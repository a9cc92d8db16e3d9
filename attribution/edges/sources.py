"""What every node adds at its leaf, and what every latent reads at its site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from attribution.baseline import active_in, unless_zero
from attribution.edges.adjoints import Adjoint, earlier, groups
from attribution.edges.local_pass import LocalPass
from attribution.edges.node_table import NodeTable, SiteNodes
from attribution.edges.paths import Paths
from circuits import Dictionary, Reference, Site, SplicedModel
from circuits.active import Active, constant, write_each
from circuits.cross_layer import Carried
from circuits.trace import SiteTrace


@dataclass(frozen=True, eq=False)
class Sources:
    """The nodes at one leaf, as vectors `[d]` that they add there, position by position; float32.

    Attributes:
        vectors: `[n, d]`, at each position `acts . W_dec` of the latents that write there, then the
            error (or the embedding), then `b_dec` where the dictionary reads; all less what they
            are in the reference.
        columns: Which of all nodes each is, `[n]`. A bias is there at every position.
        pos: Ascending, `[n]`.
        n_pos: Number of positions.
        bias_at: Index of the bias; `None` at the embedding.
        coordinates: `vectors` along the basis of `attribution.edges.paths` below which the leaf
            lies, `[n, m]`; `None` where no paths come.
    """

    vectors: Tensor
    columns: np.ndarray
    pos: np.ndarray
    n_pos: int
    bias_at: int | None
    coordinates: Tensor | None = None

    @classmethod
    def of(cls, nodes: Sequence[Written], bias_at: int | None) -> Sources:
        """From those of each kind."""
        pos = np.concatenate([part.pos for part in nodes])
        order = pos.argsort(kind="stable")
        vectors = torch.cat([part.vectors for part in nodes])
        columns = np.concatenate([part.columns for part in nodes])
        at = torch.from_numpy(order).to(vectors.device)
        return cls(vectors[at], columns[order], pos[order], int(pos.max()) + 1, bias_at)

    def among(self, kept: np.ndarray) -> Sources:
        """Those that are kept, by a mask of all nodes; a bias that is not has edges of 0."""
        rows = np.flatnonzero(kept[self.columns])
        at = torch.from_numpy(rows).to(self.vectors.device)
        return replace(
            self,
            vectors=self.vectors[at],
            columns=self.columns[rows],
            pos=self.pos[rows],
            coordinates=None if self.coordinates is None else self.coordinates[at],
        )

    @cached_property
    def starts(self) -> list[int]:
        """Where each position's vectors begin, `[pos + 1]`."""
        return [0, *np.cumsum(self.counts).tolist()]

    @cached_property
    def counts(self) -> list[int]:
        """How many vectors there are at each position, `[pos]`."""
        return np.bincount(self.pos, minlength=self.n_pos).tolist()

    @cached_property
    def order(self) -> np.ndarray:
        """All vectors but the biases, by their columns."""
        order = self.columns.argsort(kind="stable")
        return order if self.bias_at is None else order[self.columns[order] != self.bias_at]

    def along(self, basis: Tensor) -> Sources:
        """With coordinates along the rows of `basis [m, d]`."""
        return replace(self, coordinates=self.vectors @ basis.T)

    def edges(self, grad: Adjoint | Paths) -> list[Piece]:
        """How far each source moves each of k targets, which are in the order of their positions.

        A target that is alone is reached from its own position, one that is spread from all of
        them: one matrix product a position.
        """
        if grad.spread is None:
            return [self._alone(grad, pos, targets) for pos, targets in groups(grad.pos)]
        assert grad.first is not None
        vectors = self.vectors
        if isinstance(grad, Paths):
            assert self.coordinates is not None
            vectors = self.coordinates[:, grad.rows]
        first, stop = grad.first, grad.first + len(grad.spread)
        values = self._room(first, stop, len(grad.pos))
        rows = vectors[self.starts[first] : self.starts[stop]].split(self.counts[first:stop])
        outs = values[:-1].split(self.counts[first:stop])
        before = earlier(grad.pos, first, stop)
        for begin, row, there, out in zip(before, rows, grad.spread.mT, outs, strict=True):
            if begin:  # targets at earlier positions
                out[:, :begin] = 0
                out, there = out[:, begin:], there[:, begin:]
            torch.mm(row, there, out=out)
        if grad.alone is not None:
            for pos, targets in groups(grad.pos):
                out = outs[pos - first][:, targets]
                out.addmm_(self.vectors[self._at(pos)], grad.alone[targets].T)
        return [self._piece(first, stop, slice(0, len(grad.pos)), values)]

    def _at(self, pos: int) -> slice:
        """The vectors at a position."""
        return slice(self.starts[pos], self.starts[pos + 1])

    def _alone(self, grad: Adjoint | Paths, pos: int, targets: slice) -> Piece:
        """The edges to those targets that are at one position, from there."""
        assert grad.alone is not None
        values = self._room(pos, pos + 1, targets.stop - targets.start)
        torch.mm(self.vectors[self._at(pos)], grad.alone[targets].T, out=values[:-1])
        return self._piece(pos, pos + 1, targets, values)

    def _room(self, first: int, stop: int, k: int) -> Tensor:
        """For the edges from the vectors at positions from `first` to before `stop`, and a bias."""
        return self.vectors.new_empty(self.starts[stop] - self.starts[first] + 1, k)

    def _piece(self, first: int, stop: int, targets: slice, values: Tensor) -> Piece:
        """From the products of the vectors; those with the bias are summed."""
        start = self.starts[first]
        rows = self.order[(self.order >= start) & (self.order < self.starts[stop])]
        columns, pos = self.columns[rows], self.pos[rows]
        rows = rows - start
        if self.bias_at is not None:
            biases = np.flatnonzero(self.columns[start : self.starts[stop]] == self.bias_at)
            values[-1] = values[torch.from_numpy(biases).to(values.device)].sum(0)
            rows = np.append(len(values) - 1, rows)
            columns, pos = np.append(self.bias_at, columns), np.append(-1, pos)
        return Piece(targets, rows, columns, pos, values)


@dataclass(frozen=True, eq=False)
class Written:
    """Nodes of one kind at a leaf.

    Attributes:
        pos: Their positions, ascending, `[n]`.
        columns: Which of all nodes they are, `[n]`.
        vectors: What they add there, `[n, d]`.
    """

    pos: np.ndarray
    columns: np.ndarray
    vectors: Tensor

    @classmethod
    def everywhere(cls, at: range | int, vectors: Tensor) -> Written:
        """A node at each position, or one (a bias) at all of them."""
        pos = np.arange(len(vectors))
        columns = np.full_like(pos, at) if isinstance(at, int) else at.start + pos
        return cls(pos, columns, vectors)


@dataclass(frozen=True, eq=False)
class Piece:
    """Edges from the nodes of one leaf to neighbouring targets of a batch.

    Attributes:
        targets: Which of the batch.
        rows: Where among `values` the edges are, source by source, `[n]`.
        columns: Indices of the sources, `[n]`; ascending but for latents of lower layers.
        pos: Their positions, -1 for a bias, `[n]`.
        values: `[m, k]`.
    """

    targets: slice
    rows: np.ndarray
    columns: np.ndarray
    pos: np.ndarray
    values: Tensor

    @classmethod
    def joined(cls, pieces: Sequence[Piece]) -> Piece:
        """One of those that have the same targets, in their order."""
        if len(pieces) == 1:
            return pieces[0]
        starts = np.cumsum([0, *(len(piece.values) for piece in pieces[:-1])])
        rows = [start + piece.rows for start, piece in zip(starts, pieces, strict=True)]
        return cls(
            pieces[0].targets,
            np.concatenate(rows),
            np.concatenate([piece.columns for piece in pieces]),
            np.concatenate([piece.pos for piece in pieces]),
            torch.cat([piece.values for piece in pieces]),
        )


@dataclass(frozen=True, eq=False)
class Readers:
    """The latents of one site, as what they read.

    Attributes:
        nodes: Which they are.
        reads: Their columns of the encoder, `[n, d_in]`, in the dictionary's dtype.
        biases: Their encoder biases, `[n]`, float32; against a reference zeros.
    """

    nodes: SiteNodes
    reads: Tensor
    biases: Tensor


def find_sources(
    model: SplicedModel, table: NodeTable, cut: LocalPass, reference: Reference | None = None
) -> tuple[dict[Site | None, Sources], dict[Site, Readers]]:
    """Sources leaf by leaf and readers site by site; each dictionary is read once.

    An error's vector is what the site writes less its bias, its skip connection and the latents
    *that are nodes*: latents left out of the graph are carried by their error node, so that sums
    close. Against a reference, that less the same there.
    """
    reference = unless_zero(reference)
    embedding = cut.leaves[None].detach()[0].float()
    if reference is not None:
        embedding = embedding - reference.trace.embedding.float()
    tokens = Written.everywhere(range(table.n_pos), embedding)
    sources: dict[Site | None, Sources] = {None: Sources.of([tokens], None)}
    readers = {}
    carried = Carried()
    written: dict[Site, list[Written]] = {site: [] for site in table.sites}
    for site, nodes in table.sites.items():
        dictionary, latents = model.dictionaries[site], nodes.latents
        there = None if reference is None else reference.trace.sites[site]
        if there is not None:
            change = latents.acts.float() - there.at(latents.pos, latents.latent).float()
            latents = Active(latents.pos, latents.latent, change)
        pos, columns = latents.pos.cpu().numpy(), np.array(nodes.latents_at, dtype=int)
        for leaf, W_dec in zip(model.writes_to(site), dictionary.decoders, strict=True):
            vectors = W_dec[latents.latent].float() * latents.acts.float()[:, None]
            written[leaf].append(Written(pos, columns, vectors))
        own, *later = _explained(dictionary, latents, there, table.n_pos)
        error, bias = _left(dictionary, carried.up(site, own, later), cut, site)
        b_enc = dictionary.b_enc[latents.latent].float()
        if there is not None:  # a constant has no difference
            error, bias, b_enc = error - there.error.float(), bias * 0, b_enc * 0
        rest = (
            Written.everywhere(nodes.errors_at, error),
            Written.everywhere(nodes.bias_at, bias),
        )
        sources[site] = Sources.of([*written.pop(site), *rest], nodes.bias_at)
        readers[site] = Readers(nodes, dictionary.W_enc.T[latents.latent], b_enc)
    return sources, readers


def _explained(
    dictionary: Dictionary, change: Active, there: SiteTrace | None, n_pos: int
) -> list[Tensor]:
    """What the nodes bring to each leaf, and all latents of the reference, `[pos, d]` each."""
    nodes = write_each(dictionary.decoders, change, n_pos)
    if there is None:
        return nodes
    every = write_each(dictionary.decoders, active_in(there), n_pos)
    return [a + b for a, b in zip(nodes, every, strict=True)]


def _left(
    dictionary: Dictionary, decoded: Tensor, cut: LocalPass, site: Site
) -> tuple[Tensor, Tensor]:
    """The errors and the bias at the leaf of `site`, `[pos, d]`; latents `decoded` the rest."""
    reads = cut.reads[:, None]
    x, written = cut.inputs[site].detach()[0].float(), cut.leaves[site].detach()[0].float()
    fixed = constant(dictionary, x).float() * reads
    return written - fixed - decoded.float(), dictionary.b_dec.float() * reads
