"""The feature graph: a networkx `DiGraph` of node objects, and what it was made from."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from scipy import sparse

from attribution import Attribution
from circuits.errors import UserError
from circuits.nodes import NODE_WORDS, LatentNode, Node
from circuits.whole_numbers import number_or_none
from graphs.adjacency import adjacency


@dataclass(frozen=True, repr=False)
class AttributionGraph:
    """What influences what on the way from the tokens to the output.

    Every function of this package returns a new graph and leaves the one it was given as it was.
    `digraph` is frozen (`networkx.freeze`); take `graph.digraph.copy()` to change it.

    Attributes:
        digraph: Nodes are node objects, stored in topological order. Of each node:
            `act` (a latent's activation, 1.0 for the others; 0.0 for a latent that only the
            reference switches on, which has no incoming edges), `change` (what of it effects and
            edges are of: `act` less the activation in the reference), `effect` (attributed total
            effect on the metric, in the metric's units), `grad` (the metric's gradient by a
            latent's pre-activation or by a logit node, of which it is the weight; 0.0 for nodes
            that are no targets), `influence` (see `influence`; a pruned graph keeps the numbers of
            the graph it came from), `label` (`str` or `None`) and `measured` (effect found by an
            experiment, `float` or `None`).
            Of each edge: `weight` (direct effect of the source on the target's pre-activation, or
            on the logit node), `contribution` (`weight` times the target's `grad`: the edge's
            share of the metric) and `query_key` (the part of `weight` through queries and keys;
            `None` where patterns are frozen).
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

        Of an attribution with millions of edges, `prune(attribution)` is what networkx can hold.

        Raises:
            UserError: the attribution holds a NaN or an infinity, or has not all edges.
        """
        if attribution.influences is not None:
            raise UserError(
                "the attribution was made with keep_influence and has not all edges; "
                "prune(attribution) gives the graph of those it has"
            )
        whole = adjacency(attribution)
        return assemble(attribution, np.arange(len(whole.nodes)), whole.influences, whole.matrix)

    def latents(self, top: int | None = None) -> list[LatentNode]:
        """The latents, strongest absolute effect first; the `top` first of them if given.

        Raises:
            UserError: `top` is no whole number from 1 on.
        """
        top = number_or_none("top", top, "all")
        latents = [node for node in self.digraph if isinstance(node, LatentNode)]
        effect = self.digraph.nodes
        return sorted(latents, key=lambda node: -abs(effect[node]["effect"]))[:top]

    def plain(self) -> nx.DiGraph:
        """`digraph` for other programs: nodes are their texts, and what is None is left out.

        So networkx writes it in its formats: `nx.write_graphml(graph.plain(), "circuit.graphml")`,
        `nx.write_gexf`, or as JSON `json.dumps(nx.node_link_data(graph.plain()))`.
        """
        plain = nx.DiGraph()
        plain.add_nodes_from((str(n), _known(told)) for n, told in self.digraph.nodes.items())
        plain.add_edges_from(
            (str(s), str(t), _known(told)) for (s, t), told in self.digraph.edges.items()
        )
        return plain

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
        parts = [plural(counts[kind], word) for kind, word in NODE_WORDS.items() if counts[kind]]
        parts.append(plural(self.digraph.number_of_edges(), "edge"))
        metric = f"{self.provenance.get('metric', 'metric')} = {self.metric_value:+.4g}"
        return f"AttributionGraph({metric}: {', '.join(parts)})"


def _known(attributes: dict[str, Any]) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in attributes.items() if value is not None}


def plural(count: int, word: str) -> str:
    """`1 latent`, `2 latents`, `3 biases`."""
    if count == 1:
        return f"1 {word}"
    return f"{count:,} {word}es" if word.endswith("s") else f"{count:,} {word}s"


def assemble(
    attribution: Attribution,
    kept: np.ndarray,
    influences: np.ndarray,
    edges: sparse.csr_array,
) -> AttributionGraph:
    """The graph of some nodes of `attribution`.

    Args:
        attribution: What the other attributes are taken from.
        kept: Indices of the `k` nodes, ascending.
        influences: Their influences, `[k]`.
        edges: The direct effects between them, `[target, source]`, `[k, k]`.
    """
    nodes = [attribution.nodes[i] for i in kept.tolist()]
    grads = attribution.target_grads.double().numpy()[kept]
    columns = {
        "act": attribution.acts.numpy()[kept],
        "change": attribution.changes.numpy()[kept],
        "effect": attribution.effects.numpy()[kept],
        "grad": grads,
        "influence": influences,
    }
    weights = edges.data.astype(np.float64)
    targets, sources = edges.tocoo().coords
    contributions = weights * grads[targets]
    query_key = _query_key(attribution, kept, targets, sources)

    digraph = nx.DiGraph()
    for node, *values in zip(nodes, *(column.tolist() for column in columns.values()), strict=True):
        digraph.add_node(node, **dict(zip(columns, values, strict=True)), label=None, measured=None)
    digraph.add_edges_from(
        (
            nodes[source],
            nodes[target],
            {"weight": weight, "contribution": contribution, "query_key": part},
        )
        for source, target, weight, contribution, part in zip(
            sources.tolist(),
            targets.tolist(),
            weights.tolist(),
            contributions.tolist(),
            query_key,
            strict=True,
        )
    )
    return AttributionGraph(
        digraph=nx.freeze(digraph),
        words=tuple(attribution.words),
        metric_value=float(attribution.metric_value),
        provenance=json.loads(json.dumps(attribution.provenance)),
    )


def _query_key(
    attribution: Attribution, kept: np.ndarray, targets: np.ndarray, sources: np.ndarray
) -> list[float] | list[None]:
    """Of each edge the part through queries and keys; `None` where patterns are frozen."""
    if attribution.query_key is None:
        return [None] * len(targets)
    parts = attribution.query_key[kept][:, kept].tocoo()
    found = dict(zip(zip(parts.row, parts.col, strict=True), parts.data.tolist(), strict=True))
    return [found.get(edge, 0.0) for edge in zip(targets, sources, strict=True)]


def restrict(
    graph: AttributionGraph, nodes: set[Node], edges: Iterable[tuple[Node, Node]] | None = None
) -> nx.DiGraph:
    """The frozen part of `graph.digraph` on `nodes`, in the same order, with the attributes copied.

    Of the edges between `nodes`, source first, those in `edges`; all of them if that is `None`.
    """
    whole = graph.digraph
    digraph = nx.DiGraph()
    digraph.add_nodes_from((node, values) for node, values in whole.nodes.items() if node in nodes)
    if edges is None:
        edges = ((s, t) for s in digraph for t in whole.successors(s) if t in nodes)
    digraph.add_edges_from((s, t, whole.get_edge_data(s, t)) for s, t in edges)
    return nx.freeze(digraph)
