"""The transposed linear maps of one layer on one prompt, applied to many targets at once.

An adjoint is the gradient of a target with respect to a place in the model. Going down the model,
every part is a linear map with coefficients that the prompt has set: a norm multiplies by its scale
(and, live, takes out what changes the scale), attention mixes positions by its pattern, an MLP is
what `circuits.gated` makes of it. No autograd: nothing is recorded, all targets go together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from circuits.gated import coefficients


@dataclass(frozen=True, eq=False)
class Adjoint:
    """The gradients of k targets at one place of the model.

    Either *alone*, each at the target's own position: `values [k, d]`. Or *spread* over the
    positions `first`, `first + 1`, ...: `values [n, k, d]`.

    Attributes:
        values: float32.
        pos: The targets' own positions, `[k]`; a target has no gradient beyond its own.
        first: The first position, if spread.
    """

    values: Tensor
    pos: Tensor
    first: int | None = None

    @property
    def alone(self) -> Tensor | None:
        """What is at the targets' own positions only, `[k, d]`."""
        return self.values if self.first is None else None

    @property
    def spread(self) -> Tensor | None:
        """What is at positions from `first` on, `[n, k, d]`."""
        return None if self.first is None else self.values

    def here(self, by_position: Tensor) -> Tensor:
        """Of `by_position [pos, m]` the rows that belong to `values`: `[k, m]` or `[n, 1, m]`."""
        if self.first is None:
            return by_position[self.pos]
        return by_position[self.first : self.first + len(self.values), None]

    def map(self, values: Tensor) -> Adjoint:
        """Other values at the same positions."""
        return replace(self, values=values)

    def dense(self) -> Adjoint:
        """Itself: no sum over paths (`attribution.edges.paths`)."""
        return self

    def __add__(self, other: Adjoint) -> Adjoint:
        """The sum; what is alone goes to its own position if the other is spread (in place)."""
        if self.first is None and other.first is not None:
            targets = torch.arange(len(self.pos), device=self.pos.device)
            other.values[self.pos - other.first, targets] += self.values
            return other
        if self.first != other.first:  # the other reaches further back
            assert self.first is not None
            assert other.first is not None
            skipped = self.first - other.first
            other.values[skipped:] += self.values
            return other
        return self.map(self.values + other.values)


def groups(pos: Tensor) -> list[tuple[int, slice]]:
    """Every one of ascending positions `[k]`, and which of the k are there."""
    places, counts = torch.unique_consecutive(pos.cpu(), return_counts=True)
    ends = [0, *counts.cumsum(0).tolist()]
    return list(zip(places.tolist(), map(slice, ends[:-1], ends[1:]), strict=True))


def earlier(pos: Tensor, first: int, stop: int) -> list[int]:
    """Of ascending positions `[k]`, how many are before each from `first` to before `stop`."""
    return torch.searchsorted(pos.cpu(), torch.arange(first, stop)).tolist()


@dataclass(frozen=True, eq=False)
class NormMap:
    """A root mean square norm, `gain * x / rms(x)`.

    Attributes:
        scale: `1 / rms(x)`, `[pos, 1]`.
        gain: `[d]`.
        x: Its input `[pos, d]` if the scale is live, `None` if it is held constant.
    """

    scale: Tensor
    gain: Tensor
    x: Tensor | None

    def adjoint(self, grad: Adjoint, *, gain: bool = True) -> Adjoint:
        """From what the norm gives (with or without its gain) to what it reads."""
        scale = grad.here(self.scale)
        values = grad.values * (self.gain * scale if gain else scale)
        if self.x is not None:
            x = grad.here(self.x)
            along = (values * x).sum(-1, keepdim=True) * scale.square() / x.shape[-1]
            values -= along * x
        return grad.map(values)

    def forward(self, change: Tensor) -> Tensor:
        """What the norm makes of a change `[pos, ..., d]` of its input."""
        middle = (1,) * (change.ndim - 2)
        scale = self.scale.view(-1, *middle, 1)
        if self.x is not None:
            x = self.x.view(-1, *middle, change.shape[-1])
            along = (change * x).sum(-1, keepdim=True) * scale.square() / x.shape[-1]
            change = change - along * x
        return change * scale * self.gain


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """Attention with its pattern held.

    Attributes:
        pattern: `[head, query, key]`.
        W_V: `[n_kv * d_head, d_model]`, as Hugging Face has it.
        W_O: `[d_model, n_heads * d_head]`.
        first_key: The first position each query attends to, `[query]`.
    """

    pattern: Tensor
    W_V: Tensor
    W_O: Tensor
    first_key: Tensor

    @classmethod
    def of(cls, pattern: Tensor, W_V: Tensor, W_O: Tensor) -> AttentionMap:
        reached = (pattern != 0).any(0)  # no attention beyond a window
        return cls(pattern, W_V, W_O, reached.to(torch.uint8).argmax(-1).cpu())

    def forward(self, change: Tensor) -> Tensor:
        """What each position's change `[pos, d_model]` of the input alone writes at each query.

        `[query, key, d_model]`: zero where the query does not attend.
        """
        weighted = self.pattern.permute(1, 2, 0)[..., None].float() * self._values(change)
        return weighted.flatten(2) @ self.W_O.T.float()

    def heads(self, x: Tensor) -> Tensor:
        """The heads' outputs `[query, n_heads * d_head]` with another input `x [pos, d_model]`."""
        mixed = torch.bmm(self.pattern.float(), self._values(x).transpose(0, 1))
        return mixed.transpose(0, 1).flatten(1)

    def _values(self, x: Tensor) -> Tensor:
        """Every head's values, `[key, head, d_head]`."""
        n_heads = len(self.pattern)
        values = (x @ self.W_V.T.float()).view(len(x), -1, self.W_O.shape[1] // n_heads)
        return values.repeat_interleave(n_heads // values.shape[1], 1)

    def to_heads(self, grad: Adjoint) -> Adjoint:
        """From what is written, `d_model`, to the heads' outputs, `n_heads * d_head`."""
        return grad.map(grad.values @ self.W_O.float())

    def to_input(self, grad: Adjoint) -> Adjoint:
        """From the heads' outputs to the input, spread over all positions that are attended to."""
        n_heads = len(self.pattern)
        d_head = grad.values.shape[-1] // n_heads
        W_V = self.W_V.float().view(-1, d_head, self.W_V.shape[1])
        last = int(grad.pos.max())
        if grad.first is None:
            first = int(self.first_key[grad.pos.cpu()].min())
            by_head = grad.values.view(-1, n_heads, d_head).transpose(0, 1)  # [head, k, d_head]
            W_V = W_V.repeat_interleave(n_heads // len(W_V), 0)
            read = torch.bmm(by_head, W_V).transpose(0, 1)  # [k, head, d]
            weights = self.pattern[:, grad.pos, first : last + 1].permute(1, 2, 0)
            values = torch.bmm(weights.float(), read).transpose(0, 1).contiguous()
            return Adjoint(values, grad.pos, first)
        first = int(self.first_key[grad.first : last + 1].min())
        pattern = self.pattern[:, grad.first : last + 1, first : last + 1].float()
        n_kv, n_query, k = len(W_V), len(grad.values), len(grad.pos)
        # one product a key-value head: sum over its query heads and over queries
        weights = pattern.reshape(n_kv, -1, pattern.shape[-1]).transpose(1, 2)
        heads = grad.values.view(n_query, k, n_kv, -1, d_head).permute(2, 3, 0, 1, 4)
        mixed = torch.bmm(weights, heads.reshape(n_kv, -1, k * d_head))  # [kv, key, k * d_head]
        mixed = mixed.view(n_kv, -1, k, d_head).permute(1, 2, 0, 3)
        values = mixed.reshape(-1, k, n_kv * d_head) @ W_V.flatten(0, 1)
        return Adjoint(values, grad.pos, first)


@dataclass(frozen=True, eq=False)
class MlpMap:
    """A gated MLP as the linear map that `circuits.gated` makes of it.

    Attributes:
        rule: Which one.
        act: The activation function.
        gate, up: The product's inputs before the activation function, `[pos, d_mlp]`.
        W_gate, W_up: `[d_mlp, d_model]`.
        W_down: `[d_model, d_mlp]`.
        points, start: Of the rule `integrated`: see `circuits.gated`; `start` `[pos, d_mlp]` each.
    """

    rule: str
    act: Callable[[Tensor], Tensor]
    gate: Tensor
    up: Tensor
    W_gate: Tensor
    W_up: Tensor
    W_down: Tensor
    points: int
    start: tuple[Tensor, Tensor] | None

    def adjoint(self, grad: Adjoint) -> Adjoint:
        """From what the MLP gives to what it reads."""
        gate, up = grad.here(self.gate).float(), grad.here(self.up).float()
        start = None if self.start is None else (grad.here(self.start[0]), grad.here(self.start[1]))
        by_gate, by_up = coefficients(
            self.rule, self.act, gate, up, points=self.points, start=start
        )
        product = grad.values @ self.W_down.float()
        values = (product * by_gate) @ self.W_gate.float()
        return grad.map(values + (product * by_up) @ self.W_up.float())

    def inputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gate and up of another input `x [pos, d_model]`, `[pos, d_mlp]` each."""
        return x @ self.W_gate.T.float(), x @ self.W_up.T.float()

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        """What the MLP itself, not made linear, writes with these inputs, `[pos, d_model]`."""
        return (self.act(gate) * up) @ self.W_down.T.float()
