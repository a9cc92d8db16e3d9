"""Changes to single nodes of a forward pass, as small values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuits.errors import UserError
from circuits.nodes import ErrorNode, LatentNode
from circuits.sites import Site

if TYPE_CHECKING:
    from circuits.model import SplicedModel
    from circuits.reference import Reference

Edit = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From latents `[batch, pos, d_sae]` and error `[batch, pos, d_out]` to what they become."""


@dataclass(frozen=True, eq=False)
class Intervention:
    """`value -> scale * value + shift` at one latent or error.

    Attributes:
        node: A `LatentNode` or an `ErrorNode`.
        scale: Factor on the value the pass arrives with.
        shift: What is added: a number, or for an error also a vector `[d_out]`.
    """

    node: LatentNode | ErrorNode
    scale: float
    shift: float | Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.node, LatentNode | ErrorNode):
            raise UserError(f"cannot intervene on {self.node}; only on latents and errors")
        if not isinstance(self.shift, int | float | Tensor):
            raise UserError(f"{self.node}: {self.shift!r} is no value; give a number or a tensor")
        if not isinstance(self.scale, int | float):
            raise UserError(f"{self.node}: {self.scale!r} is no factor; give a number")
        size = self.shift.numel() if isinstance(self.shift, Tensor) else 1
        if isinstance(self.node, LatentNode) and size != 1:
            raise UserError(f"{self.node}: an activation is one number; got {size}")


def zero(node: LatentNode | ErrorNode) -> Intervention:
    """Take the node out."""
    return Intervention(node, 0.0, 0.0)


def set_to(node: LatentNode | ErrorNode, value: float | Tensor) -> Intervention:
    """Give the node this value, whatever the pass arrives with."""
    return Intervention(node, 0.0, value)


def scale(node: LatentNode | ErrorNode, factor: float) -> Intervention:
    """Multiply the node's value."""
    return Intervention(node, factor, 0.0)


def mean(node: LatentNode | ErrorNode, reference: Reference) -> Intervention:
    """Give the node its value in `reference`, such as `mean_reference(model, prompts)`."""
    return Intervention(node, 0.0, reference.value(node))


def edits(
    model: SplicedModel, ids: Tensor, rows: Sequence[Sequence[Intervention]]
) -> Mapping[Site, Edit]:
    """One edit a site that carries out, in row `i` of the batch, the interventions `rows[i]`.

    The logits without two latents together, and without each:

        ids = model.tokens([text] * 3)
        model.run(ids, edits(model, ids, [[zero(a), zero(b)], [zero(a)], [zero(b)]]))

    `model(text, [zero(a), zero(b)])` is short for the same list in every row.

    Args:
        model: Says which sites are spliced and how many latents each has.
        ids: The tokens of the pass, `[batch, pos]`.
        rows: Interventions for each row; as many as rows in `ids`.

    Raises:
        UserError: a site that is not spliced, a latent or position that does not exist, a latent
            where the dictionary does not read (BOS, EOS, padding), a node named twice, or not one
            list a row.
    """
    reads = model.reads(ids)
    if len(rows) != len(ids):
        raise UserError(
            f"{len(rows)} lists of interventions for {len(ids)} rows of token ids; give one each"
        )
    return {
        site: edit_at([(row, i.node.pos) for row, i in items], [i for _, i in items])
        for site, items in by_site(model, reads, rows).items()
    }


def by_site(
    model: SplicedModel, reads: Tensor, rows: Sequence[Sequence[Intervention]]
) -> dict[Site, list[tuple[int, Intervention]]]:
    """The interventions of all rows, each with its row, site by site.

    Args:
        reads: Where dictionaries read, `[batch or 1, pos]`.

    Raises:
        UserError: as `edits`.
    """
    where = reads.tolist()
    found: defaultdict[Site, list[tuple[int, Intervention]]] = defaultdict(list)
    for row, interventions in enumerate(rows):
        if isinstance(interventions, Intervention) or not all(
            isinstance(i, Intervention) for i in interventions
        ):
            raise UserError("give a list of interventions, for example [zero(node)]")
        nodes = [i.node for i in interventions]
        if len(set(nodes)) < len(nodes):
            twice = next(node for node in nodes if nodes.count(node) > 1)
            raise UserError(f"{twice} is intervened on twice in one pass; give each node once")
        for intervention in interventions:
            _check(model, intervention, where[row if len(where) > 1 else 0])
            found[intervention.node.site].append((row, intervention))
    return dict(found)


def check_nodes(model: SplicedModel, ids: Tensor, nodes: Sequence[LatentNode | ErrorNode]) -> None:
    """Refuse, before any pass over `ids [1, pos]`, nodes that cannot be intervened on.

    Raises:
        UserError: as `edits`.
    """
    (reads,) = model.reads(ids).tolist()
    for node in nodes:
        _check(model, zero(node), reads)


def check_site(model: SplicedModel, site: Site) -> None:
    """Refuse a site without a dictionary.

    Raises:
        UserError: it has none.
    """
    if site not in model.dictionaries:
        raise UserError(f"no dictionary at {site}; {model.name} has {model.describe_sites()}")


def check_latent(model: SplicedModel, site: Site, latent: int, node: object) -> None:
    """Refuse a latent that the model does not have.

    Args:
        node: What it is asked about as, for the message.

    Raises:
        UserError: no dictionary at `site`, or none of so many latents.
    """
    check_site(model, site)
    d_sae = model.dictionaries.summary(site).d_sae
    if not 0 <= latent < d_sae:
        raise UserError(f"{node}: no latent {latent}; {site} has {d_sae}")


def _check(model: SplicedModel, intervention: Intervention, reads: list[bool]) -> None:
    node, shift = intervention.node, intervention.shift
    check_site(model, node.site)
    if not 0 <= node.pos < len(reads):
        raise UserError(f"{node}: no position {node.pos}; the prompt has {len(reads)} tokens")
    summary = model.dictionaries.summary(node.site)
    if (
        isinstance(shift, Tensor)
        and isinstance(node, ErrorNode)
        and shift.shape not in ((), (summary.d_out,))
    ):
        raise UserError(f"{node}: an error has {summary.d_out} numbers; got {list(shift.shape)}")
    if isinstance(node, LatentNode):
        check_latent(model, node.site, node.latent, node)
        if not reads[node.pos]:
            raise UserError(
                f"{node}: dictionaries do not read position {node.pos} (BOS, EOS or padding); "
                "there only the error can be changed"
            )


def edit_at(places: Sequence[tuple[int, int]], interventions: Sequence[Intervention]) -> Edit:
    """One site's interventions as one change of the tensors.

    Args:
        places: Row and position of each in the tensors that are changed.
    """
    both = list(zip(places, interventions, strict=True))
    latents = [((*at, i.node.latent), i) for at, i in both if isinstance(i.node, LatentNode)]
    errors = [(at, i) for at, i in both if isinstance(i.node, ErrorNode)]

    def changed(values: Tensor, of: Sequence[tuple[tuple[int, ...], Intervention]]) -> Tensor:
        if not of:
            return values
        index = tuple(torch.tensor([at for at, _ in of], device=values.device).T)
        return values.index_put(index, new_values(values[index], [i for _, i in of]))

    return lambda acts, error: (changed(acts, latents), changed(error, errors))


def new_values(values: Tensor, interventions: Sequence[Intervention]) -> Tensor:
    """What interventions make of activations `[n]` or errors `[n, d_out]`, one of each."""
    scales = values.new_tensor([i.scale for i in interventions])
    if values.ndim == 1:
        return scales * values + values.new_tensor([float(i.shift) for i in interventions])
    shifts = [torch.as_tensor(i.shift).to(values).expand(values.shape[1]) for i in interventions]
    return scales[:, None] * values + torch.stack(shifts)
