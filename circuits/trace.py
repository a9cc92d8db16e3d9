"""What the dictionaries saw in one forward pass: active latents, sparse, and errors."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from circuits.active import Active
from circuits.sites import Site


@dataclass(frozen=True, eq=False, repr=False)
class SiteTrace:
    """One site of one prompt.

    Attributes:
        pos: Positions of the active latents, `[n]`, ascending.
        latent: Their indices in the dictionary, `[n]`.
        acts: Their activations, `[n]`.
        error: What the site writes less `decode(encode(x))` of what it reads, `[pos, d_out]`,
            float32 or wider; all it writes where the dictionary does not read (BOS, EOS, padding).
        d_sae: How many latents the dictionary has.
    """

    pos: Tensor
    latent: Tensor
    acts: Tensor
    error: Tensor
    d_sae: int

    def __repr__(self) -> str:
        return (
            f"SiteTrace({len(self.pos)} active at {len(self.error)} positions, d_sae {self.d_sae})"
        )

    @classmethod
    def from_dense(cls, acts: Tensor, error: Tensor) -> "SiteTrace":
        """From dense activations `[pos, d_sae]`."""
        active = Active.of(acts)
        return cls(active.pos, active.latent, active.acts, error, acts.shape[1])

    @property
    def _active(self) -> Active:
        """Without the error."""
        return Active(self.pos, self.latent, self.acts)

    def dense(self) -> Tensor:
        """The activations as `[pos, d_sae]`."""
        return self._active.dense(len(self.error), self.d_sae)

    def at(self, pos: Tensor, latent: Tensor) -> Tensor:
        """The activations of latents `[n]` at positions `[n]`, `[n]`; 0 for those that are off."""
        return self._active.at(pos, latent, self.d_sae)


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """All spliced sites of one prompt.

    Attributes:
        ids: Token ids, `[pos]`, BOS first.
        embedding: The scaled embedding, `[pos, d_model]`.
        sites: In the order of the forward pass.
    """

    ids: Tensor
    embedding: Tensor
    sites: Mapping[Site, SiteTrace]

    def __repr__(self) -> str:
        return f"Trace({len(self.ids)} tokens, {len(self.sites)} sites)"
