"""What circuits are made of: nodes at spans, best first, whatever they were given as."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attribution.effects import Effects
from circuits import ErrorNode, LatentNode, SplicedModel, UserError
from experiments.circuit.cases import CircuitCases
from experiments.spans import SpanNode, Spans
from graphs import AttributionGraph

Ranking = Sequence[SpanNode]
"""Nodes, the most important first: `method_named(name).rank(question)`."""


def strongest_first(effects: Effects, reads: Tensor) -> list[LatentNode | ErrorNode]:
    """Latents and errors of one prompt, by the size of their effect.

    Args:
        effects: Their effects.
        reads: Where dictionaries read, `[pos]`; elsewhere the error is the whole activation.
    """
    (positions,) = reads.nonzero(as_tuple=True)
    latents = effects.strongest()
    errors = [ErrorNode(site, pos) for site in effects.sites for pos in positions.tolist()]
    of_latents = torch.cat([here.effect for here in effects.sites.values()]).abs()
    of_errors = torch.cat([here.error_effect[positions] for here in effects.sites.values()]).abs()
    sizes = torch.cat([of_latents.sort(descending=True).values, of_errors])
    nodes = [*latents, *errors]
    return [nodes[i] for i in sizes.argsort(descending=True, stable=True).tolist()]


def ranked_on_one(
    words: Sequence[str], reads: Tensor, nodes: AttributionGraph | Sequence[Any], errors: str
) -> list[SpanNode]:
    """The nodes of one prompt, whose every position is a span; each once.

    Args:
        words: Of the prompt.
        reads: Where dictionaries read, `[pos]`: a graph also has errors elsewhere, which stay.
        nodes: A graph, of which the strongest come first, or latents and errors.
        errors: With `scored`, errors are nodes too.

    Raises:
        UserError: a graph of another prompt, or other nodes.
    """
    if isinstance(nodes, AttributionGraph):
        if nodes.words != tuple(words):
            raise UserError(
                f"the graph is of the prompt {' '.join(nodes.words)!r}, not of "
                f"{' '.join(words)!r}; trace this prompt first"
            )
        effect = nodes.digraph.nodes
        kinds = LatentNode | ErrorNode
        found = [node for node in nodes.digraph if isinstance(node, kinds) and reads[node.pos]]
        nodes = sorted(found, key=lambda node: -abs(effect[node]["effect"]))
    return _once([_at_span(node) for node in nodes], errors)


def ranked_on_many(nodes: Any, spans: Spans, errors: str) -> list[SpanNode]:
    """The nodes of several prompts; each once, errors only where they are scored.

    Raises:
        UserError: other nodes than those at `spans`.
    """
    if isinstance(nodes, AttributionGraph) or not all(isinstance(n, SpanNode) for n in nodes):
        raise UserError(
            "the nodes of several prompts are nodes at spans, such as dataset_circuit(...).nodes; "
            "a graph is of one prompt"
        )
    for node in nodes:
        if node.span not in spans.names:
            raise UserError(f"no span {node.span!r} for {node}; there is {', '.join(spans.names)}")
    return _once(nodes, errors)


def check_on_one(cases: CircuitCases, ranked: Sequence[SpanNode]) -> None:
    """Refuse a node that can be on nowhere: the ranking is of something else.

    Raises:
        UserError: there is one.
    """
    known = [node.site in cases.space.sites and node.span in cases.space.spans for node in ranked]
    there = iter(cases.places([n for n, k in zip(ranked, known, strict=True) if k])[1].tolist())
    for node, is_known in zip(ranked, known, strict=True):
        if not (is_known and next(there)):
            raise UserError(
                f"{node} is not active on this prompt, nor in the reference; "
                "give a graph of the same prompt, model and dictionaries"
            )


def check_sites(model: SplicedModel, ranked: Sequence[SpanNode]) -> None:
    """Refuse nodes at sites without a dictionary.

    Raises:
        UserError: there is one.
    """
    for node in ranked:
        if node.site not in model.dictionaries:
            raise UserError(
                f"{node}: no dictionary at {node.site}; {model.name} has {model.describe_sites()}"
            )


def _once(nodes: Sequence[SpanNode], errors: str) -> list[SpanNode]:
    """Each node once, errors only where they are scored."""
    return [node for node in dict.fromkeys(nodes) if errors == "scored" or node.latent is not None]


def _at_span(node: Any) -> SpanNode:
    if not isinstance(node, LatentNode | ErrorNode):
        raise UserError(
            "a circuit of one prompt is of its latents and errors; "
            f"got {type(node).__name__} {node}"
        )
    latent = node.latent if isinstance(node, LatentNode) else None
    return SpanNode(node.site, latent, str(node.pos))
