"""Mean effects of nodes and edges over many prompts, as tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from attribution.many.pooling import NodeKey
from attribution.many.statistics import Statistics

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, eq=False, repr=False)
class DatasetAttribution:
    """Nodes and edges of many prompts.

    Attributes:
        positions: `aligned` or `summed`.
        n_prompts: How many prompts.
        nodes: What nodes of different prompts have in common, in the order of `Attribution`: with
            `aligned` positions `parse_node(str(node))` is the node itself, for ablations. An error
            also carries the latents of its site that were not chosen, so that sums close.
        node_statistics: Of total effects, in the metric's units, an entry a node; of the metric
            itself for the logit node.
        edges: Source and target as indices into `nodes`, `[n_edges, 2]`, by target and source.
        edge_statistics: Of direct effects times the target's gradient: the edge's share of the
            metric, in its units.
        provenance: Model, dictionaries, prompts, metric, settings, versions, seed; JSON-able.
    """

    positions: str
    n_prompts: int
    nodes: tuple[NodeKey, ...]
    node_statistics: Statistics
    edges: np.ndarray
    edge_statistics: Statistics
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        one = "; one prompt gives no intervals" if self.n_prompts == 1 else ""
        return (
            f"DatasetAttribution({self.provenance['metric']} of {self.n_prompts} prompts, "
            f"positions {self.positions}: {len(self.nodes)} nodes, {len(self.edges)} edges{one})"
        )

    def nodes_table(self) -> DataFrame:
        """One line a node, the largest mean absolute effect first; columns as in `Statistics`."""
        import pandas as pd

        columns = {
            "node": [str(node) for node in self.nodes],
            "kind": [node.kind for node in self.nodes],
            "site": [None if node.site is None else str(node.site) for node in self.nodes],
            "latent": pd.array([node.latent for node in self.nodes], dtype="Int64"),
            "pos": pd.array([node.pos for node in self.nodes], dtype="Int64"),
        }
        table = pd.DataFrame({**columns, **vars(self.node_statistics), **self._conventions()})
        return table.sort_values("mean_abs", ascending=False, kind="stable", ignore_index=True)

    def edges_table(self) -> DataFrame:
        """One line an edge, the largest mean absolute effect first; columns as in `Statistics`."""
        import pandas as pd

        source, target = ([str(self.nodes[i]) for i in ends] for ends in self.edges.T.tolist())
        columns = {"source": source, "target": target}
        table = pd.DataFrame({**columns, **vars(self.edge_statistics), **self._conventions()})
        return table.sort_values("mean_abs", ascending=False, kind="stable", ignore_index=True)

    def _conventions(self) -> dict[str, Any]:
        """What the numbers depend on, so that a line says by itself what it is."""
        settings = self.provenance["settings"]
        told = ("estimator", "downstream", "reference", "positions")
        return {
            "n_prompts": self.n_prompts,
            "metric": self.provenance["metric"],
            **{key: settings[key] for key in told},
        }
