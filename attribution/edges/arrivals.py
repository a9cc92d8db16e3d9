"""The tokens as they arrive past the attention of the first layer.

Below the first layer's MLP there are as many sources as positions, and far more targets: it is
cheaper to send the few up through the first attention than to bring the many down through it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from attribution.edges.adjoints import Adjoint, earlier, groups
from attribution.edges.local_pass import LocalPass
from attribution.edges.paths import Paths
from attribution.edges.sources import Piece
from circuits import Site


@dataclass(frozen=True, eq=False)
class Arrivals:
    """What each token's embedding is at each position of the residual stream before the first MLP.

    Attributes:
        vectors: `[pos, token, d_model]`, zero where a token does not reach.
        first: The first token that reaches each position.
        coordinates: The same along the basis of `attribution.edges.paths`, `[pos, token, m]`.
    """

    vectors: Tensor
    first: list[int]
    coordinates: Tensor | None = None

    @classmethod
    def of(cls, cut: LocalPass, tokens: Tensor, memory: int) -> Arrivals | None:
        """Of what each token adds, `tokens [pos, d_model]`.

        `None` where attention or the embedding is cut, or there is no `memory` for them.
        """
        layer = cut.layers[0]
        n_pos, d_model = tokens.shape
        too_large = 4 * n_pos * n_pos * max(d_model, layer.attention.W_O.shape[1]) > memory
        if (
            too_large
            or not cut.freeze.attention
            or {Site(0, "attn"), Site(0, "embed")} & set(cut.leaves)
        ):
            return None
        arrived = layer.attention.forward(layer.before_attn.forward(tokens))
        if layer.after_attn is not None:
            arrived = layer.after_attn.forward(arrived)
        places = torch.arange(n_pos, device=tokens.device)
        arrived[places, places] += tokens
        return cls(arrived, layer.attention.first_key.tolist())

    def along(self, basis: Tensor) -> Arrivals:
        """With coordinates along the rows of `basis [m, d_model]`."""
        return replace(self, coordinates=self.vectors @ basis.T)

    def edges(self, grad: Adjoint | Paths) -> list[Piece]:
        """How far each token moves each of k targets, by their gradients before the first MLP."""
        n_pos, vectors = int(grad.pos.max()) + 1, self.vectors
        values = vectors.new_zeros(n_pos, len(grad.pos))
        if isinstance(grad, Paths):
            assert self.coordinates is not None
            vectors = self.coordinates[..., grad.rows]
        if grad.spread is not None:
            assert grad.first is not None
            before = earlier(grad.pos, grad.first, n_pos)
            places = zip(before, vectors[grad.first : n_pos], grad.spread.mT, strict=True)
            for pos, (begin, tokens, there) in enumerate(places, grad.first):
                near = slice(self.first[pos], pos + 1)
                out = values[near]
                if begin:  # targets at earlier positions
                    out, there = out[:, begin:], there[:, begin:]
                out.addmm_(tokens[near], there)
        if grad.alone is not None:
            for pos, targets in groups(grad.pos):
                near = slice(self.first[pos], pos + 1)
                values[near, targets].addmm_(self.vectors[pos, near], grad.alone[targets].T)
        places = np.arange(n_pos)
        return [Piece(slice(0, len(grad.pos)), places, places, places, values)]
