"""Nodes and edges of different prompts under common keys: position by position, or over positions.

Of one prompt, a key's *value* is the sum of its terms, and its *size* the sum of their absolute
values: with `aligned` positions a key has one term, with `summed` ones a term for each position (of
an edge, for each pair of them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from attribution.attribute import Attribution
from attribution.effects import Effects
from circuits import LatentNode, LogitNode, Node, Site
from circuits.nodes import NODE_WORDS

POSITIONS = ("aligned", "summed")
"""Whether a position is part of a key or summed over."""


@dataclass(frozen=True)
class NodeKey:
    """What nodes of different prompts have in common.

    Attributes:
        kind: `token`, `bias`, `latent`, `error` or `logit`.
        site: None for tokens and the logit node.
        latent: Of a latent, its index in the dictionary.
        pos: None where positions are summed over, and for biases and the logit node.
        metric: Name of the logit node: of the function from prompts to metrics.
    """

    kind: str
    site: Site | None = None
    latent: int | None = None
    pos: int | None = None
    metric: str | None = None

    def __str__(self) -> str:
        """With a position, the node's name (`mlp.3/latent.901@7`); otherwise that without it."""
        if self.kind == "logit":
            return f"logit/{self.metric}"
        name = self.kind if self.latent is None else f"{self.kind}.{self.latent}"
        place = "" if self.pos is None else f"@{self.pos}"
        return f"{name}{place}" if self.site is None else f"{self.site}/{name}{place}"


class Row(NamedTuple):
    """One prompt's numbers for a list of keys, `[k]` each; see the module for value and size."""

    value: np.ndarray
    size: np.ndarray
    present: np.ndarray


@dataclass(frozen=True)
class Space:
    """All latents that there are, numbered at each site: `pos * d_sae + latent`, or `latent`.

    Attributes:
        d_sae: By site, in the order of the forward pass.
        n_pos: Positions of every prompt; None where positions are summed over.
        metric: Name of the logit node.
    """

    d_sae: Mapping[Site, int]
    n_pos: int | None
    metric: str

    def code(self, site: Site, latent: np.ndarray, pos: np.ndarray) -> np.ndarray:
        return latent if self.n_pos is None else pos * self.d_sae[site] + latent

    def n_codes(self, site: Site) -> int:
        return self.d_sae[site] * (self.n_pos or 1)

    def latent(self, site: Site, code: int) -> NodeKey:
        pos, latent = divmod(code, self.d_sae[site])
        return NodeKey("latent", site, latent, None if self.n_pos is None else pos)

    def places(self) -> range | list[None]:
        return [None] if self.n_pos is None else range(self.n_pos)


@dataclass(frozen=True)
class Keys:
    """The chosen latents and all other nodes, in topological order as in `Attribution`.

    Attributes:
        space: What latents were chosen from.
        chosen: By site, the codes of the chosen latents, ascending.
    """

    space: Space
    chosen: Mapping[Site, np.ndarray]

    @cached_property
    def nodes(self) -> tuple[NodeKey, ...]:
        nodes = [NodeKey("token", pos=pos) for pos in self.space.places()]
        for site in self.space.d_sae:
            nodes.append(NodeKey("bias", site))
            nodes += [self.space.latent(site, code) for code in self.chosen[site].tolist()]
            nodes += [NodeKey("error", site, pos=pos) for pos in self.space.places()]
        return (*nodes, NodeKey("logit", metric=self.space.metric))

    @cached_property
    def index(self) -> dict[NodeKey, int]:
        return {node: i for i, node in enumerate(self.nodes)}

    def of(self, node: Node) -> int:
        """Where the key of one prompt's node is in `nodes`."""
        if isinstance(node, LogitNode):
            return len(self.nodes) - 1
        pos = None if self.space.n_pos is None else getattr(node, "pos", None)
        site, latent = getattr(node, "site", None), getattr(node, "latent", None)
        return self.index[NodeKey(NODE_WORDS[type(node)], site, latent, pos)]

    def first(self, kind: str, site: Site | None = None) -> int:
        """Where the keys of this kind at `site` begin: tokens, errors or the bias."""
        pos = None if self.space.n_pos is None or kind == "bias" else 0
        return self.index[NodeKey(kind, site, pos=pos)]


def effect_arrays(effects: Effects) -> dict[str, np.ndarray]:
    """What is kept of one prompt's total effects: `site/name`, and `token`, `value`."""
    arrays = {
        "value": np.array([effects.value]),
        "token": effects.token_effect.float().cpu().numpy(),
    }
    for site, e in effects.sites.items():
        arrays |= {
            f"{site}/latent": e.latent.cpu().numpy().astype(np.int64),
            f"{site}/pos": e.pos.cpu().numpy().astype(np.int64),
            f"{site}/effect": e.effect.float().cpu().numpy(),
            f"{site}/active": (e.acts != 0).cpu().numpy(),
            f"{site}/error": e.error_effect.float().cpu().numpy(),
            f"{site}/bias": np.array([e.bias_effect]),
        }
        if len(e.by_layer) > 1:
            arrays[f"{site}/later"] = e.by_layer[1:].float().cpu().numpy()
    return arrays


def site_values(
    space: Space, site: Site, arrays: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Codes of one prompt's latents at `site`, each once, and their values."""
    codes, place = np.unique(space.code(site, arrays["latent"], arrays["pos"]), return_inverse=True)
    return codes, np.bincount(place, arrays["effect"], len(codes))


def node_row(keys: Keys, arrays: Mapping[str, np.ndarray]) -> Row:
    """One prompt's effects, `[len(keys.nodes)]`; latents not chosen are in their error node."""
    n = len(keys.nodes)
    present = np.array([node.kind != "latent" for node in keys.nodes])
    errors = error_values(keys, arrays)
    where = [_places(keys, keys.first("token"), len(arrays["token"])), np.array([n - 1])]
    terms = [arrays["token"], arrays["value"]]
    for site, chosen in keys.chosen.items():
        latent, pos, effect, active, bias = (
            arrays[f"{site}/{name}"] for name in ("latent", "pos", "effect", "active", "bias")
        )
        place, kept = find(chosen, keys.space.code(site, latent, pos))
        at_bias = keys.first("bias", site)
        latents = at_bias + 1 + place[kept]
        where += [np.array([at_bias]), latents]
        where += [_places(keys, keys.first("error", site), len(errors[site]))]
        terms += [bias, effect[kept], errors[site]]
        present[latents[active[kept]]] = True
    at, values = np.concatenate(where), np.concatenate(terms)
    return Row(np.bincount(at, values, n), np.bincount(at, np.abs(values), n), present)


def error_values(keys: Keys, arrays: Mapping[str, np.ndarray]) -> dict[Site, np.ndarray]:
    """One prompt's errors by site, `[pos]`, with what latents that are not chosen write there."""
    values = {site: arrays[f"{site}/error"].astype(np.float64) for site in keys.chosen}
    for site, chosen in keys.chosen.items():
        latent, pos, effect = (arrays[f"{site}/{name}"] for name in ("latent", "pos", "effect"))
        out = ~find(chosen, keys.space.code(site, latent, pos))[1]
        later = arrays.get(f"{site}/later", np.empty((0, len(pos))))  # of cross-layer transcoders
        for n, part in enumerate([effect - later.sum(0), *later]):
            there = values[Site(site.layer + n, site.kind)]
            there += np.bincount(pos[out], part[out], len(there))
    return values


def chosen_latents(keys: Keys, arrays: Mapping[str, np.ndarray]) -> list[LatentNode]:
    """The chosen latents that are on, on one prompt or in its reference, in order."""
    nodes = []
    for site, chosen in keys.chosen.items():
        latent, pos = arrays[f"{site}/latent"], arrays[f"{site}/pos"]
        wanted = find(chosen, keys.space.code(site, latent, pos))[1]
        pairs = zip(latent[wanted].tolist(), pos[wanted].tolist(), strict=True)
        nodes += [LatentNode(site, number, at) for number, at in pairs]
    return nodes


def edge_arrays(keys: Keys, attribution: Attribution) -> dict[str, np.ndarray]:
    """One prompt's edges between keys: `code` (`target * len(keys.nodes) + source`, ascending),
    `value` and `size`, in the metric's units: an edge times its target's gradient.
    """
    edges = attribution.edges.tocoo()
    place = np.array([keys.of(node) for node in attribution.nodes])
    target, source = place[edges.row], place[edges.col]
    terms = edges.data * attribution.target_grads.numpy().astype(np.float64)[edges.row]
    codes, at = np.unique(target * len(keys.nodes) + source, return_inverse=True)
    return {
        "code": codes,
        "value": np.bincount(at, terms, len(codes)),
        "size": np.bincount(at, np.abs(terms), len(codes)),
    }


def edge_row(codes: np.ndarray, arrays: Mapping[str, np.ndarray]) -> Row:
    """One prompt's edges for the ascending `codes`; an edge that it does not have counts 0."""
    place, wanted = find(codes, arrays["code"])
    row = Row(np.zeros(len(codes)), np.zeros(len(codes)), np.zeros(len(codes), dtype=bool))
    row.value[place[wanted]] = arrays["value"][wanted]
    row.size[place[wanted]] = arrays["size"][wanted]
    row.present[place[wanted]] = arrays["size"][wanted] > 0
    return row


def find(ascending: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where in `ascending` each of `wanted` is, and whether it is there at all."""
    if not len(ascending):
        return np.zeros(len(wanted), dtype=np.int64), np.zeros(len(wanted), dtype=bool)
    place = np.searchsorted(ascending, wanted).clip(max=len(ascending) - 1)
    return place, ascending[place] == wanted


def _places(keys: Keys, first: int, n_pos: int) -> np.ndarray:
    """Keys of all positions of tokens, or of a site's errors; `first` is that of the first one."""
    return np.full(n_pos, first) + (np.arange(n_pos) if keys.space.n_pos else 0)
