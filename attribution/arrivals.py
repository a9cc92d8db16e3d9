"""The tokens as they arrive past the attention of the first layer.

Below the first layer's MLP there are as many sources as positions, and far more targets: it is
cheaper to send the few up through the first attention than to bring the many down through it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attribution.adjoints import Adjoint
from attribution.local_pass import LocalPass
from attribution.sources import Piece
from circuits import Site


@dataclass(frozen=True, eq=False)
class Arrivals:
    """What each token's embedding is at each position of the residual stream before the first MLP.

    Attributes:
        vectors: `[pos, token, d_model]`, zero where a token does not reach.
    """

    vectors: Tensor

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
        return cls(arrived)

    def edges(self, grad: Adjoint) -> list[Piece]:
        """How far each token moves each of k targets, by their gradients before the first MLP."""
        n_pos = int(grad.pos.max()) + 1
        if grad.first is None:
            along = torch.bmm(self.vectors[grad.pos, :n_pos], grad.values[:, :, None])[..., 0]
        else:
            here = self.vectors[grad.first : grad.first + len(grad.values), :n_pos]
            along = torch.bmm(grad.values, here.transpose(1, 2)).sum(0)
        places = np.arange(n_pos)
        return [Piece(slice(0, len(grad.pos)), places, places, along)]
