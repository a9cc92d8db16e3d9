"""Run the model with a chosen set of latents left alone and every other one set to a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from attribution.metrics import BoundMetric
from circuits import LatentNode, Reference, Site, SplicedModel, Trace, UserError
from circuits.interventions import Edit

ERRORS = ("kept", "removed")
"""What becomes of errors: they stay and follow `downstream`, or are set to the reference."""


@dataclass(frozen=True)
class Candidates:
    """Every latent of every site that is active on the prompt or in the reference, `n` in all.

    Attributes:
        nodes: Site by site, `[n]`.
        sites: Where each site's latents are: its positions, latents and slice of `nodes`.
    """

    nodes: tuple[LatentNode, ...]
    sites: Mapping[Site, tuple[Tensor, Tensor, slice]]

    @classmethod
    def of(cls, trace: Trace, reference: Reference) -> Candidates:
        """From the clean trace and the reference."""
        nodes: list[LatentNode] = []
        sites = {}
        for site, here in trace.sites.items():
            active = (here.dense() != 0) | (reference.acts(site) != 0)
            pos, latent = active.nonzero(as_tuple=True)
            pairs = zip(latent.tolist(), pos.tolist(), strict=True)
            sites[site] = (pos, latent, slice(len(nodes), len(nodes) + len(pos)))
            nodes += [LatentNode(site, latent, pos) for latent, pos in pairs]
        return cls(tuple(nodes), sites)

    def places(self, latents: Sequence[LatentNode]) -> list[int]:
        """Where each of `latents` is among the nodes.

        Raises:
            UserError: one is active neither on the prompt nor in the reference.
        """
        index = {node: i for i, node in enumerate(self.nodes)}
        strangers = [node for node in latents if node not in index]
        if strangers:
            raise UserError(
                f"{strangers[0]} is not active on this prompt, nor in the reference; "
                "give a graph of the same prompt, model and dictionaries"
            )
        return [index[node] for node in latents]


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
) -> Tensor:
    """The metric with only some latents left alone, `[rows]`.

    Args:
        ids: The prompt, `[1, pos]`.
        kept: Which candidates are left alone in each pass, `[rows, n]` booleans. All other
            latents are set to the reference, those that only the changed pass switches on too.
        errors: `kept` or `removed` (set to the reference's).
        downstream: What kept errors do: `recompute` or `freeze`.
    """
    held = model.errors(ids) if downstream == "freeze" else None
    values = []
    with tqdm(total=len(kept), desc="circuits", unit="pass", disable=None, delay=1) as bar:
        for rows in kept.split(batch_size):
            batch = ids.expand(len(rows), -1)
            edits = {
                site: _keep(rows[:, where], pos, latent, reference, site, model.reads(ids), errors)
                for site, (pos, latent, where) in candidates.sites.items()
            }
            read = model.run(
                batch,
                edits,
                downstream=downstream,
                clean_errors=held,
                output=score.output,
            )
            values.append(score(read))
            bar.update(len(rows))
    return torch.cat(values)


def _keep(
    kept: Tensor,
    pos: Tensor,
    latent: Tensor,
    reference: Reference,
    site: Site,
    reads: Tensor,
    errors: str,
) -> Edit:
    """One site's edit: latents `kept [rows, n]` as they come, all else from the reference."""
    stand_in, error_stand_in = reference.acts(site), reference.error(site)

    def edit(acts: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        changed = stand_in.to(acts).expand_as(acts).clone()
        changed[:, pos, latent] = torch.where(kept, acts[:, pos, latent], changed[:, pos, latent])
        if errors == "removed":
            # where dictionaries do not read (BOS), the error is the whole activation: it stays
            error = torch.where(reads[..., None], error_stand_in.to(error), error)
        return changed, error

    return edit
