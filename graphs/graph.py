"""The feature graph: a networkx `DiGraph` of node objects, and what it was made from."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from scipy import sparse

from attribution import Attribution
from circuits.errors import UserError
from circuits.nodes import BiasNode, ErrorNode, LatentNode, LogitNode, Node, TokenNode
from graphs.influence import logit_weights, solve_influence


@dataclass(frozen=True, repr=False)
class AttributionGraph:
    """What influences what on the way from the tokens to the output.

    Every function of this package returns a new graph and leaves the one it was given as it was.
    `digraph` is frozen (`networkx.freeze`); take `graph.digraph.copy()` to change it.

    Attributes:
        digraph: Nodes are node objects, stored in topological order. Of each node:
            `act` (a latent's activation, 1.0 for the others), `effect` (attributed
            total effect on the metric, in the metric's units), `influence` (see `influence`; a
            pruned graph keeps the numbers of the graph it came from), `label` (`str` or `None`)
            and `measured` (effect found by an experiment, `float` or `None`).
            Of each edge: `weight` (direct effect of the source on the target's pre-activation, on
            the metric for a logit node) and `contribution` (`weight` times the gradient of the
            metric by that pre-activation: the edge's share of the metric).
        words: The prompt's tokens as text, BOS first.
        metric_value: The metric on the clean prompt.
        provenance: Model, dictionaries, prompt, metric, settings, versions and seed, and what was
            done to the graph since, as JSON values.
    """

    digraph: nx.DiGraph
    words: tuple[str, ...]
    metric_value: float
    provenance: dict[str, Any]

    @classmethod
    def from_attribution(cls, attribution: Attribution) -> "AttributionGraph":
        """The graph of all nodes of `attribution` and of all its edges that are not exactly zero.

        Raises:
            UserError: the attribution holds a NaN or an infinity.
        """
        nodes = tuple(attribution.nodes)
        edges = attribution.edges.coalesce()
        targets, sources = edges.indices().numpy()
        weights = edges.values().double().numpy()
        target_grads = attribution.target_grads.double().numpy()
        acts, effects = attribution.acts.tolist(), attribution.effects.tolist()
        for name, values in (("edges", weights), ("acts", acts), ("effects", effects)):
            if not np.isfinite(values).all():
                raise UserError(
                    f"the attribution's {name} hold a NaN or an infinity; "
                    "check the model's weights and the metric on this prompt"
                )
        assert (sources < targets).all(), "nodes must be in topological order"

        live = weights != 0
        targets, sources, weights = targets[live], sources[live], weights[live]
        matrix = sparse.csr_array((weights, (targets, sources)), shape=(len(nodes), len(nodes)))
        influences = solve_influence(matrix, logit_weights(nodes)).tolist()
        contributions = weights * target_grads[targets]

        digraph = nx.DiGraph()
        for node, act, effect, share in zip(nodes, acts, effects, influences, strict=True):
            digraph.add_node(
                node, act=act, effect=effect, influence=share, label=None, measured=None
            )
        digraph.add_edges_from(
            (nodes[source], nodes[target], {"weight": weight, "contribution": contribution})
            for source, target, weight, contribution in zip(
                sources.tolist(),
                targets.tolist(),
                weights.tolist(),
                contributions.tolist(),
                strict=True,
            )
        )
        return cls(
            digraph=nx.freeze(digraph),
            words=tuple(attribution.words),
            metric_value=float(attribution.metric_value),
            provenance=json.loads(json.dumps(attribution.provenance)),
        )

    def latents(self, top: int | None = None) -> list[LatentNode]:
        """The latents, strongest absolute effect first; the `top` first of them if given."""
        latents = [node for node in self.digraph if isinstance(node, LatentNode)]
        effect = self.digraph.nodes
        return sorted(latents, key=lambda node: -abs(effect[node]["effect"]))[:top]

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the graph to one JSON file; see `graphs.exchange`."""
        from graphs.exchange import save

        return save(self, path, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> "AttributionGraph":
        """Read what `save` wrote; see `graphs.exchange`."""
        from graphs.exchange import load

        return load(path)

    def __repr__(self) -> str:
        counts = Counter(type(node) for node in self.digraph)
        words = {
            TokenNode: "token",
            LatentNode: "latent",
            ErrorNode: "error",
            BiasNode: "bias",
            LogitNode: "logit",
        }
        parts = [plural(counts[kind], word) for kind, word in words.items() if counts[kind]]
        parts.append(plural(self.digraph.number_of_edges(), "edge"))
        metric = f"{self.provenance.get('metric', 'metric')} = {self.metric_value:+.4g}"
        return f"AttributionGraph({metric}: {', '.join(parts)})"


def plural(count: int, word: str) -> str:
    """`1 latent`, `2 latents`, `3 biases`."""
    if count == 1:
        return f"1 {word}"
    return f"{count:,} {word}es" if word.endswith("s") else f"{count:,} {word}s"


def restrict(
    graph: AttributionGraph, nodes: set[Node], edges: set[tuple[Node, Node]] | None = None
) -> nx.DiGraph:
    """The frozen part of `graph.digraph` on `nodes`, in the same order, with the attributes copied.

    Of the edges between `nodes`, those in `edges`; all of them if that is `None`.
    """
    digraph = nx.DiGraph()
    digraph.add_nodes_from(
        (node, dict(attributes))
        for node, attributes in graph.digraph.nodes(data=True)
        if node in nodes
    )
    digraph.add_edges_from(
        (source, target, dict(attributes))
        for source, target, attributes in graph.digraph.edges(data=True)
        if source in nodes and target in nodes and (edges is None or (source, target) in edges)
    )
    return nx.freeze(digraph)
