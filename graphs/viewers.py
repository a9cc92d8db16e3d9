"""A graph as a file for the viewers people know: Neuronpedia's and circuit-tracer's.

The format is Neuronpedia's, `schema_version` 1. What it has no word for:

- *Sublayers.* Where all dictionaries are of one kind, such as transcoders, `layer` is the layer.
  Where there are several kinds, each site has a row of its own, `layer = kinds * layer + kind`,
  since nodes that share layer, number and position are one to the viewers; labels begin with the
  true site. Neuronpedia opens no graph that has the lowest row alone.
- *Biases.* They are drawn as errors are, at BOS: both are sources without inputs. Neuronpedia
  writes its own `Err: mlp` over the labels of both; the ids, `mlp.3/bias` and `mlp.3/error@7`,
  tell them apart.
- *Outputs that are no token.* Those of `top_logits` have their probability, as `(p=0.397)`, any
  other its value or weight and `(p=n/a)`: without that word viewers fail. `token_prob` is the
  weight in the metric, by which Neuronpedia counts influence.

`influence` is what the viewers' slider compares: the share of the file's influence that a node and
those before it hold, most influential first. At `node_threshold`, 1, every node is shown.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from circuits.catalogue import catalogue
from circuits.errors import UserError
from circuits.files import check_writable, write_atomically
from circuits.nodes import BiasNode, ErrorNode, LatentNode, LogitNode, Node, TokenNode
from circuits.sites import ALL_KINDS, Site
from graphs.adjacency import check_graph
from graphs.exchange import json_text
from graphs.graph import AttributionGraph
from graphs.text import caption, output_text, prompt_text, short_name, visible

FOREIGN = r"[^A-Za-z0-9_-]"
"""What Neuronpedia refuses in the names of graphs and models."""

OF_TOP_LOGITS = r"logit .* - mean( @-?\d+)?"
"""The names that `top_logits` gives."""


def export(
    graph: AttributionGraph, path: str | Path, *, scan: str | None = None, overwrite: bool = False
) -> Path:
    """Write `graph` to `path` for Neuronpedia and circuit-tracer's viewer, whole or not at all.

    No node and no edge is left out; weights are the edges' `weight`. The file's name is the
    graph's name there (`slug`). Where all latents are of one of Neuronpedia's source sets, the file
    says so and Neuronpedia shows its dashboards; with several kinds of site it cannot, and
    Neuronpedia draws as many rows as the model named has layers.

    Args:
        graph: Usually pruned, and labelled (`label_latents`).
        path: Ends in .json; the rest of its name is letters, digits, `_` and `-`.
        scan: What the viewers call the model: for Neuronpedia one of its models, for
            circuit-tracer's viewer a repository with dashboards, such as
            `mntss/gemma-scope-transcoders`. By default the last part of the recorded model's name.
        overwrite: Replace an existing file.

    Raises:
        UserError: no graph, another name, a path that cannot be written, or the graph holds a NaN
            or an infinity.
    """
    check_graph(graph)
    path = check_export(path, overwrite=overwrite)
    if scan is None:
        scan = re.sub(FOREIGN, "-", Path(str(graph.provenance.get("model", "model"))).name)
    text = json_text(_as_dict(graph, path.stem, scan), path)
    return write_atomically(path, text, overwrite=overwrite)


def check_export(path: str | Path, *, overwrite: bool = False) -> Path:
    """Say early whether `export` can write to `path`.

    Raises:
        UserError: viewers could not open a file of this name, or as `check_writable`.
    """
    path = Path(path)
    if path.suffix != ".json" or re.search(FOREIGN, path.stem):
        raise UserError(
            f"cannot export to {path.name}; viewers want letters, digits, _ and -, then .json"
        )
    return check_writable(path, overwrite=overwrite)


def _as_dict(graph: AttributionGraph, slug: str, scan: str) -> dict[str, Any]:
    nodes = _nodes(graph)
    source_set = _source_set(graph, scan)
    return {
        "metadata": {
            "slug": slug,
            "scan": scan,
            "transcoder_list": [],
            "prompt_tokens": list(graph.words),
            "prompt": prompt_text(graph),
            "node_threshold": 1.0,
            "schema_version": 1,
            "info": {
                "description": " ".join(caption(graph)),
                "generator": {"name": "gemma-circuits"},
            },
            **({"feature_details": {"neuronpedia_source_set": source_set}} if source_set else {}),
        },
        "qParams": {
            "pinnedIds": [],
            "supernodes": [],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": list(nodes.values()),
        "links": [
            {
                "source": nodes[source]["node_id"],
                "target": nodes[target]["node_id"],
                "weight": weight,
            }
            for source, target, weight in graph.digraph.edges(data="weight")
        ],
    }


def _nodes(graph: AttributionGraph) -> dict[Node, dict[str, Any]]:
    """What the file says of each node."""
    kinds = _kinds(graph)
    rows = {site: len(kinds) * site.layer + kinds.index(site.kind) for site in _sites(graph)}
    top = max(rows.values(), default=-1) + 1
    outputs = [node for node in graph.digraph if isinstance(node, LogitNode)]
    told = {}
    for (node, values), share in zip(graph.digraph.nodes.items(), _shares(graph), strict=True):
        more: dict[str, Any] = {"influence": share}
        match node:
            case TokenNode(pos):
                name, layer, kind, feature = f"E_{pos}", "E", "embedding", pos
                label = f'Emb: "{visible(graph.words[pos])}"'
            case LatentNode(site, latent, pos):
                layer, kind = rows[site], "cross layer transcoder"
                name, feature = f"{layer}_{latent}_{pos}", _paired(layer, latent)
                label = values["label"] or ""
                if len(kinds) > 1:
                    label = f"{short_name(node)} {label}".strip()
                more["activation"] = values["act"]
            case ErrorNode(site, pos):
                name, layer, kind, feature = str(node), rows[site], "mlp reconstruction error", -1
                label = f'Error of {site} at "{visible(graph.words[pos])}"'
            case BiasNode(site):
                name, layer, kind, feature = str(node), rows[site], "mlp reconstruction error", -2
                pos, label = 0, f"Bias of {site}"
            case LogitNode():
                pos, layer, kind, feature = len(graph.words) - 1, top, "logit", outputs.index(node)
                name, label = f"{layer}_{feature}_{pos}", _output(graph, node)
                more = {"influence": None, "token_prob": abs(values["grad"])}
        told[node] = {
            "node_id": name,
            "feature": feature,
            "layer": str(layer),
            "ctx_idx": pos,
            "feature_type": kind,
            "jsNodeId": name,
            "clerp": label,
            **more,
        }
    return told


def _sites(graph: AttributionGraph) -> set[Site]:
    return {
        node.site for node in graph.digraph if isinstance(node, LatentNode | ErrorNode | BiasNode)
    }


def _kinds(graph: AttributionGraph) -> list[str]:
    """The kinds of site in the graph, in the order of the forward pass."""
    there = {site.kind for site in _sites(graph)}
    return [kind for kind in ALL_KINDS if kind in there]


def _paired(layer: int, latent: int) -> int:
    """Cantor's number of a pair, by which the viewers know a latent."""
    return (layer + latent) * (layer + latent + 1) // 2 + latent


def _shares(graph: AttributionGraph) -> list[float]:
    """Of each node the share of all influence that it and the more influential ones hold."""
    influences = np.array([value for _, value in graph.digraph.nodes(data="influence")], float)
    falling = np.argsort(-influences, kind="stable")
    sums = influences[falling].cumsum()
    shares = np.empty_like(sums)
    shares[falling] = sums / (sums[-1] or 1.0)
    return shares.tolist()


def _output(graph: AttributionGraph, node: LogitNode) -> str:
    """An output's label: its name in quotes, which the viewers write above it."""
    values = graph.digraph.nodes[node]
    name = visible(node.name).replace('"', "'")
    if re.fullmatch(OF_TOP_LOGITS, node.name, re.DOTALL):  # there weights are probabilities
        return f'Output "{name}" (p={values["grad"]:.3f})'
    return f'Output "{name}" {output_text(graph, values)} (p=n/a)'


def _source_set(graph: AttributionGraph, scan: str) -> str | None:
    """Neuronpedia's name for the dictionaries of all latents, if one name says which they are."""
    recorded = graph.provenance
    scope = recorded.get("dictionaries_from") or recorded.get("model")
    if scope != scan or len(_kinds(graph)) > 1:
        return None
    dictionaries = recorded.get("dictionaries", {})
    known = {(file.site, file.path): file.neuronpedia for file in catalogue().get(scan, ())}
    sets = {
        known.get((site, dictionaries.get(str(site), {}).get("name")))
        for site in {node.site for node in graph.latents()}
    }
    return sets.pop() if len(sets) == 1 else None
