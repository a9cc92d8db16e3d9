"""The values that stand in for a node when it is ablated: zero, a mean, or another prompt's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuits.errors import UserError
from circuits.nodes import ErrorNode, LatentNode, Node
from circuits.prompts import Prompt
from circuits.sites import Site
from circuits.trace import SiteTrace, Trace, zero_trace

if TYPE_CHECKING:
    from circuits.splice import SplicedModel


@dataclass(frozen=True)
class Reference:
    """A value for every latent and error of a prompt, position by position.

    Attributes:
        name: `zero`, `mean` or `corrupted`, for tables and records.
        trace: The values, as a trace; its `ids` are the prompt they belong to.
    """

    name: str
    trace: Trace

    def acts(self, site: Site) -> Tensor:
        """`[pos, d_sae]`."""
        return self.trace.sites[site].dense()

    def error(self, site: Site) -> Tensor:
        """`[pos, d_out]`."""
        return self.trace.sites[site].error

    def value(self, node: Node) -> Tensor:
        """A latent's activation (a scalar) or an error (`[d_out]`)."""
        if isinstance(node, ErrorNode):
            return self.error(node.site)[node.pos]
        if not isinstance(node, LatentNode):
            raise UserError(f"{node} has no reference value; latents and errors have one")
        trace = self.trace.sites[node.site]
        return trace.acts[(trace.pos == node.pos) & (trace.latent == node.latent)].sum()


def zero_reference(model: SplicedModel, prompt: str | Prompt) -> Reference:
    """Every latent off and every error zero."""
    return Reference("zero", zero_trace(model.trace(prompt)))


def corrupted_reference(model: SplicedModel, prompt: Prompt) -> Reference:
    """The values on the prompt's corrupted partner.

    Raises:
        UserError: there is no partner, or its number of tokens differs.
    """
    if prompt.corrupted is None:
        raise UserError(
            f"{prompt.text!r} has no corrupted partner; give Prompt(..., corrupted=...)"
        )
    n_clean, n_corrupted = (model.tokens(t).shape[1] for t in (prompt.text, prompt.corrupted))
    if n_clean != n_corrupted:
        raise UserError(
            f"the clean prompt has {n_clean} tokens and the corrupted one {n_corrupted}; "
            "they must be equally long, so that positions correspond"
        )
    return Reference("corrupted", model.trace(prompt.corrupted))


def mean_reference(model: SplicedModel, prompts: Sequence[str | Prompt]) -> Reference:
    """The mean over `prompts`, position by position (a latent counts 0 where it is off).

    Raises:
        UserError: no prompts, or their numbers of tokens differ.
    """
    traces = [model.trace(prompt) for prompt in prompts]
    lengths = sorted({len(trace.ids) for trace in traces})
    if len(lengths) != 1:
        raise UserError(
            f"a mean needs prompts of one length, so that positions correspond; got {lengths}"
        )
    sites = {}
    for site in traces[0].sites:
        acts = torch.stack([trace.sites[site].dense() for trace in traces]).mean(0)
        error = torch.stack([trace.sites[site].error for trace in traces]).mean(0)
        sites[site] = SiteTrace.from_dense(acts, error)
    embedding = torch.stack([trace.embedding for trace in traces]).mean(0)
    return Reference("mean", Trace(traces[0].ids, embedding, sites))
