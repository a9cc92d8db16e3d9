"""Gradients below several attentions, as sums over paths through heads: fewer numbers than rows.

With patterns and norm scales held (`attribution.edges.path_maps`), what depends on positions is a
number, what depends on the target a vector, so that below several layers a gradient is a sum over
paths (which layers it crossed, by which heads) of vectors that know no position times numbers that
all targets at one position share. Three things follow:

1. While there are fewer paths than positions, only the paths' vectors go through the weights.
2. What has crossed attention is sent on by its coordinates: from those of one layer to the heads
   of another there is one matrix.
3. An edge is a product of coordinates too, and sources have theirs once for all targets.

When coordinates become more than they save, `Paths.dense` gives the gradients themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attribution.edges.adjoints import Adjoint, groups
from attribution.edges.path_maps import PathMaps


@dataclass(frozen=True, eq=False)
class Term:
    """What crossed one layer, path by path.

    Attributes:
        vectors: The last head's output, `[head, n, k, d_head]`: n paths that led to the layer.
        weights: Of each path at each position, for each place of targets, `[place, head * n, pos]`.
    """

    vectors: Tensor
    weights: Tensor


@dataclass(frozen=True, eq=False)
class Paths:
    """The gradients of k targets in the residual stream below one attention or more.

    Attributes:
        maps: What carries them.
        alone: The part that crossed none, at the targets' positions, `[k, d_model]`; `None`
            for targets that read an attention's heads.
        pos: The targets' positions, ascending, `[k]`.
        groups: Each of these once, and which targets are there.
        top, low: The first and the last layer whose attention was crossed.
        first: The first position reached.
        terms: Of the first layers crossed, path by path.
        coordinates: `[pos, k, m * width]` from position 0 on: of each layer crossed, the highest
            first, and room for those below. Before `first` there is nothing to read.
    """

    maps: PathMaps
    alone: Tensor | None
    pos: Tensor
    groups: list[tuple[int, slice]]
    top: int
    low: int
    first: int
    terms: tuple[Term, ...]
    coordinates: Tensor

    @classmethod
    def of(cls, maps: PathMaps, layer: int, grad: Adjoint, alone: Tensor | None) -> Paths:
        """Targets that are alone, above the attention of `layer`."""
        places = groups(grad.pos)
        first, last = places[0][0], places[-1][0]
        n_layers = min(layer + 1, maps.depth)
        room = grad.values.new_empty(last + 1, len(grad.pos), n_layers * maps.width)
        return cls(maps, alone, grad.pos, places, layer, layer + 1, first, (), room)

    @classmethod
    def from_heads(cls, maps: PathMaps, layer: int, grad: Adjoint) -> Paths:
        """Below the attention of `layer`, of targets that read its heads `[k, head * d_head]`."""
        vectors = grad.values.view(len(grad.pos), maps.n_heads, 1, maps.d_head).permute(1, 2, 0, 3)
        above = cls.of(maps, layer, grad, None)
        return above._below(layer, maps.layers[layer].of_heads, vectors.contiguous())

    @classmethod
    def from_residual(cls, maps: PathMaps, layer: int, grad: Adjoint) -> Paths:
        """Below the attention of `layer`, of targets alone in the residual stream above it."""
        return cls.of(maps, layer, grad, grad.values).cross(layer)

    def may_cross(self, layer: int) -> bool:
        """Whether it is worth to go on as paths."""
        n_spread = self.top - self.low + 1 - len(self.terms)
        return self.top - layer < self.maps.depth and n_spread <= self.maps.most_spread

    def cross(self, layer: int) -> Paths:
        """Below the attention of the next `layer`."""
        maps, held, k = self.maps, self.maps.layers[layer], len(self.pos)
        to_heads = maps.to_heads[layer].unflatten(1, (maps.n_heads, -1)).transpose(0, 1)
        n_terms, n_paths = len(self.terms), sum(term.weights.shape[1] for term in self.terms)
        n_alone = int(self.alone is not None)
        vectors = to_heads.new_empty(maps.n_heads, n_alone + n_paths, k, maps.d_head)
        if self.alone is not None:
            heads = (self.alone @ held.W_O).view(k, maps.n_heads, maps.d_head)
            vectors[:, 0] = heads.transpose(0, 1)
        start = n_alone
        for number, term in zip(range(self.top, -1, -1), self.terms, strict=False):
            down = to_heads[:, maps.rows(layer, number, number)]
            through = down.unflatten(1, (maps.n_kv, maps.d_head))
            for kv, paths in enumerate(term.vectors.view(maps.n_kv, -1, k, maps.d_head)):
                flat = paths.flatten(0, 1).expand(maps.n_heads, -1, -1)
                stop = start + len(paths)
                torch.bmm(flat, through[:, kv], out=vectors[:, start:stop].flatten(1, 2))
                start = stop
        spread = None
        if n_terms < self.top - self.low + 1:
            here = self.spread[..., n_terms * maps.width :].flatten(0, 1)
            down = maps.to_heads[layer][maps.rows(layer, self.top - n_terms, self.low)]
            heads = (here @ down).view(-1, maps.n_heads, maps.d_head)
            spread = heads.transpose(0, 1).contiguous()
        return self._below(layer, held.pattern, vectors if vectors.shape[1] else None, spread)

    def _below(
        self, layer: int, pattern: Tensor, vectors: Tensor | None, spread: Tensor | None = None
    ) -> Paths:
        """What the heads of `layer` bring to the residual stream below.

        Args:
            layer: Which.
            pattern: Of its heads, `[head, query, key]`.
            vectors: Their gradients by every path that was kept, `[head, n, k, d_head]`.
            spread: By the rest, from position `first` on, `[head, pos * k, d_head]`.
        """
        maps, k, stop = self.maps, len(self.pos), len(self.coordinates)
        pattern = pattern[:, :stop, :stop]
        first = int(maps.layers[layer].first_key[self.first : stop].min())
        term = None if vectors is None else Term(vectors, self._weights(pattern))
        mixed = self._mixed(pattern, first, term, spread)
        terms = self.terms
        if term is not None and spread is None and self._worth_keeping(term, stop - first):
            terms = (*terms, term)
        filled = self._columns.stop
        self.coordinates[first : self.first, :, :filled] = 0
        for kv, part in enumerate(mixed.view(maps.n_kv, -1, k, maps.d_head)):
            start = filled + kv * maps.d_head
            self.coordinates[first:, :, start : start + maps.d_head] = part
        return replace(self, low=layer, first=first, terms=terms)

    def _mixed(
        self, pattern: Tensor, first: int, term: Term | None, spread: Tensor | None
    ) -> Tensor:
        """The heads' gradients, as `_below` has them, summed over queries and over heads that share
        values: `[kv, pos, k * d_head]`, from position `first` on.
        """
        n_kv, d_head, k, n_pos = self.maps.n_kv, self.maps.d_head, len(self.pos), len(pattern[0])
        if spread is None:
            mixed = pattern.new_empty(n_kv, n_pos - first, k * d_head)
        else:
            by_query = pattern[:, self.first :, first:].reshape(n_kv, -1, n_pos - first)
            mixed = torch.bmm(by_query.transpose(1, 2), spread.view(n_kv, -1, k * d_head))
        if term is None:
            return mixed
        sizes = [(group.stop - group.start) * d_head for _, group in self.groups]
        weights = term.weights.unflatten(1, (n_kv, -1))[..., first:].transpose(2, 3)
        vectors = term.vectors.view(n_kv, -1, k * d_head).split(sizes, 2)
        beta = float(spread is not None)
        for weight, part, out in zip(weights, vectors, mixed.split(sizes, 2), strict=True):
            torch.baddbmm(out, weight, part, beta=beta, out=out)
        return mixed

    def _worth_keeping(self, term: Term, n_pos: int) -> bool:
        """Whether paths are fewer than positions, and their weights below one more layer few."""
        n_places, n_heads, n_paths = len(self.groups), *term.vectors.shape[:2]
        few = n_heads * n_paths <= n_pos * self.maps.n_kv
        n_weights = n_places * n_heads * (n_paths + n_heads * n_paths)
        return few and n_weights <= len(self.pos) * self.maps.width

    def _weights(self, pattern: Tensor) -> Tensor:
        """Of every path kept, through the heads of one more `pattern`, `[place, head * n, pos]`."""
        n_places, stop = len(self.groups), pattern.shape[-1]
        before = [term.weights for term in self.terms]
        if self.alone is not None or not self.terms:
            places = torch.tensor([place for place, _ in self.groups], device=pattern.device)
            before.insert(0, torch.nn.functional.one_hot(places, stop)[:, None].to(pattern.dtype))
        every = torch.cat(before, 1)
        through = every.flatten(0, 1) @ pattern.transpose(0, 1).flatten(1)
        by_head = through.view(n_places, every.shape[1], len(pattern), stop).transpose(1, 2)
        return by_head.flatten(1, 2)

    @property
    def _columns(self) -> slice:
        """The coordinates that there are."""
        return slice(0, (self.top - self.low + 1) * self.maps.width)

    @property
    def rows(self) -> slice:
        """Of the basis below which the gradients are, the rows that coordinates are along."""
        return self.maps.rows(self.low - 1, self.top, self.low)

    @property
    def spread(self) -> Tensor:
        """Coordinates at the positions that are reached, `[n, k, m * width]`."""
        return self.coordinates[self.first :, :, self._columns]

    def dense(self) -> Adjoint:
        """The gradients themselves."""
        values = self.spread @ self.maps.basis[self.low - 1][self.rows]
        if self.alone is not None:
            targets = torch.arange(len(self.pos), device=self.pos.device)
            values[self.pos - self.first, targets] += self.alone
        return Adjoint(values, self.pos, self.first)
