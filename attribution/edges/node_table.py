"""Which nodes a graph has, as arrays: where each stands among all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuits import BiasNode, ErrorNode, LatentNode, LogitNode, Node, Site, TokenNode
from circuits.active import Active


@dataclass(frozen=True, eq=False)
class SiteNodes:
    """One site's nodes, one after the other: its bias, its latents, an error at each position.

    Attributes:
        bias_at: Index of the bias node among all nodes.
        latents: By ascending position; those that only a reference switches on have acts of 0.
        n_pos: Number of positions.
    """

    bias_at: int
    latents: Active
    n_pos: int

    @property
    def latents_at(self) -> range:
        """Indices of the latents."""
        return range(self.bias_at + 1, self.bias_at + 1 + len(self.latents.pos))

    @property
    def targets(self) -> Tensor:
        """Which of the latents are on, `[k]`, on the CPU: the others are sources alone."""
        return self.latents.acts.nonzero()[:, 0].cpu()

    @property
    def errors_at(self) -> range:
        """Indices of the errors."""
        return range(self.latents_at.stop, self.latents_at.stop + self.n_pos)


@dataclass(frozen=True, eq=False)
class NodeTable:
    """Every node in topological order: tokens, site by site, what is explained last.

    Attributes:
        n_pos: Number of positions; the tokens have the indices `0 ... n_pos - 1`.
        sites: In the order of the forward pass.
        logits: Names of the logit nodes.
    """

    n_pos: int
    sites: Mapping[Site, SiteNodes]
    logits: tuple[str, ...]

    @classmethod
    def of(cls, n_pos: int, latents: Mapping[Site, Active], logits: tuple[str, ...]) -> NodeTable:
        """The table with these latents, by ascending position, as nodes."""
        sites, at = {}, n_pos
        for site, active in latents.items():
            sites[site] = SiteNodes(at, active, n_pos)
            at = sites[site].errors_at.stop
        return cls(n_pos, sites, logits)

    def __len__(self) -> int:
        return self.logits_at.stop

    @property
    def logits_at(self) -> range:
        """Indices of the logit nodes."""
        last = [nodes.errors_at.stop for nodes in self.sites.values()][-1]
        return range(last, last + len(self.logits))

    def outputs(self, weights: Sequence[float]) -> np.ndarray:
        """How much each node counts as an output, 1 in all: the logit nodes by their `weights`."""
        sizes = torch.tensor(weights).abs().double().numpy()
        outputs = np.zeros(len(self))
        outputs[self.logits_at.start :] = sizes / sizes.sum()
        return outputs

    def nodes(self) -> tuple[Node, ...]:
        """The node objects."""
        nodes: list[Node] = [TokenNode(pos) for pos in range(self.n_pos)]
        for site, here in self.sites.items():
            latents = here.latents
            pairs = zip(latents.latent.tolist(), latents.pos.tolist(), strict=True)
            nodes += [BiasNode(site), *(LatentNode(site, latent, pos) for latent, pos in pairs)]
            nodes += [ErrorNode(site, pos) for pos in range(self.n_pos)]
        return (*nodes, *map(LogitNode, self.logits))

    def acts(self) -> Tensor:
        """A latent's activation, 1 for every other node, `[n]`, float32 on the CPU."""
        acts = torch.ones(len(self))
        for here in self.sites.values():
            at = here.latents_at
            acts[at.start : at.stop] = here.latents.acts.float().cpu()
        return acts
