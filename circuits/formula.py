"""What a site gives in the place of what the model writes there.

A site reads `x_in` and writes `x_out`: the same tensor for an autoencoder, the normalised input of
the MLP and what it adds to the residual for a transcoder. With `acts = encode(x_in)` and
`error = x_out - decode(acts)` the site gives

    x_out + (error* - error) + (decode(acts') - decode(acts)) + (error' - error*)

where `error*` is the error as the convention for what lies downstream keeps it, and `acts'`,
`error'` are what an edit makes of `acts` and `error*`. While nothing is changed this is `x_out` bit
for bit. Positions with BOS, EOS or padding bypass the dictionary: no latents, and the whole of
`x_out` is error. What a skip connection passes on, `x_in @ W_skip`, belongs to `decode` and is no
node: it follows what the pass makes of `x_in`. Where cross-layer transcoders of lower layers write
too, `decode` stands for the sum of all that is written there, and `acts'` for the changed latents
of every layer up to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from circuits.active import Active, find_active, reconstruct, write_active, write_each
from circuits.cross_layer import Carried
from circuits.dictionaries import Dictionary
from circuits.errors import UserError
from circuits.hooks import SiteHook
from circuits.interventions import Edit
from circuits.sites import Site

DOWNSTREAM = ("recompute", "freeze", "drop")
"""What errors do when something upstream has changed: follow, keep their clean values, or go."""

ErrorRule = Callable[[Tensor], Tensor]
"""From the error that a pass arrives with to the one it goes on with, `error*`."""


def check_downstream(downstream: str) -> None:
    """Refuse a word that is no convention.

    Raises:
        UserError: it is none.
    """
    if downstream not in DOWNSTREAM:
        raise UserError(f"downstream={downstream!r}; choose {', '.join(DOWNSTREAM)}")


def error_rule(downstream: str, reads: Tensor, clean: Tensor | None = None) -> ErrorRule:
    """What a convention does to the error at a site.

    Args:
        downstream: One of `DOWNSTREAM`.
        reads: Where the dictionary reads, `[batch, pos]`: elsewhere nothing can be dropped.
        clean: With `freeze`, the error of the clean pass, `[batch or 1, pos, d_out]`.
    """
    if downstream == "freeze":
        assert clean is not None
        return clean.expand_as
    if downstream == "drop":
        return lambda error: error * ~reads[..., None]
    return lambda error: error


class Formula:
    """The module's formula at the sites of one pass, which are to come in order."""

    def __init__(self, dictionaries: Mapping[Site, Dictionary]) -> None:
        self._dictionaries = dictionaries
        self._decoded, self._changes = Carried(), Carried()

    def at(self, site: Site, reads: Tensor, rule: ErrorRule, edit: Edit | None = None) -> SiteHook:
        """The hook that carries it out at `site`, which reads at `reads [batch, pos]`."""

        def hook(read: Tensor, written: Tensor) -> Tensor:
            dictionary = self._dictionaries[site]  # only now: few are in memory at a time
            active, own = read_active(dictionary, read, reads)
            error = written - self._decoded.up(site, own, _later(dictionary, active, own))
            kept = rule(error)
            changed, new_error = active.none(), kept
            if edit is not None:
                acts = active.dense(*read.shape[:2], dictionary.d_sae)
                new_acts, new_error = edit(acts, kept)
                changed = Active.of((new_acts - acts).flatten(0, 1))
            own, _ = write_active(dictionary.W_dec, changed, read.shape[0] * read.shape[1])
            own = own.view_as(error)
            change = self._changes.up(site, own, _later(dictionary, changed, own))
            return written + ((kept - error) + change + (new_error - kept)).to(written.dtype)

        return hook


def read_each(
    dictionaries: Mapping[Site, Dictionary], inputs: Mapping[Site, Tensor], reads: Tensor
) -> Iterator[tuple[Site, Active, Tensor]]:
    """Site by site the active latents and what all latents decode to, `[batch, pos, d_out]`.

    Args:
        inputs: What each site reads, `[batch, pos, d_in]`.
        reads: Where dictionaries read, `[batch, pos]`.
    """
    decoded = Carried()
    for site, x in inputs.items():
        dictionary = dictionaries[site]
        active, own = read_active(dictionary, x, reads)
        yield site, active, decoded.up(site, own, _later(dictionary, active, own))


def read_active(dictionary: Dictionary, x: Tensor, reads: Tensor) -> tuple[Active, Tensor]:
    """The active latents, row by row, and what they decode to, `[batch, pos, d_out]`."""
    flat, flat_reads = x.flatten(0, 1), reads.expand(x.shape[:2]).flatten()
    active = find_active(dictionary, flat, flat_reads)
    reconstruction = reconstruct(dictionary, flat, flat_reads, active)
    return active, reconstruction.view(*x.shape[:2], -1)


def _later(dictionary: Dictionary, active: Active, own: Tensor) -> list[Tensor]:
    """What latents write to each of the next layers, in the shape of `own [batch, pos, d_out]`."""
    n_pos = own.shape[0] * own.shape[1]
    later = write_each(dictionary.decoders[1:], active, n_pos)
    return [written.view_as(own) for written in later]
