"""Attributions made by hand and by chance, with no model behind them."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx
import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from attribution import Attribution
from circuits.nodes import BiasNode, ErrorNode, LatentNode, LogitNode, Node, TokenNode
from circuits.sites import KINDS, Site
from graphs import AttributionGraph

THREE = (("Mary", 0.6), ("John", 0.25), ("he", -0.1))
"""Three outputs with their weights."""

TEXT = "<bos> when Mary and John went to the store , John gave a big drink to the man and"


def attribution(
    nodes: Sequence[Node],
    edges: Mapping[tuple[int, int], float],
    *,
    words: Sequence[str] = ("<bos>", "a"),
    acts: Tensor | None = None,
    effects: Tensor | None = None,
    grads: Tensor | None = None,
) -> Attribution:
    """An attribution with `edges` `{(source index, target index): weight}`."""
    n = len(nodes)
    sources, targets = zip(*edges, strict=True) if edges else ((), ())
    matrix = sparse.coo_array(
        (np.array(list(edges.values()), np.float32), (targets, sources)), shape=(n, n)
    ).tocsr()
    return Attribution(
        nodes=tuple(nodes),
        acts=torch.ones(n) if acts is None else acts,
        changes=torch.ones(n) if acts is None else acts,
        effects=torch.zeros(n) if effects is None else effects,
        edges=matrix,
        query_key=None,
        target_grads=torch.ones(n) if grads is None else grads,
        metric_value=3.25,
        words=tuple(words),
        provenance={
            "model": "synthetic",
            "dictionaries": {"mlp.0": {"name": "layer_0", "average_l0": 14.0, "d_sae": 1024}},
            "prompt": {"text": " ".join(words[1:]), "target": "Mary"},
            "metric": "logit diff Mary - John",
            "settings": {
                "estimator": "gradient x activation",
                "downstream": "recompute",
                "reference": "zero",
                "edges": "local Jacobian",
                "attention": "frozen",
                "norms": "frozen",
            },
            "versions": {"torch": "2.13"},
            "seed": None,
        },
    )


def random_attribution(
    seed: int = 0,
    *,
    n_layers: int = 4,
    n_latents: int = 90,
    n_words: int = 20,
    density: float = 0.5,
    kinds: Sequence[str] = KINDS,
    outputs: Sequence[tuple[str, float]] = (("Mary - John", 1.0),),
) -> Attribution:
    """Latents at random places, an error at every site and position, a bias at every site.

    `outputs` are the logit nodes' names and weights.
    """
    generator = torch.Generator().manual_seed(seed)
    words = [TEXT.split()[i % len(TEXT.split())] for i in range(n_words)]
    sites = [Site(layer, kind) for layer in range(n_layers) for kind in kinds]
    # later positions hold more of the active latents, as they do on real prompts
    pos = (n_words * torch.rand(n_latents, generator=generator) ** 0.5).long().tolist()
    which = torch.randint(len(sites), (n_latents,), generator=generator).tolist()
    latents = [
        LatentNode(sites[which[i]], 37 * i % 1024, min(pos[i], n_words - 1))
        for i in range(n_latents)
    ]
    nodes: list[Node] = [TokenNode(i) for i in range(n_words)]
    for site in sites:
        nodes.append(BiasNode(site))
        nodes += sorted((x for x in latents if x.site == site), key=lambda x: (x.pos, x.latent))
        nodes += [ErrorNode(site, i) for i in range(n_words)]
    nodes += [LogitNode(name) for name, _ in outputs]
    n = len(nodes)

    allowed = torch.zeros(n, n, dtype=torch.bool)
    for t, target in enumerate(nodes):
        for s, source in enumerate(nodes[:t]):
            allowed[t, s] = _may_reach(source, target)
    weights = torch.randn(n, n, generator=generator)
    weights *= torch.tensor([0.25 if isinstance(x, ErrorNode) else 1.0 for x in nodes])
    kept = allowed & (torch.rand(n, n, generator=generator) < density)
    effects = torch.randn(n, generator=generator) ** 3
    grads = torch.randn(n, generator=generator)
    grads[-len(outputs) :] = torch.tensor([weight for _, weight in outputs])
    acts = torch.rand(n, generator=generator) * 5 + 0.1
    made = attribution(nodes, {}, words=words, acts=acts, effects=effects, grads=grads)
    return dataclasses.replace(made, edges=sparse.csr_array((weights * kept).numpy()))


@functools.cache
def random_graph(seed: int = 0, **sizes) -> AttributionGraph:
    return AttributionGraph.from_attribution(random_attribution(seed, **sizes))


def with_attributes(graph: AttributionGraph, **values: Mapping[Any, object]) -> AttributionGraph:
    """A copy of `graph` with attributes of some nodes set: `label={node: "says"}`."""
    digraph = nx.DiGraph(graph.digraph)
    for name, by_node in values.items():
        for node, value in by_node.items():
            digraph.nodes[node][name] = value
    return dataclasses.replace(graph, digraph=nx.freeze(digraph))


def _may_reach(source: Node, target: Node) -> bool:
    match source, target:
        case LogitNode(), _:
            return False
        case LatentNode(), LogitNode():
            return source.site.layer >= 1
        case TokenNode(), LatentNode():
            return source.pos <= target.pos and target.site.layer == 0
        case BiasNode(), LatentNode():
            return source.site <= target.site
        case ((LatentNode() | ErrorNode()), LatentNode()):
            return source.site < target.site and source.pos <= target.pos
    return False
