"""One question to the planted model: a prompt, a reference, and the latents and edges to rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from attribution import Metric, logit_diff, total_effects
from circuits import (
    LatentNode,
    Prompt,
    Reference,
    SplicedModel,
    corrupted_reference,
    zero_reference,
)
from experiments.planted.language import NUMBERS, VERBS
from experiments.planted.truth import METRIC, Edge, circuit_edges, circuit_nodes, reaches

REFERENCES = {"corrupted": corrupted_reference, "zero": zero_reference}


@dataclass(frozen=True, eq=False)
class Case:
    """What is asked and what is ranked.

    Attributes:
        reference: The values that latents are set to, `corrupted` or `zero`.
        metric: The logit of the right verb form less that of the other.
        nodes: Every latent that is active on the prompt or in the reference, in the order of the
            forward pass.
        acts: Their activations on the prompt, `[n]`.
        baseline: Their values in the reference, `[n]`.
    """

    model: SplicedModel
    prompt: Prompt
    reference: Reference
    metric: Metric
    nodes: tuple[LatentNode, ...]
    acts: Tensor
    baseline: Tensor

    @classmethod
    def of(cls, model: SplicedModel, prompt: Prompt, reference: str) -> Case:
        """The question of `prompt` against `zero` or `corrupted`."""
        made = REFERENCES[reference](model, prompt)
        metric = logit_diff(prompt)
        active = total_effects(model, prompt, metric, reference=made).strongest()
        nodes = tuple(sorted(active, key=lambda node: (node.site, node.pos, node.latent)))
        acts = _values(Reference("clean", model.trace(prompt)), nodes)
        return cls(model, prompt, made, metric, nodes, acts, _values(made, nodes))

    @property
    def number(self) -> str:
        """The animal's."""
        return NUMBERS[VERBS.index(self.prompt.target or "")]

    @property
    def last(self) -> int:
        """The position of `often`."""
        return len(self.reference.trace.ids) - 1

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Every pair of nodes that a pass joins without crossing another site, and to the metric.

        Tokens, biases and errors are no sources here.
        """
        targets: list[LatentNode | str] = [*self.nodes, METRIC]
        return tuple((s, t) for s in self.nodes for t in targets if reaches(s, t, self.last))

    def nodes_on_circuit(self) -> list[bool]:
        """Of each of `nodes`, by construction."""
        circuit = circuit_nodes(self.number, self.last, self.reference.name)
        assert circuit <= set(self.nodes)
        return [node in circuit for node in self.nodes]

    def edges_on_circuit(self) -> list[bool]:
        """Of each of `edges`, by construction."""
        circuit, edges = circuit_edges(self.number, self.last, self.reference.name), self.edges
        assert circuit <= set(edges)
        return [edge in circuit for edge in edges]


def _values(reference: Reference, nodes: Sequence[LatentNode]) -> Tensor:
    return torch.stack([reference.value(node) for node in nodes])
