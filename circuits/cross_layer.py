"""What cross-layer transcoders write beyond their own layer, carried up a pass.

A latent of a cross-layer transcoder (Ameisen et al. 2025, "Circuit Tracing") reads what the MLP of
its layer reads, and writes where the MLPs of its own and of later layers write, with a decoder for
each. What is decoded at a layer is then a sum over the latents of all layers up to it.
"""

from collections.abc import Iterable

from torch import Tensor

from circuits.sites import Site


class Carried:
    """By site, the sum of what latents of lower layers write there, as one pass goes up."""

    def __init__(self) -> None:
        self._waiting: dict[Site, Tensor] = {}

    def up(self, site: Site, own: Tensor, later: Iterable[Tensor]) -> Tensor:
        """What is written at `site` in all: by its own latents and by those of lower layers.

        Sites are to come in the order of the forward pass.

        Args:
            site: Where the pass is.
            own: What its latents write there.
            later: What they write to each of the next layers.
        """
        for n, written in enumerate(later, 1):
            there = Site(site.layer + n, site.kind)
            before = self._waiting.get(there)
            self._waiting[there] = written if before is None else before + written
        carried = self._waiting.pop(site, None)
        return own if carried is None else own + carried
