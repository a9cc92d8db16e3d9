"""Run the model with a chosen set of nodes left alone and every other one set to a reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from attribution.metrics import BoundMetric
from circuits import ErrorNode, LatentNode, Reference, Site, SplicedModel, Trace
from circuits.interventions import Edit

ERRORS = ("kept", "scored", "removed")
"""What becomes of errors: they stay and follow `downstream`; stay only where the circuit holds
them; or are set to the reference. Where dictionaries do not read (BOS), they stay in any case."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """What a circuit is chosen from on one prompt, `n` nodes in all.

    Every latent of every site that is active on the prompt or in the reference and, where they are
    scored, every error.

    Attributes:
        sites: Where each site's latents are: positions, latents, and their slice of the `n`.
        errors: Where each site's errors are: positions, and their slice; may be empty.
        n: Latents come first, site by site, then errors.
    """

    sites: Mapping[Site, tuple[Tensor, Tensor, slice]]
    errors: Mapping[Site, tuple[Tensor, slice]]
    n: int

    @classmethod
    def of(
        cls, trace: Trace, reference: Reference, *, errors_at: Tensor | None = None
    ) -> Candidates:
        """From the clean trace and the reference.

        Args:
            errors_at: Where errors are candidates too, `[pos]` booleans; nowhere by default.
        """
        sites, errors, n = {}, {}, 0
        for site, here in trace.sites.items():
            active = (here.dense() != 0) | (reference.acts(site) != 0)
            pos, latent = active.nonzero(as_tuple=True)
            sites[site] = (pos, latent, slice(n, n + len(pos)))
            n += len(pos)
        if errors_at is not None:
            pos = errors_at.nonzero()[:, 0]
            for site in trace.sites:
                errors[site] = (pos, slice(n, n + len(pos)))
                n += len(pos)
        return cls(sites, errors, n)

    @cached_property
    def nodes(self) -> tuple[LatentNode | ErrorNode, ...]:
        """All of them, `[n]`."""
        found: list[LatentNode | ErrorNode] = []
        for site, (pos, latent, _) in self.sites.items():
            pairs = zip(latent.tolist(), pos.tolist(), strict=True)
            found += [LatentNode(site, latent, pos) for latent, pos in pairs]
        for site, (pos, _) in self.errors.items():
            found += [ErrorNode(site, p) for p in pos.tolist()]
        return tuple(found)


@torch.no_grad()
def run_kept(
    model: SplicedModel,
    ids: Tensor,
    score: BoundMetric,
    candidates: Candidates,
    kept: Tensor,
    reference: Reference,
    *,
    downstream: str,
    errors: str,
    batch_size: int,
    advance: Callable[[int], object] = lambda n: None,
) -> Tensor:
    """The metric with only some nodes left alone, `[rows]`.

    Args:
        ids: The prompt, `[1, pos]`.
        kept: Which candidates are left alone in each pass, `[rows, n]` booleans. All other
            latents are set to the reference, those that only the changed pass switches on too.
        errors: `kept`; `scored`, for candidates with errors: set to the reference's where `kept`
            does not hold them; or `removed` (all set to the reference's).
        downstream: What kept errors do: `recompute` or `freeze`.
        advance: Told how many passes are done after each batch.
    """
    held = model.errors(ids) if downstream == "freeze" else None
    reads = model.reads(ids)
    values = []
    for rows in kept.split(batch_size):
        edits = {
            site: _keep(
                rows[:, where],
                pos,
                latent,
                reference,
                site,
                _alone(rows, candidates, site, reads, errors),
            )
            for site, (pos, latent, where) in candidates.sites.items()
        }
        read = model.run(
            ids.expand(len(rows), -1),
            edits,
            downstream=downstream,
            clean_errors=held,
            output=score.output,
        )
        values.append(score(read).float())
        advance(len(rows))
    return torch.cat(values)


def _alone(
    kept: Tensor, candidates: Candidates, site: Site, reads: Tensor, errors: str
) -> Tensor | None:
    """Where errors of `site` stay in each row, `[rows, pos]`; None for everywhere."""
    if errors == "kept":
        return None
    # where dictionaries do not read (BOS), the error is the whole activation: it stays
    alone = ~reads.expand(len(kept), -1)
    if errors == "scored":
        pos, where = candidates.errors[site]
        alone = alone.clone()
        alone[:, pos] = kept[:, where]
    return alone


def _keep(
    kept: Tensor,
    pos: Tensor,
    latent: Tensor,
    reference: Reference,
    site: Site,
    alone: Tensor | None,
) -> Edit:
    """One site's edit: latents `kept [rows, n]` and errors `alone` as they come, else reference."""
    stand_in, error_stand_in = reference.acts(site), reference.error(site)

    def edit(acts: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        changed = stand_in.to(acts).expand_as(acts).clone()
        changed[:, pos, latent] = torch.where(kept, acts[:, pos, latent], changed[:, pos, latent])
        if alone is not None:
            error = torch.where(alone[..., None], error, error_stand_in.to(error))
        return changed, error

    return edit
