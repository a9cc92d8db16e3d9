"""What every node adds at its leaf, and what every latent reads at its site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attribution.adjoints import Adjoint
from attribution.baseline import active_in, decoded, unless_zero, values_of
from attribution.local_pass import LocalPass
from attribution.node_table import NodeTable, SiteNodes
from circuits import Dictionary, Reference, Site, SplicedModel
from circuits.active import Active, constant
from circuits.cross_layer import Carried
from circuits.trace import SiteTrace


@dataclass(frozen=True, eq=False)
class Writers:
    """The latents of one site that write at a leaf: their own, or one above it.

    Attributes:
        starts: Where each position's latents begin among them, `[pos + 1]`.
        at: Indices of the latents among all nodes.
    """

    starts: list[int]
    at: range

    def indices(self, first: int, stop: int) -> np.ndarray:
        """Those at positions from `first` to before `stop`, among all nodes."""
        return self.at.start + np.arange(self.starts[first], self.starts[stop])

    def positions(self, first: int, stop: int) -> np.ndarray:
        """Of those, `[n]`."""
        return np.repeat(np.arange(first, stop), np.diff(self.starts[first : stop + 1]))


@dataclass(frozen=True, eq=False)
class Sources:
    """The nodes at one leaf, as vectors `[d]` that they add there; float32.

    Attributes:
        vectors: Those of each position, `[n, d]`: `acts . W_dec` of the latents of each of
            `writers`, then the error (or the embedding), then `b_dec` where the dictionary reads;
            all less what they are in the reference.
        writers: The latents that write there, site by site: none at the embedding, several sites'
            where cross-layer transcoders of lower layers write too.
        errors_at: Indices of the errors, or of the tokens.
        bias_at: Index of the bias; `None` at the embedding.
    """

    vectors: list[Tensor]
    writers: tuple[Writers, ...]
    errors_at: range
    bias_at: int | None

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
        by_position = [
            (grad @ self.vectors[pos].T).split(self._sizes(pos), 1)
            for pos, grad in enumerate(grads, first)
        ]
        *by_writer, errors = zip(*by_position, strict=True)
        positions = np.arange(first, stop)
        columns = [writers.indices(first, stop) for writers in self.writers]
        pos = [writers.positions(first, stop) for writers in self.writers]
        columns.append(self.errors_at.start + positions)
        pos.append(positions)
        if self.bias_at is not None:
            biases = errors
            *by_writer, errors = by_writer
            by_writer.insert(0, (torch.cat(biases, 1).sum(1, keepdim=True),))
            columns.insert(0, np.array([self.bias_at]))
            pos.insert(0, np.array([-1]))
        values = torch.cat([part for parts in (*by_writer, errors) for part in parts], 1)
        return Piece(targets, np.concatenate(columns), np.concatenate(pos), values)

    def _sizes(self, pos: int) -> list[int]:
        """How many vectors of each kind there are at one position."""
        sizes = [writers.starts[pos + 1] - writers.starts[pos] for writers in self.writers]
        return [*sizes, 1] if self.bias_at is None else [*sizes, 1, 1]


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
    sources: dict[Site | None, Sources] = {
        None: Sources(list(embedding.split(1)), (), range(table.n_pos), None)
    }
    readers = {}
    carried = Carried()
    written: dict[Site, list[Tensor]] = {site: [] for site in table.sites}
    writers: dict[Site, list[Writers]] = {site: [] for site in table.sites}
    for site, nodes in table.sites.items():
        dictionary, latents = model.dictionaries[site], nodes.latents
        there = None if reference is None else reference.trace.sites[site]
        if there is not None:
            change = latents.acts.float() - values_of(there, latents)
            latents = Active(latents.pos, latents.latent, change)
        counts = torch.bincount(latents.pos, minlength=table.n_pos)
        here = Writers([0, *counts.cumsum(0).tolist()], nodes.latents_at)
        for leaf, W_dec in zip(model.writes_to(site), dictionary.decoders, strict=True):
            writers[leaf].append(here)
            written[leaf].append(W_dec[latents.latent].float() * latents.acts.float()[:, None])
        own, *later = _explained(dictionary, latents, there, table.n_pos)
        error, bias = _left(dictionary, carried.up(site, own, later), cut, site)
        b_enc = dictionary.b_enc[latents.latent].float()
        if there is not None:  # a constant has no difference
            error, bias, b_enc = error - there.error.float(), bias * 0, b_enc * 0
        sources[site] = Sources(
            _by_position(writers[site], written.pop(site), error, bias),
            tuple(writers[site]),
            nodes.errors_at,
            nodes.bias_at,
        )
        readers[site] = Readers(nodes, dictionary.W_enc.T[latents.latent], b_enc)
    return sources, readers


def _explained(
    dictionary: Dictionary, change: Active, there: SiteTrace | None, n_pos: int
) -> list[Tensor]:
    """What the nodes bring to each leaf, and all latents of the reference, `[pos, d]` each."""
    nodes = decoded(dictionary, change, n_pos)
    if there is None:
        return nodes
    return [a + b for a, b in zip(nodes, decoded(dictionary, active_in(there), n_pos), strict=True)]


def _left(
    dictionary: Dictionary, decoded: Tensor, cut: LocalPass, site: Site
) -> tuple[Tensor, Tensor]:
    """The errors and the bias at the leaf of `site`, `[pos, d]`; latents `decoded` the rest."""
    reads = cut.reads[:, None]
    x, written = cut.inputs[site].detach()[0].float(), cut.leaves[site].detach()[0].float()
    fixed = constant(dictionary, x).float() * reads
    return written - fixed - decoded.float(), dictionary.b_dec.float() * reads


def _by_position(
    writers: Sequence[Writers], written: Sequence[Tensor], error: Tensor, bias: Tensor
) -> list[Tensor]:
    """The vectors of each position: latents site by site, error, bias."""
    return [
        torch.cat(
            [
                *(
                    vectors[here.starts[pos] : here.starts[pos + 1]]
                    for here, vectors in zip(writers, written, strict=True)
                ),
                error[pos : pos + 1],
                bias[pos : pos + 1],
            ]
        )
        for pos in range(len(error))
    ]
