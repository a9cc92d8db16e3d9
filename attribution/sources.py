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
from circuits.active import constant, write_active


@dataclass(frozen=True, eq=False)
class Sources:
    """The nodes at one leaf, as vectors `[d]` that they add there; float32.

    Attributes:
        latents: `acts . W_dec`, `[n, d]`, by ascending position.
        starts: Where each position's latents begin, `[pos + 1]`.
        latents_at: Indices of the latents among all nodes.
        vectors: One a position, `[pos, d]`: the error, or the embedding.
        vectors_at: Indices of those nodes.
        bias: `b_dec` where the dictionary reads, `[pos, d]`; `None` at the embedding.
        bias_at: Its index.
    """

    latents: Tensor
    starts: list[int]
    latents_at: range
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
        n = len(grads)
        vectors = self.vectors[first : first + n]
        blocks = [] if self.bias is None else [self._from_bias(first, grads)]
        blocks += [
            grads[i] @ self.latents[self.starts[first + i] : self.starts[first + i + 1]].T
            for i in range(n)
        ]
        blocks.append(torch.bmm(grads, vectors[:, :, None])[..., 0].T)
        latents = range(self.starts[first], self.starts[first + n])
        bias = [] if self.bias is None else [self.bias_at]
        columns = np.concatenate(
            [
                np.array(bias, int),
                self.latents_at.start + np.arange(latents.start, latents.stop),
                self.vectors_at.start + np.arange(first, first + n),
            ]
        )
        positions = np.arange(first, first + n)
        pos = np.concatenate(
            [
                np.full(len(bias), -1),
                np.repeat(positions, np.diff(self.starts[first : first + n + 1])),
                positions,
            ]
        )
        return Piece(targets, columns, pos, torch.cat(blocks, 1))

    def _from_bias(self, first: int, grads: Tensor) -> Tensor:
        assert self.bias is not None
        bias = self.bias[first : first + len(grads), :, None]
        return torch.bmm(grads, bias)[..., 0].sum(0)[:, None]


@dataclass(frozen=True, eq=False)
class Piece:
    """Edges from the nodes of one leaf to neighbouring targets of a batch.

    Attributes:
        targets: Which of the batch.
        columns: Indices of the sources, ascending, `[n]`.
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
    none, tokens = [0] * (table.n_pos + 1), range(table.n_pos)
    sources: dict[Site | None, Sources] = {
        None: Sources(embedding[:0], none, range(0), embedding, tokens, None, -1)
    }
    readers = {}
    for site, nodes in table.sites.items():
        dictionary = model.dictionaries[site]
        chosen = nodes.latents.latent
        sources[site] = _sources(dictionary, nodes, site, cut)
        readers[site] = Readers(nodes, dictionary.W_enc.T[chosen], dictionary.b_enc[chosen].float())
    return sources, readers


def _sources(dictionary: Dictionary, nodes: SiteNodes, site: Site, cut: LocalPass) -> Sources:
    active, reads = nodes.latents, cut.reads[:, None]
    x, written = cut.inputs[site].detach()[0].float(), cut.leaves[site].detach()[0].float()
    decoded, _ = write_active(dictionary.W_dec, active, len(x))
    fixed = constant(dictionary, x).float() * reads
    counts = torch.bincount(active.pos, minlength=len(x))
    return Sources(
        latents=dictionary.W_dec[active.latent].float() * active.acts.float()[:, None],
        starts=[0, *counts.cumsum(0).tolist()],
        latents_at=nodes.latents_at,
        vectors=written - fixed - decoded.float(),
        vectors_at=nodes.errors_at,
        bias=dictionary.b_dec.float() * reads,
        bias_at=nodes.bias_at,
    )
