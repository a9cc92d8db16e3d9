"""A circuit found by learning a mask over nodes, instead of by attribution.

Each node has a mask between 0 (set to the reference) and 1 (left alone), `sigmoid(theta)`, and
`theta` descends on

    mean over prompts of ((m(C) - m(M)) / gap)^2  +  sparsity . mean of the masks

with `gap` the mean |m(M) - m(empty)|: a continuous relaxation, without the noise of hard-concrete
gates (Louizos et al. 2018, arXiv 1712.01312). `theta` ranks the nodes. It is the one method here
that sees nodes of several sites act together; it is also the slowest, and its result depends on
`sparsity`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from attribution.gradients import check_convention
from attribution.metrics import BoundMetric, bind
from circuits import Prompt, Reference, Site, SplicedModel, UserError
from circuits.interventions import check_latent
from experiments.kinds import AblationKind
from experiments.pooled import MetricOf, baseline
from experiments.spans import SpanNode, Spans, check_spans

START = 2.0
"""Of `theta`: masks begin at 0.88, nearly the whole model."""


def learn_masks(
    model: SplicedModel,
    prompts: Sequence[Prompt],
    spans: Spans,
    metric: MetricOf,
    nodes: Sequence[SpanNode],
    kind: AblationKind,
    *,
    downstream: str = "recompute",
    sparsity: float = 1.0,
    n_steps: int = 100,
    learning_rate: float = 0.1,
) -> np.ndarray:
    """`theta` of each of `nodes`, `[n_nodes]`: the higher, the more it is needed. Errors are kept.

    Args:
        nodes: Latents that may be kept; all other latents are set to the reference throughout.
        kind: Of ablation; of several donors the mean stands in.
        downstream: What errors do: `recompute` or `freeze`.
        sparsity: What a mask costs; larger values keep fewer nodes.
        n_steps: Steps of Adam, each over all prompts.
        learning_rate: Of Adam: about how far `theta` moves in a step.

    Raises:
        UserError: errors among the nodes, cross-layer transcoders, a number out of range, another
            convention, or prompts on which the empty circuit does all that the model does.
    """
    _check(model, prompts, spans, nodes, downstream)
    if sparsity < 0 or n_steps < 1 or learning_rate <= 0:
        raise UserError(
            f"sparsity={sparsity}, n_steps={n_steps}, learning_rate={learning_rate}; "
            "give 0 or more, at least 1, and more than 0"
        )
    masked = [
        MaskedPrompt.of(model, prompt, i, spans, metric, nodes, kind, downstream)
        for i, prompt in enumerate(prompts)
    ]
    theta = torch.full((len(nodes),), START, device=model.device, requires_grad=True)
    with torch.no_grad():
        empty = torch.zeros_like(theta)
        gap = float(np.mean([abs(one.full - one.run(empty).item()) for one in masked]))
    if gap == 0:
        raise UserError(
            f"ablating every latent ({kind.name}) leaves the metric as it is: there is nothing to "
            "keep; ablate another way, or give another metric"
        )
    optimizer = torch.optim.Adam([theta], lr=learning_rate)
    for _ in tqdm(range(n_steps), "learning masks", unit="step", disable=None, delay=1):
        optimizer.zero_grad()
        for one in masked:  # one at a time: memory is that of one prompt
            mask = theta.sigmoid()
            lost = (one.run(mask) - one.full) / gap
            loss = (lost**2 + sparsity * mask.mean()) / len(masked)
            loss.backward()
        optimizer.step()
    return theta.detach().double().cpu().numpy()


@dataclass(frozen=True, eq=False)
class MaskedPrompt:
    """One prompt whose latents are masked.

    Attributes:
        ids: `[1, pos]`.
        full: m(M).
        reference: What a masked latent becomes.
        governed: By site, the positions and latents that a mask governs and its number, `[k]` each.
        errors: The clean errors, by site, where they are held (`freeze`); else None.
    """

    model: SplicedModel
    ids: Tensor
    score: BoundMetric
    full: float
    reference: Reference
    governed: Mapping[Site, tuple[Tensor, Tensor, Tensor]]
    errors: Mapping[Site, Tensor] | None

    @classmethod
    def of(
        cls,
        model: SplicedModel,
        prompt: Prompt,
        i: int,
        spans: Spans,
        metric: MetricOf,
        nodes: Sequence[SpanNode],
        kind: AblationKind,
        downstream: str,
    ) -> MaskedPrompt:
        """Of prompt number `i` of `spans`.

        A mask governs its node wherever its span is and the node is on, on the prompt or in the
        reference: elsewhere it is no candidate of a circuit, and stays off.
        """
        ids, score = model.tokens(prompt), bind(metric(prompt), model)
        reference, trace = baseline(kind, model, prompt), model.trace(ids)
        by_site: dict[Site, list[tuple[int, int, int]]] = {site: [] for site in model.sites}
        for number, node in enumerate(nodes):
            assert node.latent is not None
            places = spans.nodes(node, i)
            by_site[node.site] += [(place.pos, node.latent, number) for place in places]
        governed = {}
        for site, triples in by_site.items():
            columns = torch.tensor(triples, dtype=torch.long, device=ids.device).view(-1, 3)
            pos, latent, number = columns.T
            on = (trace.sites[site].dense() != 0) | (reference.acts(site) != 0)
            there = on[pos, latent]
            governed[site] = pos[there], latent[there], number[there]
        full = score(model.run(ids, output=score.output)).item()
        errors = model.errors(ids) if downstream == "freeze" else None
        return cls(model, ids, score, full, reference, governed, errors)

    def run(self, mask: Tensor) -> Tensor:
        """m(C) for masks `[n_nodes]`, `[1]`, differentiable.

        Latents that none governs have a mask of 0.
        """
        reads = self.model.reads(self.ids)[..., None]
        hooks = {site: partial(self._write, site, mask, reads) for site in self.model.sites}
        return self.score(self.model.forward(self.ids, hooks, output=self.score.output))

    def _write(
        self, site: Site, mask: Tensor, reads: Tensor, read: Tensor, written: Tensor
    ) -> Tensor:
        """What a site writes with its latents masked, from what arrives there."""
        dictionary = self.model.dictionaries[site]
        acts = (dictionary.encode(read) * reads).float()
        stand_in = self.reference.acts(site).to(acts)[None]
        pos, latent, number = self.governed[site]
        place = torch.zeros_like(pos), pos, latent
        kept = torch.zeros_like(acts).index_put(place, mask[number].to(acts))
        change = (1 - kept) * (stand_in - acts)
        W_dec = dictionary.W_dec.float()
        if self.errors is None:
            return written + (change @ W_dec).to(written.dtype)
        constant = dictionary.b_dec.float() + (
            dictionary.skip(read).float() if dictionary.W_skip is not None else 0.0
        )
        held = (acts + change) @ W_dec + constant * reads + self.errors[site].float()
        return held.to(written.dtype)


def _check(
    model: SplicedModel,
    prompts: Sequence[Prompt],
    spans: Spans,
    nodes: Sequence[SpanNode],
    downstream: str,
) -> None:
    check_spans(spans, prompts)
    if not nodes or any(node.latent is None for node in nodes):
        raise UserError("masks are learned over latents; give at least one, and no errors")
    for node in nodes:
        assert node.latent is not None
        check_latent(model, node.site, node.latent, node)
    check_convention(downstream)
    if any(model.dictionaries.summary(site).n_later for site in model.sites):
        raise UserError("masks over cross-layer transcoders are not learned; rank by attribution")
