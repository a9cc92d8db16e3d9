"""The values that stand in for a node when it is ablated: zero, a mean, or another prompt's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuits.errors import UserError
from circuits.nodes import ErrorNode, LatentNode, Node
from circuits.prompts import Prompt
from circuits.sites import Site
from circuits.trace import SiteTrace, Trace

if TYPE_CHECKING:
    from circuits.model import SplicedModel


@dataclass(frozen=True, eq=False, repr=False)
class Reference:
    """A value for every latent and error of a prompt, position by position.

    Attributes:
        name: For tables and records: `zero`, `mean`, `corrupted`, `clean`, `resample`,
            `set to 2.5`, or a mixture's sentence.
        trace: The values, as a trace; its `ids` are the prompt's (of a mean, the first one's).
    """

    name: str
    trace: Trace

    def __repr__(self) -> str:
        return f"Reference({self.name!r}, {self.trace!r})"

    def acts(self, site: Site) -> Tensor:
        """`[pos, d_sae]`."""
        return self.trace.sites[site].dense()

    def error(self, site: Site) -> Tensor:
        """`[pos, d_out]`."""
        return self.trace.sites[site].error

    def value(self, node: Node) -> Tensor:
        """A latent's activation (a scalar) or an error (`[d_out]`).

        Raises:
            UserError: another kind of node, or a site or position that the trace does not have.
        """
        if not isinstance(node, LatentNode | ErrorNode):
            raise UserError(f"{node} has no reference value; latents and errors have one")
        if node.site not in self.trace.sites or not 0 <= node.pos < len(self.trace.ids):
            raise UserError(
                f"{node} has no reference value; there are {len(self.trace.ids)} positions at "
                f"{', '.join(map(str, self.trace.sites))}"
            )
        if isinstance(node, ErrorNode):
            return self.error(node.site)[node.pos]
        trace = self.trace.sites[node.site]
        return trace.acts[(trace.pos == node.pos) & (trace.latent == node.latent)].sum()


def check_reference(model: SplicedModel, reference: Reference, ids: Tensor) -> None:
    """Refuse what is no reference for the prompt `ids [1, pos]` and the sites of `model`."""
    _check_type(reference)
    missing = [str(site) for site in model.sites if site not in reference.trace.sites]
    if missing:
        raise UserError(
            f"the reference has no values at {', '.join(missing)}; make it with the same model"
        )
    for site in model.sites:
        ours, theirs = model.dictionaries.summary(site), reference.trace.sites[site]
        if (theirs.d_sae, theirs.error.shape[1]) != (ours.d_sae, ours.d_out):
            raise UserError(
                f"the reference is of {theirs.d_sae} latents at {site} that write "
                f"{theirs.error.shape[1]} numbers; {model.name} has {ours.d_sae} there that write "
                f"{ours.d_out}; make it with the same dictionaries"
            )
    n_reference, n_prompt = len(reference.trace.ids), ids.shape[1]
    if n_reference != n_prompt:
        raise UserError(
            f"the reference has {n_reference} tokens and the prompt {n_prompt}; "
            "they must be equally long, so that positions correspond"
        )


def _check_type(reference: object) -> None:
    if not isinstance(reference, Reference):
        raise UserError(
            "a reference is made by zero_reference, corrupted_reference, mean_reference or "
            f"mixed_reference; got {reference!r}"
        )


def zero_reference(model: SplicedModel, prompt: str | Prompt) -> Reference:
    """Every latent off and every error zero."""
    (ids,) = _one(model.tokens(prompt))
    none = torch.empty(0, dtype=torch.long, device=ids.device)
    no_acts = torch.empty(0, device=ids.device)
    sites = {}
    for site in model.sites:
        summary = model.dictionaries.summary(site)
        error = no_acts.new_zeros(len(ids), summary.d_out)
        sites[site] = SiteTrace(none, none, no_acts, error, summary.d_sae)
    embedding = no_acts.new_zeros(len(ids), model.config.hidden_size)
    return Reference("zero", Trace(ids, embedding, sites))


def _one(ids: Tensor) -> Tensor:
    if len(ids) != 1:
        raise UserError(f"a reference is of one prompt; got {len(ids)}")
    return ids


def corrupted_reference(model: SplicedModel, prompt: Prompt) -> Reference:
    """The values on the prompt's corrupted partner.

    Raises:
        UserError: there is no partner, its number of tokens differs, or it is the prompt itself.
    """
    if not isinstance(prompt, Prompt) or prompt.corrupted is None:
        raise UserError(f"{prompt!r} has no corrupted partner; give Prompt(..., corrupted=...)")
    clean, corrupted = (model.tokens(text)[0] for text in (prompt.text, prompt.corrupted))
    n_clean, n_corrupted = len(clean), len(corrupted)
    if n_clean != n_corrupted:
        raise UserError(
            f"the clean prompt has {n_clean} tokens and the corrupted one {n_corrupted}; "
            "they must be equally long, so that positions correspond"
        )
    if clean.equal(corrupted):
        raise UserError(
            f"the corrupted partner of {prompt.text!r} is the prompt itself, so nothing would "
            "change; give one that differs"
        )
    return Reference("corrupted", model.trace(prompt.corrupted))


def mean_reference(model: SplicedModel, prompts: Sequence[str | Prompt]) -> Reference:
    """The mean over `prompts`, position by position (a latent counts 0 where it is off).

    Raises:
        UserError: no prompts, or their numbers of tokens differ.
    """
    if isinstance(prompts, str | Prompt):
        raise UserError("a mean is over several prompts; give a list of them")
    return average([Reference("clean", model.trace(prompt)) for prompt in prompts], name="mean")


def average(references: Sequence[Reference], *, name: str) -> Reference:
    """The mean of several references, position by position (a latent counts 0 where it is off).

    Raises:
        UserError: none, or their numbers of tokens differ.
    """
    traces = [reference.trace for reference in references]
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
    return Reference(name, Trace(traces[0].ids, embedding, sites))


def mixed_reference(*, latents: Reference, errors: Reference, tokens: Reference) -> Reference:
    """Another baseline for each type of node: latents at a mean and errors at zero, say.

    Raises:
        UserError: references of prompts of different lengths or of different sites.
    """
    for reference in (latents, errors, tokens):
        _check_type(reference)
    traces = [reference.trace for reference in (latents, errors, tokens)]
    if len({len(trace.ids) for trace in traces}) > 1 or len({tuple(t.sites) for t in traces}) > 1:
        raise UserError(
            "references of different prompts or sites do not mix; make all of them with the same "
            "model, for prompts of one length"
        )
    sites = {
        site: replace(here, error=errors.trace.sites[site].error)
        for site, here in latents.trace.sites.items()
    }
    name = f"latents {latents.name}, errors {errors.name}, tokens {tokens.name}"
    return Reference(name, Trace(latents.trace.ids, tokens.trace.embedding, sites))
