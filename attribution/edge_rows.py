"""A sparse matrix that is made a few rows at a time: dense blocks in, compressed rows out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from attribution.sources import Piece


@dataclass(frozen=True, eq=False)
class _Block:
    """Rows of neighbouring targets, `first`, `first + 1`, ..., with the same sources."""

    first: int
    columns: np.ndarray
    values: np.ndarray


class EdgeRows:
    """Rows of direct effects, as they come.

    Targets at one position are reached from the same nodes, so that a block of their rows is dense
    and costs no search for what is not zero.
    """

    def __init__(self, n_nodes: int):
        self._n_nodes = n_nodes
        self._blocks: list[_Block] = []

    def add(self, nodes: np.ndarray, pos: Tensor, pieces: Sequence[Piece]) -> None:
        """Complete rows of a batch of targets.

        Args:
            nodes: Their indices among all nodes, `[k]`, ascending.
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
            gaps = np.flatnonzero(np.diff(nodes[group]) > 1) + 1
            for first, rows in zip(
                np.split(nodes[group], gaps), np.split(values, gaps), strict=True
            ):
                self._blocks.append(_Block(int(first[0]), columns.astype(np.int32), rows))

    def matrix(self) -> sparse.csr_array:
        """All rows so far, `[target, source]`, in the order of the nodes; float32, no zeros."""
        counts = np.zeros(self._n_nodes, dtype=np.int64)
        for block in self._blocks:
            rows = slice(block.first, block.first + len(block.values))
            assert not counts[rows].any(), "a target was added twice"
            counts[rows] = len(block.columns)
        n_edges = int(counts.sum())
        index = np.int32 if n_edges < 2**31 else np.int64
        starts = np.concatenate([[0], counts.cumsum()]).astype(index)
        data, indices = np.empty(n_edges, np.float32), np.empty(n_edges, index)
        for block in self._blocks:
            part = slice(starts[block.first], starts[block.first + len(block.values)])
            data[part].reshape(block.values.shape)[:] = block.values
            indices[part].reshape(block.values.shape)[:] = block.columns
        matrix = sparse.csr_array((data, indices, starts), shape=(self._n_nodes, self._n_nodes))
        matrix.eliminate_zeros()
        return matrix


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
