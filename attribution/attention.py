"""Why a head attends: its score between two positions as a sum over pairs of nodes.

    score = scaling * q . k,    q = sum over a of q_a,    k = sum over b of k_b
          = sum over (a, b) of  scaling * q_a . k_b

Here q is the query at one position and k the key at the other, both rotated by their positions;
`q_a` is what node a brings to the query, `k_b` what node b brings to the key, each with every other
spliced site held constant: direct effects as in `attribution.edges`, against zero, on every
coordinate of a vector. The score is the one before Gemma 2's soft-cap. With norms held (patterns
below the head are held too), no MLP between the nodes and the head or a conserving rule for it, and
no biases in the model's own maps (Gemma 2 has none), the pairs sum to the score itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from attribution.attribute import check_question, edge_rule, node_table
from attribution.choice import strongest
from attribution.edges.direct import Stretches
from attribution.edges.local_pass import local_pass
from attribution.edges.rows import EdgeRows
from attribution.effects import total_effects
from attribution.metrics import BoundMetric
from attribution.record import record
from attribution.targets import attention_score, head_of, queries_and_keys
from circuits import Node, Prompt, SplicedModel
from circuits.freeze import Freeze
from circuits.gated import POINTS
from circuits.outputs import position
from circuits.whole_numbers import number_or_none, whole_number


@dataclass(frozen=True, eq=False, repr=False)
class AttentionPairs:
    """One attention score, pair by pair.

    Attributes:
        name: Of the score: `attention 3.1 7→4`.
        score: Its value on the prompt, before the soft-cap.
        queries: Nodes that bring something to the query, `n_q` of them in topological order.
        keys: Nodes that bring something to the key, `n_k` of them.
        pairs: `[n_q, n_k]`, in units of the score. Error nodes carry the latents left out.
        provenance: Model, dictionaries, prompt, settings, versions; JSON-able.
    """

    name: str
    score: float
    queries: tuple[Node, ...]
    keys: tuple[Node, ...]
    pairs: Tensor
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        n_q, n_k = self.pairs.shape
        return f"AttentionPairs({self.name} = {self.score:+.4g}: {n_q} x {n_k} pairs)"

    def strongest(self, top: int = 20) -> pd.DataFrame:
        """The pairs that weigh most: columns `query`, `key` (nodes) and `score`."""
        flat = self.pairs.flatten()
        order = flat.abs().topk(min(whole_number("top", top), len(flat))).indices
        rows = [
            (self.queries[i // len(self.keys)], self.keys[i % len(self.keys)], flat[i].item())
            for i in order.tolist()
        ]
        return pd.DataFrame(rows, columns=["query", "key", "score"])


def attention_pairs(
    model: SplicedModel,
    prompt: str | Prompt,
    layer: int,
    head: int,
    query: int,
    key: int,
    *,
    max_latents: int | None = 400,
    norms: str = "frozen",
    mlp: str = "jacobian",
    points: int = POINTS,
) -> AttentionPairs:
    """Decompose one head's score between two positions into pairs of nodes.

    Args:
        model: The spliced model.
        prompt: One text.
        layer: Counted from 0.
        head: A query head, counted from 0.
        query: The position that attends; negative ones count from the end.
        key: The position attended to; not after `query`.
        max_latents: How many latents become nodes, by the size of their total effect on the score;
            None for all. The others stay in their error nodes, so that sums close.
        norms: Norm scales: `frozen` or `live`.
        mlp: How MLPs between the nodes and the head become linear; see `circuits.gated`.
        points: Of `mlp="integrated"`.

    Raises:
        UserError: no such head or position, a key that the query does not see, or an option
            that does not exist.
    """
    metric = attention_score(layer, head, query, key)
    check_question(model, prompt)
    max_latents = number_or_none("max_latents", max_latents, "all")
    freeze = Freeze.of(attention="frozen", norms=norms, mlp=mlp, points=points)
    effects = total_effects(model, prompt, metric)
    coordinates = _coordinates(model, layer, head, query, key)
    kept = node_table(effects, strongest(effects, max_latents), metric)
    table = replace(kept, logits=tuple(str(i) for i in range(len(coordinates))))
    cut = local_pass(model, model.tokens(prompt), coordinates, freeze)
    rows = EdgeRows(len(table), len(coordinates))
    Stretches.of(model, table, cut).add_logits(rows)
    at = table.logits_at
    brought = torch.from_numpy(rows.matrix()[at.start : at.stop].toarray())
    to_query, to_key = brought.chunk(2)  # [d_head, n_nodes] each
    queries, keys = (side.any(0).nonzero()[:, 0] for side in (to_query, to_key))
    nodes = table.nodes()
    settings = {
        "norms": norms,
        "attention": "frozen",
        "edges": edge_rule(mlp, points),
        "max_latents": max_latents,
    }
    return AttentionPairs(
        name=metric.name,
        score=effects.value,
        queries=tuple(nodes[i] for i in queries.tolist()),
        keys=tuple(nodes[i] for i in keys.tolist()),
        pairs=head_of(model, layer, head)[1] * to_query[:, queries].T @ to_key[:, keys],
        provenance=record(model, prompt, metric.name, settings),
    )


def _coordinates(
    model: SplicedModel, layer: int, head: int, query: int, key: int
) -> list[BoundMetric]:
    """Every coordinate of the query and then of the key, as something to explain."""
    shared, _, _ = head_of(model, layer, head)
    places = zip(queries_and_keys(layer), (head, shared), (query, key), strict=True)

    def coordinate(of: int, pos: int, i: int) -> Callable[[Tensor], Tensor]:
        return lambda x: x[:, position(pos, x.shape[1]), of, i].float()

    return [
        BoundMetric(output, coordinate(of, pos, i))
        for output, of, pos in places
        for i in range(model.config.head_dim)
    ]
