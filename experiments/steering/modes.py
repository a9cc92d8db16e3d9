"""The two ways of steering a latent: a dose is added to it, or is what it is set to.

    add    a' = a + amount
    set    a' = amount, whatever the pass arrives with (clamping)

Either way a site writes `(a' - a) * W_dec` more, summed over its latents. What is added is known
beforehand; what setting changes only the pass shows, which latents below may have changed already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from circuits import LatentNode, Site, SplicedModel, UserError, set_to
from circuits.interventions import Edit, edits
from experiments.spans import SpanNode
from experiments.steering.vectors import Shifts, shifts, steering_edits

MODES = ("add", "set")

Changed = Callable[[], Shifts]
"""Says, after the pass, what steering has changed of what each site writes."""


def check_mode(mode: str) -> None:
    """Refuse a word that is no way of steering.

    Raises:
        UserError: it is none.
    """
    if mode not in MODES:
        raise UserError(
            f"mode={mode!r}; choose add, to raise what a latent has, or set, to replace it"
        )


def steer_rows(
    model: SplicedModel,
    ids: Tensor,
    nodes: Sequence[SpanNode],
    amounts: Sequence[Sequence[float]],
    places: Tensor,
    mode: str,
) -> tuple[Mapping[Site, Edit], Changed]:
    """Edits that steer `nodes` by `amounts[i]` in row `i` of a batch, and what they have changed.

    Args:
        model: The spliced model.
        ids: Of each row the same, `[1, pos]`.
        nodes: Latents.
        amounts: For each row and latent, in units of activation.
        places: Where each latent is steered, a mask `[n_nodes, pos]` of positions that are read.
        mode: `add` or `set`.
    """
    if mode == "add":
        raised = torch.tensor(amounts, dtype=torch.float32, device=ids.device)[..., None] * places
        added = shifts(model, nodes, raised)
        return steering_edits(added), lambda: added
    rows = [
        [
            set_to(LatentNode(node.site, node.latent, pos), amount)  # pyright: ignore
            for node, amount, mask in zip(nodes, row, places, strict=True)
            for pos in mask.nonzero()[:, 0].tolist()
        ]
        for row in amounts
    ]
    return _watched(model, nodes, edits(model, ids.expand(len(rows), -1), rows), len(rows), places)


def _watched(
    model: SplicedModel,
    nodes: Sequence[SpanNode],
    setting: Mapping[Site, Edit],
    n_rows: int,
    places: Tensor,
) -> tuple[dict[Site, Edit], Changed]:
    """The edits `setting`, and by how much they have raised `nodes`."""
    raised = torch.zeros(n_rows, *places.shape, device=places.device)

    def watch(site: Site, edit: Edit) -> Edit:
        here = [i for i, node in enumerate(nodes) if node.site == site]
        latents = [nodes[i].latent for i in here]

        def set_and_see(acts: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
            new_acts, new_error = edit(acts, error)
            change = new_acts[..., latents] - acts[..., latents]  # [rows, pos, latents]
            raised[:, here] = change.transpose(1, 2).to(raised) * places[here]
            return new_acts, new_error

        return set_and_see

    watched = {site: watch(site, edit) for site, edit in setting.items()}
    return watched, lambda: shifts(model, nodes, raised)
