"""Every latent and error at every span as a number, so that prompts meet in arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from circuits import Site, SplicedModel
from experiments.spans import SpanNode, Spans

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class NodeCodes:
    """Numbered by site, span and latent; the error is last of each site and span.

    Attributes:
        sites: In the order of the pass.
        spans: Names.
        width: Numbers of a site and span: one more than the widest dictionary has latents.
    """

    sites: tuple[Site, ...]
    spans: tuple[str, ...]
    width: int

    @classmethod
    def of(cls, model: SplicedModel, spans: Spans) -> NodeCodes:
        """Of all nodes of the model at these spans."""
        widest = max(model.dictionaries.summary(site).d_sae for site in model.sites)
        return cls(tuple(model.sites), spans.names, widest + 1)

    def spans_at(self, spans: Spans, i: int, n_pos: int) -> Codes:
        """The number of each position's span in prompt `i`, `[n_pos]`; -1 at BOS."""
        numbers = {name: number for number, name in enumerate(self.spans)}
        return np.array([numbers.get(spans.span_of(i, pos) or "", -1) for pos in range(n_pos)])

    def codes(self, site: Site, span: Codes | int, latent: Codes | int | None) -> Codes:
        """Of latents, or (None) of errors, at numbers of spans; elementwise."""
        place = self.sites.index(site) * len(self.spans) + np.asarray(span)
        return place * self.width + (self.width - 1 if latent is None else latent)

    def node(self, code: int) -> SpanNode:
        """The node with that number."""
        place, latent = divmod(code, self.width)
        site, span = divmod(place, len(self.spans))
        is_error = latent == self.width - 1
        return SpanNode(self.sites[site], None if is_error else latent, self.spans[span])

    def of_nodes(self, nodes: Sequence[SpanNode]) -> Codes:
        """The number of each node, whose site and span are known, `[n]`."""
        spans = {name: i for i, name in enumerate(self.spans)}
        return np.array(
            [int(self.codes(node.site, spans[node.span], node.latent)) for node in nodes],
            dtype=np.int64,
        )

    def sites_of(self, codes: Codes) -> Codes:
        """A number for each site and, apart from its latents, its error, `[n]`."""
        is_error = codes % self.width == self.width - 1
        return 2 * (codes // (self.width * len(self.spans))) + is_error

    def spans_of(self, codes: Codes) -> Codes:
        """As `sites_of`, for each site and span."""
        is_error = codes % self.width == self.width - 1
        return 2 * (codes // self.width) + is_error
