"""A sparse matrix that is made a few rows at a time: dense blocks in, compressed rows out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from attribution.edges.adjoints import groups
from attribution.edges.sources import Piece

MOST_ROOM = 1 << 27
"""Edges for which there is room at once, at most; what is not written to takes no memory."""


class Rows(Protocol):
    """What takes direct effects, as they come."""

    def add(self, nodes: np.ndarray, pos: Tensor, pieces: Sequence[Piece]) -> None:
        """Complete rows of a batch of targets.

        Args:
            nodes: Their indices among all nodes, `[k]`, ascending.
            pos: Their positions, ascending, `[k]`.
            pieces: From the first leaf to the last, for each target. What a source adds at several
                leaves is summed.
        """
        ...


class EdgeRows:
    """Rows of direct effects, as they come.

    Targets at one position are reached from the same nodes, so that a block of their rows is dense
    and costs no search for what is not zero. Edges are written where they will stay.
    """

    def __init__(self, n_nodes: int, n_targets: int):
        self._n_nodes = n_nodes
        self._n_edges = 0
        room = min(n_targets * n_nodes, MOST_ROOM)
        self._data, self._indices = np.empty(room, np.float32), np.empty(room, np.int32)
        self._nodes: list[np.ndarray] = []  # of the rows, in the order in which they came
        self._counts: list[np.ndarray] = []  # of their edges

    def add(self, nodes: np.ndarray, pos: Tensor, pieces: Sequence[Piece]) -> None:
        """Rows of targets beyond those added before (`Rows.add`)."""
        for place, group in groups(pos):
            columns, values = block_of(pieces, group, place)
            n, k = values.shape
            data, indices = self._more(n * k)
            torch.from_numpy(data.reshape(k, n)).copy_(values.T)
            torch.from_numpy(indices.reshape(k, n)).copy_(torch.from_numpy(columns))
            self._nodes.append(nodes[group])
            self._counts.append(np.full(k, n))

    def matrix(self) -> sparse.csr_array:
        """All rows, `[target, source]`, float32, no zeros.

        They are handed over, not copied: no more can be added.
        """
        nodes = np.concatenate([*self._nodes, np.zeros(0, int)])
        assert (np.diff(nodes) > 0).all(), "targets come in the order of the nodes, each once"
        counts = np.zeros(self._n_nodes, int)
        counts[nodes] = np.concatenate([*self._counts, np.zeros(0, int)])
        for array in (self._data, self._indices):  # gives back room that was not used
            array.resize(self._n_edges, refcheck=False)
        index = np.int32 if self._n_edges < 2**31 else np.int64
        starts = np.concatenate([[0], counts.cumsum()]).astype(index)
        arrays = self._data, self._indices.astype(index, copy=False), starts
        matrix = sparse.csr_array(arrays, shape=(self._n_nodes, self._n_nodes))
        del self._data, self._indices
        matrix.eliminate_zeros()
        return matrix

    def _more(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Room for `n` more edges: values and columns."""
        start, stop = self._n_edges, self._n_edges + n
        if stop > len(self._data):
            for name in ("_data", "_indices"):
                old = getattr(self, name)
                new = np.empty(stop + stop // 2, old.dtype)
                new[:start] = old[:start]
                setattr(self, name, new)
        self._n_edges = stop
        return self._data[start:stop], self._indices[start:stop]


def block_of(pieces: Sequence[Piece], group: slice, pos: int) -> tuple[np.ndarray, Tensor]:
    """The columns `[n]` and the values `[n, k]` of the targets `group`, which are at `pos`."""
    columns, values = [], []
    for piece in pieces:
        if not piece.targets.start <= group.start < piece.targets.stop:
            continue
        start = piece.targets.start
        own = piece.values[:, group.start - start : group.stop - start]
        near = piece.pos <= pos  # other targets of a batch are further on
        columns.append(piece.columns[near])
        values.append(own.index_select(0, torch.from_numpy(piece.rows[near]).to(own.device)))
    found, block = np.concatenate(columns), values[0] if len(values) == 1 else torch.cat(values)
    if (np.diff(found) <= 0).any():  # latents that write to several leaves: a sum over them
        found, places = np.unique(found, return_inverse=True)
        places = torch.from_numpy(places).to(block.device)
        block = block.new_zeros(len(found), block.shape[1]).index_add_(0, places, block)
    return found, block
