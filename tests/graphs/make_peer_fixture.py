"""Writes `fixtures/circuit_tracer.json`: influence, pruning and scores by circuit-tracer itself.

Needs an environment of its own (`pip install circuit-tracer==0.5.0`); run it from the root of the
repository: `python tests/graphs/make_peer_fixture.py`. The graphs are random; circuit-tracer is
given float64 so that it and we can be compared to the last digits. Its order of nodes is features,
errors, tokens, logits; the file names the nodes and lists edges by name.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from circuit_tracer.graph import (  # pyright: ignore[reportMissingImports]
    compute_graph_scores,
    compute_node_influence,
    prune_graph,
)

N_LAYERS, N_TOKENS, N_FEATURES = 3, 5, 24
THRESHOLDS = [(0.8, 0.98), (0.5, 0.9), (0.95, 0.7)]


def random_graph(seed: int, probabilities: list[float]) -> tuple[list[str], torch.Tensor]:
    """Names of the nodes in circuit-tracer's order, and the adjacency matrix [target, source]."""
    torch.manual_seed(seed)
    layer = torch.arange(N_FEATURES) * N_LAYERS // N_FEATURES
    pos = torch.randint(N_TOKENS, (N_FEATURES,))
    places = list(zip(layer.tolist(), pos.tolist(), strict=True))
    errors = [(row, column) for row in range(N_LAYERS) for column in range(N_TOKENS)]
    names = [f"mlp.{row}/latent.{i}@{column}" for i, (row, column) in enumerate(places)]
    names += [f"mlp.{row}/error@{column}" for row, column in errors]
    names += [f"token@{column}" for column in range(N_TOKENS)]
    names += [f"logit/{i}" for i in range(len(probabilities))]
    places += errors + [(-1, column) for column in range(N_TOKENS)]
    n, n_logits = len(names), len(probabilities)
    places += [(N_LAYERS, N_TOKENS)] * n_logits

    allowed = torch.zeros(n, n, dtype=torch.bool)
    for target in [*range(N_FEATURES), *range(n - n_logits, n)]:
        for source in range(n - n_logits):
            (row, column), (to_row, to_column) = places[source], places[target]
            allowed[target, source] = row < to_row and column <= to_column
    kept = allowed & (torch.rand(n, n) < 0.7)
    return names, torch.randn(n, n).float().double() * kept


def answers(names: list[str], matrix: torch.Tensor, probabilities: list[float]) -> dict:
    weights = torch.zeros(len(names))
    weights[-len(probabilities) :] = torch.tensor(probabilities)
    graph = SimpleNamespace(
        input_tokens=torch.zeros(N_TOKENS),
        logit_targets=list(probabilities),
        logit_probabilities=torch.tensor(probabilities),
        selected_features=torch.zeros(N_FEATURES),
        adjacency_matrix=matrix,
        cfg=SimpleNamespace(n_layers=N_LAYERS),
    )
    replacement, completeness = compute_graph_scores(graph)
    pruned = []
    for keep_influence, keep_edges in THRESHOLDS:
        result = prune_graph(graph, keep_influence, keep_edges)
        edges = (result.edge_mask & (matrix != 0)).nonzero().tolist()
        pruned.append(
            {
                "keep_influence": keep_influence,
                "keep_edges": keep_edges,
                "nodes": [name for name, keep in zip(names, result.node_mask, strict=True) if keep],
                "edges": [[names[source], names[target]] for target, source in edges],
            }
        )
    return {
        "nodes": names,
        "edges": [
            [names[source], names[target], float(matrix[target, source])]
            for target, source in matrix.nonzero().tolist()
        ],
        "probabilities": probabilities,
        "influence": compute_node_influence(matrix, weights).tolist(),
        "replacement_score": replacement,
        "completeness_score": completeness,
        "pruned": pruned,
    }


def main() -> None:
    torch.set_default_dtype(torch.float64)
    cases = []
    for seed, probabilities in ((0, [1.0]), (1, [0.6, 0.25, 0.1])):
        cases.append(answers(*random_graph(seed, probabilities), probabilities))
    path = Path(__file__).parent / "fixtures" / "circuit_tracer.json"
    path.write_text(json.dumps({"circuit_tracer": "0.5.0", "cases": cases}) + "\n")


if __name__ == "__main__":
    main()
