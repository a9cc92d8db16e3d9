"""This project's half of `against_peers.py`, which runs it in a process of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
from peer_side import KEEP_EDGES, KEEP_INFLUENCE, N_ROWS, serve
from safetensors.torch import load_file

from attribution import attribute, top_logits
from circuits import (
    Dictionary,
    ErrorNode,
    LatentNode,
    LogitNode,
    Site,
    TokenNode,
    load_gemma,
    splice,
)
from graphs.adjacency import adjacency
from graphs.prune import prune_adjacency


class Ours:
    """This project, with everything of a case loaded."""

    def __init__(self, case: dict[str, Any]) -> None:
        dictionaries = {}
        for layer, path in enumerate(case["transcoders"]):
            arrays: Any = load_file(path)
            dictionaries[Site(layer, "transcoder")] = Dictionary(**arrays)
        bridge = load_gemma(case["folder"], device="cpu")
        self.model = splice(bridge, dictionaries, name="random")
        self.text = " ".join(f"w{token}" for token in case["ids"][1:])
        assert self.model.tokens(self.text).tolist() == [case["ids"]]

    def graph(self, setting: float | None, max_latents: int | None = None) -> Any:
        return attribute(
            self.model,
            self.text,
            top_logits(self.model, self.text),
            max_latents=max_latents,
            keep_influence=setting,
        )

    def prune(self, graph: Any) -> int:
        part = prune_adjacency(adjacency(graph), KEEP_INFLUENCE, KEEP_EDGES)
        return sum(isinstance(graph.nodes[i], LatentNode) for i in part.kept)

    def sample(self, graph: Any) -> dict[str, np.ndarray]:
        def places(kind: type, key: Any) -> dict[Any, int]:
            """Where the nodes of one kind stand, in the order of `key`."""
            found = {key(node): i for i, node in enumerate(graph.nodes) if isinstance(node, kind)}
            return dict(sorted(found.items()))

        latents = places(LatentNode, lambda node: (node.site.layer, node.pos, node.latent))
        errors = places(ErrorNode, lambda node: (node.site.layer, node.pos))
        tokens = places(TokenNode, lambda node: node.pos)
        logits = places(LogitNode, lambda node: int(node.name.split()[1].removeprefix("w")))
        chosen = np.linspace(0, len(latents) - 1, N_ROWS).round().astype(int)
        into = [*np.array(list(latents.values()))[chosen], *logits.values()]
        sources = [*latents.values(), *errors.values(), *tokens.values()]
        rows = graph.edges[into].toarray()[:, sources]
        return {"latents": np.array(list(latents)), "logits": np.array(list(logits)), "rows": rows}


if __name__ == "__main__":
    serve(Ours)
