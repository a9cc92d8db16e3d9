"""A sparse matrix that is made a few rows at a time: dense blocks in, compressed rows out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from attribution.sources import Piece


class EdgeRows:
    """Rows of direct effects, as they come.

    Targets at one position are reached from the same nodes, so that a block of their rows is dense
    and costs no search for what is not zero.
    """

    def __init__(self, n_nodes: int):
        self._n_nodes = n_nodes
        self._targets: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []
        self._columns: list[np.ndarray] = []
        self._values: list[np.ndarray] = []

    def add(self, nodes: np.ndarray, pos: Tensor, pieces: Sequence[Piece]) -> None:
        """Complete rows of a batch of targets.

        Args:
            nodes: Their indices among all nodes, `[k]`.
            pos: Their positions, ascending, `[k]`.
            pieces: From the first leaf to the last, for each target. What a source adds at several
                leaves is summed.
        """
        places, counts = torch.unique_consecutive(pos.cpu(), return_counts=True)
        start = 0
        for place, count in zip(places.tolist(), counts.tolist(), strict=True):
            group = slice(start, start + count)
            start = group.stop
            columns, values = _rows(pieces, group, place)
            self._targets.append(nodes[group])
            self._counts.append(np.full(count, len(columns)))
            self._columns.append(np.tile(columns.astype(np.int32), count))
            self._values.append(values.ravel())

    def matrix(self) -> sparse.csr_array:
        """All rows so far, `[target, source]`, in the order of the nodes; float32, no zeros."""
        targets = _joined(self._targets, np.int64)
        counts = _joined(self._counts, np.int64)
        columns = _joined(self._columns, np.int32)
        values = _joined(self._values, np.float32)
        index = np.int32 if len(values) < 2**31 else np.int64
        starts = np.concatenate([[0], counts.cumsum()]).astype(index)
        shape = (len(targets), self._n_nodes)
        rows = sparse.csr_array((values, columns.astype(index, copy=False), starts), shape=shape)
        if (np.diff(targets) < 0).any():
            order = targets.argsort(kind="stable")
            rows, targets = rows[order], targets[order]
        assert (np.diff(targets) > 0).all(), "a target was added twice"
        rows.eliminate_zeros()
        starts = np.zeros(self._n_nodes + 1, dtype=index)
        starts[targets + 1] = np.diff(rows.indptr)
        square = (self._n_nodes, self._n_nodes)
        return sparse.csr_array((rows.data, rows.indices, starts.cumsum(dtype=index)), shape=square)


def _joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _rows(pieces: Sequence[Piece], group: slice, pos: int) -> tuple[np.ndarray, np.ndarray]:
    """The columns `[n]` and the values `[k, n]` of the targets `group`, which are at `pos`."""
    columns, values = [], []
    for piece in pieces:
        if not piece.targets.start <= group.start < piece.targets.stop:
            continue
        own = slice(group.start - piece.targets.start, group.stop - piece.targets.start)
        block = piece.values[own]
        if piece.pos[-1] > pos:  # of a batch whose other targets are further on
            before = piece.pos <= pos
            columns.append(piece.columns[before])
            values.append(block[:, torch.from_numpy(before)])
        else:
            columns.append(piece.columns)
            values.append(block)
    found, block = np.concatenate(columns), torch.cat(values, 1)
    if (np.diff(found) <= 0).any():  # latents that write to several leaves: a sum over them
        found, places = np.unique(found, return_inverse=True)
        places = torch.from_numpy(places).to(block.device)
        block = block.new_zeros(len(block), len(found)).index_add_(1, places, block)
    return found, block.cpu().numpy()
