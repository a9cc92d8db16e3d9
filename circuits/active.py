"""A dictionary read at its active latents alone: all of the encoder, few rows of the decoder.

The same numbers as `Dictionary.encode` and `decode`, which touch every latent at every position.
What latents write is summed in float32 (or wider) whatever the dtype of the matrices;
pre-activations are rounded as `encode` rounds them, to the dtype of the matrices.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circuits.dictionaries import Dictionary
from circuits.sites import Site

DENSE_BYTES = 2**28
"""At most so many bytes of dense activations at a time; positions go through in blocks."""

ROW_NUMBERS = {"cpu": 2**20}
"""Numbers of gathered decoder rows at a time: on a CPU, what its cache holds."""


@dataclass(frozen=True, eq=False)
class Active:
    """Latents at positions, `n` in all, by ascending position.

    Attributes:
        pos: `[n]`.
        latent: `[n]`.
        acts: `[n]`.
    """

    pos: Tensor
    latent: Tensor
    acts: Tensor

    @classmethod
    def of(cls, acts: Tensor) -> "Active":
        """Those of dense activations `[pos, d_sae]` that are not zero."""
        pos, latent = acts.nonzero(as_tuple=True)
        return cls(pos, latent, acts[pos, latent])

    def dense(self, *shape: int) -> Tensor:
        """The activations as `shape`, `[pos, d_sae]` or `[batch, pos, d_sae]`, row after row."""
        acts = self.acts.new_zeros(shape)
        acts.flatten(0, -2)[self.pos, self.latent] = self.acts
        return acts

    def at(self, pos: Tensor, latent: Tensor, d_sae: int) -> Tensor:
        """The activations of latents `[n]` at positions `[n]`, `[n]`; 0 for those that are off."""
        if not len(self.acts):
            return self.acts.new_zeros(len(pos))
        keys, order = (self.pos * d_sae + self.latent).sort()
        wanted = pos * d_sae + latent
        place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        known = (keys[place] == wanted) & (latent < d_sae)
        return torch.where(known, self.acts[order[place]], 0)

    def none(self) -> "Active":
        """No latents, on the same device and in the same dtype."""
        return Active(self.pos[:0], self.latent[:0], self.acts[:0])


@torch.no_grad()
def find_active(dictionary: Dictionary, x: Tensor, reads: Tensor) -> Active:
    """The latents that `x [pos, d_in]` switches on, at the positions `reads [pos]`."""
    itemsize = torch.promote_types(dictionary.W_enc.dtype, dictionary.b_enc.dtype).itemsize
    n_block = max(1, DENSE_BYTES // (dictionary.d_sae * itemsize))
    parts = []
    for first in range(0, len(x), n_block):
        here = slice(first, first + n_block)
        # not a product: in float16 BOS may encode to infinity, and that times 0 is NaN
        found = Active.of(torch.where(reads[here, None], dictionary.encode(x[here]), 0))
        parts.append((found.pos + first, found.latent, found.acts))
    return Active(*(torch.cat(part) for part in zip(*parts, strict=True)))


@torch.no_grad()
def write_active(
    matrix: Tensor, active: Active, n_pos: int, direction: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What latents write, and how far each points along a direction.

    Args:
        matrix: A row a latent, `[d_sae, d]`: `W_dec`, or `W_enc.T`.
        active: The latents; what they write is weighted by their activations.
        n_pos: Number of positions.
        direction: `[n_pos, d]`.

    Returns:
        `acts @ matrix`, `[n_pos, d]`, and `matrix[latent] . direction[pos]`, `[n]` (zeros without
        a direction).
    """
    wide = torch.promote_types(matrix.dtype, torch.float32)
    written = torch.zeros(n_pos, matrix.shape[1], dtype=wide, device=active.pos.device)
    along = torch.zeros(len(active.pos), dtype=wide, device=active.pos.device)
    for here, index in _blocks(active, n_pos, matrix.shape[1]):
        there = index >= 0
        rows = matrix[active.latent[index]].to(wide)  # [positions, latents, d]
        acts = torch.where(there, active.acts[index].to(wide), 0)
        written[here] = torch.bmm(acts[:, None], rows)[:, 0]
        if direction is not None:
            projected = torch.bmm(rows, direction[here].to(wide)[:, :, None])[:, :, 0]
            along[index[there]] = projected[there]
    return written, along


def reconstruct(dictionary: Dictionary, x: Tensor, reads: Tensor, active: Active) -> Tensor:
    """`decode(encode(x))` `[pos, d_out]` where the dictionary reads, 0 elsewhere; float32."""
    written, _ = write_active(dictionary.W_dec, active, len(x))
    return written + torch.where(reads[:, None], constant(dictionary, x), 0)


def write_each(matrices: Sequence[Tensor], active: Active, n_pos: int) -> list[Tensor]:
    """What latents write by each of some decoders, `[n_pos, d_out]`; float32 or wider."""
    return [write_active(matrix, active, n_pos)[0] for matrix in matrices]


def constant(dictionary: Dictionary, x: Tensor) -> Tensor:
    """What a dictionary writes besides its latents, `[pos, d_out]`: bias and skip connection."""
    bias = dictionary.b_dec.to(torch.promote_types(dictionary.b_dec.dtype, torch.float32))
    if dictionary.W_skip is None:
        return bias.expand(len(x), -1)
    return bias + dictionary.skip(x)


class Reconstruction(torch.autograd.Function):
    """`decode(encode(x))` with gradients through active latents alone; 0 where nothing is read.

    The backward pass reads the dictionary again instead of keeping it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, reads: Tensor, dictionaries: Mapping[Site, Dictionary], site: Site
    ) -> Tensor:
        """From `x [batch, pos, d]` at `reads [batch, pos]` to what `site` writes.

        `[1 + n_later, batch, pos, d_out]`: at its own layer, then at later ones.
        """
        flat, flat_reads = x.flatten(0, 1), reads.flatten()
        dictionary = dictionaries[site]
        active = find_active(dictionary, flat, flat_reads)
        ctx.save_for_backward(active.pos, active.latent, flat_reads)
        ctx.dictionaries, ctx.site, ctx.dtype = dictionaries, site, x.dtype
        written = reconstruct(dictionary, flat, flat_reads, active)
        written = torch.stack([written, *write_each(dictionary.decoders[1:], active, len(flat))])
        return written.unflatten(1, x.shape[:2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pos, latent, reads = ctx.saved_tensors
        flat = grads[0].flatten(1, 2)  # [1 + n_later, pos, d_out]
        dictionary = ctx.dictionaries[ctx.site]
        active = Active(pos, latent, torch.zeros_like(pos))
        along = sum(
            write_active(matrix, active, len(reads), grad)[1]
            for matrix, grad in zip(dictionary.decoders, flat, strict=True)
        )
        assert isinstance(along, Tensor)
        to_x, _ = write_active(dictionary.W_enc.T, Active(pos, latent, along), len(reads))
        if dictionary.W_skip is not None:
            to_x += (flat[0] * reads[:, None]).to(dictionary.W_skip.dtype) @ dictionary.W_skip.T
        return to_x.to(ctx.dtype).view(*grads[0].shape[1:3], -1), None, None, None


def _blocks(active: Active, n_pos: int, d_out: int) -> Iterator[tuple[slice, Tensor]]:
    """Neighbouring positions and the places of their latents, `[positions, most]`, padded by -1."""
    counts = torch.bincount(active.pos, minlength=n_pos)
    starts = counts.cumsum(0) - counts
    most = int(counts.max()) if n_pos else 0
    if not most:
        return
    n_block = max(1, ROW_NUMBERS.get(active.pos.device.type, 2**27) // (most * d_out))
    offsets = torch.arange(most, device=active.pos.device)
    for first in range(0, n_pos, n_block):
        here = slice(first, first + n_block)
        index = starts[here, None] + offsets
        yield here, index.where(offsets < counts[here, None], -1)
