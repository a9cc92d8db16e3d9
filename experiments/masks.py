"""A circuit found by learning a mask over nodes, instead of by attribution.

Each node has a mask between 0 (set to the reference) and 1 (left alone), `sigmoid(theta)`, and
`theta` descends on

    mean over prompts of ((m(C) - m(M)) / gap)^2  +  sparsity . mean of the masks

with `gap` the mean |m(M) - m(empty)|: a continuous relaxation, without the noise of hard-concrete
gates (Louizos et al. 2018, arXiv 1712.01312). `theta` ranks the nodes. It is the one method here
that sees nodes act together; it is also the slowest, and its result depends on `sparsity`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from attribution.metrics import BoundMetric, bind
from circuits import Prompt, Reference, Site, SplicedModel, UserError
from circuits.splice import SiteHook
from experiments.kinds import AblationKind
from experiments.pooled import MetricOf, baseline
from experiments.spans import SpanNode, Spans


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
        sparsity: What a mask costs; larger values keep fewer nodes.
        n_steps: Steps of Adam, each over all prompts.

    Raises:
        UserError: errors among the nodes, cross-layer transcoders, or a number out of range.
    """
    _check(model, nodes, sparsity, n_steps)
    cases = [
        _Case.of(model, prompt, i, spans, metric, nodes, kind) for i, prompt in enumerate(prompts)
    ]
    theta = torch.full((len(nodes),), 2.0, device=model.device, requires_grad=True)
    with torch.no_grad():
        empty = torch.zeros_like(theta)
        gap = sum(abs(c.full - c.run(model, empty, downstream).item()) for c in cases) / len(cases)
    optimizer = torch.optim.Adam([theta], lr=learning_rate)
    for _ in tqdm(range(n_steps), "learning masks", unit="step", disable=None, delay=1):
        optimizer.zero_grad()
        for case in cases:  # one at a time: memory is that of one prompt
            with torch.enable_grad():
                mask = theta.sigmoid()
                lost = (case.run(model, mask, downstream) - case.full) / gap
                loss = (lost**2 + sparsity * mask.mean()) / len(cases)
                loss.backward()
        optimizer.step()
    return theta.detach().double().cpu().numpy()


@dataclass(frozen=True, eq=False)
class _Case:
    """One prompt: which of its latents each mask governs.

    Attributes:
        full: m(M).
        governed: By site, positions, latents and the number of the node, `[k]` each.
        errors: The clean errors.
    """

    ids: Tensor
    score: BoundMetric
    full: float
    reference: Reference
    governed: Mapping[Site, tuple[Tensor, Tensor, Tensor]]
    errors: Mapping[Site, Tensor]

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
    ) -> _Case:
        ids, score = model.tokens(prompt), bind(metric(prompt), model)
        by_site: dict[Site, list[tuple[int, int, int]]] = {site: [] for site in model.sites}
        for number, node in enumerate(nodes):
            for member in spans.nodes(node, i):
                by_site[node.site].append((member.pos, node.latent or 0, number))
        governed = {}
        for site, triples in by_site.items():
            columns = torch.tensor(triples, dtype=torch.long, device=ids.device).view(-1, 3)
            governed[site] = columns[:, 0], columns[:, 1], columns[:, 2]
        full = score(model.run(ids, output=score.output)).item()
        reference = baseline(kind, model, prompt)
        return cls(ids, score, full, reference, governed, model.errors(ids))

    def run(self, model: SplicedModel, mask: Tensor, downstream: str) -> Tensor:
        """m(C) for masks `[n_nodes]`, `[1]`, differentiable."""
        reads = model.reads(self.ids)
        hooks = {site: self._hook(model, site, mask, reads, downstream) for site in model.sites}
        return self.score(model.forward(self.ids, hooks, output=self.score.output))

    def _hook(
        self, model: SplicedModel, site: Site, mask: Tensor, reads: Tensor, downstream: str
    ) -> SiteHook:
        def hook(read: Tensor, written: Tensor) -> Tensor:
            dictionary = model.dictionaries[site]
            acts = (dictionary.encode(read) * reads[..., None]).float()
            stand_in = self.reference.acts(site).to(acts)[None]
            pos, latent, number = self.governed[site]
            kept = torch.zeros_like(stand_in).index_put((torch.zeros_like(pos), pos, latent),
                                                        mask[number].to(acts))  # fmt: skip
            new = stand_in + kept * (acts - stand_in)
            if downstream == "recompute":
                change = (new - acts) @ dictionary.W_dec.float()
                return written + change.to(written.dtype)
            constant = dictionary.b_dec.float() + (
                dictionary.skip(read).float() if dictionary.W_skip is not None else 0.0
            )
            held = new @ dictionary.W_dec.float() + constant * reads[..., None]
            return (held + self.errors[site].float()).to(written.dtype)

        return hook


def _check(model: SplicedModel, nodes: Sequence[SpanNode], sparsity: float, n_steps: int) -> None:
    if not nodes or any(node.latent is None for node in nodes):
        raise UserError("masks are learned over latents; give at least one, and no errors")
    if any(model.dictionaries.summary(site).n_later for site in model.sites):
        raise UserError("masks over cross-layer transcoders are not learned; rank by attribution")
    if sparsity < 0 or n_steps < 1:
        raise UserError(f"sparsity={sparsity}, n_steps={n_steps}; give 0 or more, and at least 1")
