"""The passes of `edge_knockout`: sources changed with the rest held, then targets changed alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from attribution import Metric, Targets
from attribution.metrics import Score, bind, bind_all
from circuits import Dictionary, ErrorNode, LatentNode, Reference, Site, SplicedModel, set_to
from circuits.outputs import LAST_LOGITS
from experiments.edges.choice import Edge, error_values, first_site, target_names
from experiments.edges.held import Held, Seen, Shift, Source, foretold_share, shifts, value_in
from experiments.measure import measure

MEASURED = ("pre_activation_change", "activation_change", "jump_leak", "metric_change")
"""What is measured of an edge."""


@dataclass(frozen=True, eq=False)
class Knockout:
    """Sources set to one reference's values, everything else held.

    Attributes:
        held: The clean pass.
        metric: What the graph explains.
        clean, reference: What sources are, and what they are set to.
        kept: The latents that error nodes do not carry; None if errors carry none.
        same: Whether the graph's edges are against this reference too.
    """

    held: Held
    metric: Metric | Targets | Score
    clean: Reference
    reference: Reference
    kept: set[LatentNode] | None
    same: bool

    @torch.no_grad()
    def all(self, edges: Sequence[Edge], batch_size: int) -> dict[str, np.ndarray]:
        """By column, a number an edge; `knocked_out` is the target's activation."""
        columns = ("share", "knocked_out", *MEASURED)
        found = {name: np.full(len(edges), np.nan) for name in columns}
        by_source: defaultdict[Source, list[int]] = defaultdict(list)
        for i, edge in enumerate(edges):
            by_source[edge.source].append(i)
        # neighbours share sites, so that a pass goes through few dictionaries
        sources = sorted(by_source, key=lambda node: first_site(node).order)
        errors = self._errors(sources)
        with tqdm(total=len(sources), desc="edges", unit="source", disable=None, delay=1) as bar:
            for start in range(0, len(sources), batch_size):
                chunk = sources[start : start + batch_size]
                rows = []
                for node in chunk:
                    was, becomes = (self._value(node, at, errors) for at in (0, 1))
                    change = edges[by_source[node][0]].change
                    share = foretold_share(node, was - becomes, change, self.same)
                    found["share"][by_source[node]] = share
                    rows.append(shifts(self.held.model, node, becomes - was))
                pairs = [(row, i) for row, node in enumerate(chunk) for i in by_source[node]]
                self._read(edges, rows, pairs, found)
                bar.update(len(chunk))
        return found

    def _errors(self, sources: Sequence[Source]) -> tuple[dict[Site, Tensor], dict[Site, Tensor]]:
        sites = sorted({node.site for node in sources if isinstance(node, ErrorNode)})
        was, becomes = (
            error_values(self.held.model, reference, self.kept, sites)
            for reference in (self.clean, self.reference)
        )
        return was, becomes

    def _value(
        self, node: Source, at: int, errors: tuple[dict[Site, Tensor], dict[Site, Tensor]]
    ) -> Tensor:
        if isinstance(node, ErrorNode):
            return errors[at][node.site][node.pos]
        return value_in((self.clean, self.reference)[at], node)

    def _read(
        self,
        edges: Sequence[Edge],
        rows: Sequence[Sequence[Shift]],
        pairs: Sequence[tuple[int, int]],
        found: dict[str, np.ndarray],
    ) -> None:
        """One pass; `pairs` of row and edge go into `found`."""
        to_latents: defaultdict[Site, list[tuple[int, int, LatentNode]]] = defaultdict(list)
        to_logits: list[tuple[int, int, str]] = []
        for row, i in pairs:
            target = edges[i].target
            if isinstance(target, LatentNode):
                to_latents[target.site].append((row, i, target))
            else:
                to_logits.append((row, i, target.name))
        places = {
            site: [(row, target.pos) for row, _, target in there]
            for site, there in to_latents.items()
        }
        scores, weights = bind_all(self.metric, self.held.model)
        output = tuple(score.output for score in scores) if to_logits else LAST_LOGITS
        seen, out = self.held.run(rows, places, output)
        for site, there in to_latents.items():
            latents = [target.latent for *_, target in there]
            dictionary = self.held.model.dictionaries[site]
            for name, values in target_changes(dictionary, seen[site], latents).items():
                found[name][[i for _, i, _ in there]] = values.double().cpu().numpy()
        if to_logits:
            names = target_names(self.metric)
            values = [score(x).double().cpu() for score, x in zip(scores, out, strict=True)]
            for row, i, name in to_logits:
                at = names.index(name)
                change = (values[at][-1] - values[at][row]).item()
                found["pre_activation_change"][i] = change
                found["metric_change"][i] = weights[at] * change


EDGES_AT_ONCE = 256
"""Of which all latents' activations at the target's position are there at a time."""


def target_changes(dictionary: Dictionary, seen: Seen, latents: Sequence[int]) -> dict[str, Tensor]:
    """What changes of the target `latents [n]` of a site, by column, `[n]` each.

    Pre-activations are in float32, or wider where the dictionary is.
    """
    parts = []
    wide = torch.promote_types(dictionary.W_enc.dtype, torch.float32)
    latent = torch.tensor(latents, device=seen.read.device)
    for at in torch.arange(len(latents), device=latent.device).split(EDGES_AT_ONCE):
        change = (seen.clean_read[at].to(wide) - seen.read[at].to(wide)).T  # [d_in, n]
        pre = (change * dictionary.W_enc[:, latent[at]].to(wide)).sum(0)
        was, becomes = (dictionary.encode(x[at]) for x in (seen.clean_read, seen.read))
        own = torch.arange(len(at), device=at.device), latent[at]
        moved = (was - becomes).abs()
        leak = (moved * (was == 0)).sum(-1) / moved.sum(-1)  # 0 / 0 is NaN
        parts.append((pre, (was - becomes)[own], becomes[own], leak))
    names = ("pre_activation_change", "activation_change", "knocked_out", "jump_leak")
    columns = (torch.cat(column) for column in zip(*parts, strict=True))
    return dict(zip(names, columns, strict=True))


def measure_targets(
    model: SplicedModel,
    ids: Tensor,
    metric: Metric | Targets | Score,
    edges: Sequence[Edge],
    found: dict[str, np.ndarray],
    downstream: str,
    batch_size: int,
    memory: str | int | None,
) -> None:
    """Fill in what the metric loses when a target latent alone takes its knocked-out activation."""
    change = found["activation_change"]
    found["metric_change"][change == 0] = 0.0
    moved, rows = [], []
    for i, edge in enumerate(edges):
        if isinstance(edge.target, LatentNode) and change[i] != 0:
            moved.append(i)
            rows.append([set_to(edge.target, float(found["knocked_out"][i]))])
    clean, values = measure(
        model,
        ids,
        bind(metric, model),
        rows,
        downstream=downstream,
        batch_size=batch_size,
        memory=memory,
    )
    found["metric_change"][moved] = clean - values.double().numpy()
