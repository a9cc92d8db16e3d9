"""Attention of all layers as matrices that carry `attribution.edges.paths` down a model.

With patterns and norm scales held, attention of a layer takes a gradient `g [pos, d_model]` to

    g[p'] + sum over heads h and positions p of  P_h[p, p'] . g[p] W_O,h W_V,h

with the norms' gains in the weights and their scales in the patterns. What it adds is a sum of
value vectors, rows of `W_V`, and so what several layers add has *coordinates* along the rows of
all their `W_V`, `n_kv * d_head` a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attribution.edges.local_pass import LayerMaps

ENOUGH = 16
"""Rows of gradients, for each coordinate of a layer, from which on matrices of two layers pay."""

ENOUGH_CROSSED = 2
"""Attentions that a gradient crosses, from which on paths pay."""


@dataclass(frozen=True, eq=False)
class HeldAttention:
    """Attention and the norms around it.

    Attributes:
        pattern: From the residual stream above, `[head, query, key]`, float32.
        of_heads: The same from the heads' outputs, which the norm after attention does not scale.
        W_O: `[d_model, n_heads * d_head]`, float32.
        W_V: `[n_kv * d_head, d_model]`, float32.
        first_key: The first position each query attends to, `[query]`.
    """

    pattern: Tensor
    of_heads: Tensor
    W_O: Tensor
    W_V: Tensor
    first_key: Tensor

    @classmethod
    def of(cls, layer: LayerMaps) -> HeldAttention:
        held, before, after = layer.attention, layer.before_attn, layer.after_attn
        of_heads, W_O = held.pattern.float() * before.scale[:, 0], held.W_O.float()
        pattern = of_heads
        if after is not None:
            pattern, W_O = of_heads * after.scale, after.gain[:, None] * W_O
        return cls(pattern, of_heads, W_O, held.W_V.float() * before.gain, held.first_key)


@dataclass(frozen=True, eq=False)
class PathMaps:
    """Made once for all targets.

    Attributes:
        layers: Attention of each layer.
        depth: How many layers of attention a gradient may cross as paths.
        basis: What coordinates stand for, by layer: above its attention, and at the end (-1) below
            all. `[m * width, d_model]`: `W_V` of up to `depth` layers, the highest first.
        to_heads: By layer, from coordinates above its attention to the outputs of its heads,
            `[m * width, n_heads * d_head]`.
    """

    layers: tuple[HeldAttention, ...]
    depth: int
    basis: tuple[Tensor, ...]
    to_heads: tuple[Tensor, ...]

    @classmethod
    def of(
        cls, layers: Sequence[LayerMaps], *, n_pos: int, per_site: float, crossed: int, memory: int
    ) -> PathMaps | None:
        """`None` where norms are live, or there is too little to do to make matrices for.

        Args:
            layers: Of a pass with patterns held.
            n_pos: Positions of the prompt.
            per_site: Targets, and as many sources, on average over sites.
            crossed: Layers whose attention a gradient crosses at most.
            memory: Bytes that matrices and the sources' coordinates may take.
        """
        norms = [norm for layer in layers for norm in (layer.before_attn, layer.after_attn)]
        if any(norm is not None and norm.x is not None for norm in norms):
            return None
        W_O, W_V = layers[0].attention.W_O, layers[0].attention.W_V
        if crossed < ENOUGH_CROSSED or per_site * n_pos / 2 < ENOUGH * len(W_V):
            return None
        a_layer = 4 * len(W_V) * (sum(W_O.shape) + per_site) * len(layers)
        depth = min(len(layers), int(memory // a_layer))
        return cls.joined([HeldAttention.of(layer) for layer in layers], depth) if depth else None

    @classmethod
    def joined(cls, layers: Sequence[HeldAttention], depth: int) -> PathMaps:
        """With the matrices of every layer and those up to `depth` above."""
        last, none = len(layers) - 1, layers[0].W_V[:0]
        basis = []
        for below in (*range(len(layers)), -1):
            above = range(min(last, below + depth), below, -1)
            basis.append(torch.cat([none, *(layers[number].W_V for number in above)]))
        to_heads = (values @ layer.W_O for layer, values in zip(layers, basis, strict=False))
        return cls(tuple(layers), depth, tuple(basis), tuple(to_heads))

    @property
    def width(self) -> int:
        """Coordinates of what has crossed one layer, `n_kv * d_head`."""
        return len(self.layers[0].W_V)

    @property
    def n_heads(self) -> int:
        return len(self.layers[0].pattern)

    @property
    def n_kv(self) -> int:
        return self.width // self.d_head

    @property
    def d_head(self) -> int:
        return self.layers[0].W_O.shape[1] // self.n_heads

    @property
    def most_spread(self) -> float:
        """Layers whose coordinates, a position, are no dearer to send on than `d_model` numbers."""
        d_model, heads = self.layers[0].W_O.shape
        return d_model * (heads + self.width) / (heads * self.width)

    def rows(self, below: int, first: int, last: int) -> slice:
        """Of `basis[below]` the rows of the layers from `first` down to `last`."""
        top = min(len(self.layers) - 1, below + self.depth)
        return slice((top - first) * self.width, (top - last + 1) * self.width)
