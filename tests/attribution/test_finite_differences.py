"""Edges are finite differences in float64, on random models of every shape and choice of sites."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import example, given, settings

from attribution import attribute
from circuits import BiasNode, LatentNode
from circuits.freeze import Freeze
from tests.attribution.random_shapes import (
    CROSSED,
    CROSSED_ALONE,
    build,
    close,
    few,
    freezes,
    missed,
    shapes,
)
from tests.attribution.test_edge_references import added, options
from tests.attribution.test_edges import clean_values, held

H = 0.01
"""Steps, as a share of each source: small for curvature, large for float32 norms and softmax."""

STENCIL = {-3: -1 / 60, -2: 9 / 60, -1: -45 / 60, 1: 45 / 60, 2: -9 / 60, 3: 1 / 60}
"""Of the first derivative; wrong by the seventh alone."""


def raw_difference(logits):
    """A metric that rounds nothing."""
    return logits[:, -1, 3] - logits[:, -1, 4]


@settings(few, max_examples=8)
@example(CROSSED, Freeze(attention=True, norms=True))
@example(CROSSED_ALONE, Freeze(norms=True))
@given(shape=shapes(), freeze=freezes)
def test_every_edge_is_a_finite_difference_in_float64(folders, shape, freeze):
    """Nudge a source by a share of itself, hold all other sites, read every target.

    What is frozen is held at its clean value: with all of it, only roundings of float32 are
    missed. MLPs are as they are: edges by their Jacobian.
    """
    model, text = build(replace(shape, dtype=torch.float64), folders())
    freeze = replace(freeze, mlp="jacobian")
    a = attribute(model, text, raw_difference, max_latents=40, **options(freeze))
    vectors = added(model, a.nodes, text)
    place = {node: i for i, node in enumerate(a.nodes)}
    sources = [node for node in a.nodes[:-1] if not isinstance(node, BiasNode)]
    edges = a.edges.toarray().astype(float)
    sizes = np.abs(edges).max(0)
    sources = sorted(sources, key=lambda node: -sizes[place[node]])[::3][:12]
    measured = differences(model, text, a.nodes, sources, vectors, freeze)
    found = edges[:, [place[node] for node in sources]].T
    held_all = freeze.attention and freeze.norms
    close(measured, found, missed(torch.float64) if held_all else 1e-4)


def differences(model, text, nodes, sources, vectors, freeze):
    """By how much each source moves each target, `[source, target]`: one pass, a row a step."""
    ids = model.tokens(text)
    embedding, inputs, outputs = model.activations(ids)
    kept, normalized, seen = clean_values(model, ids, freeze), {}, {}
    n_rows = len(sources) * len(STENCIL)
    clean = {**outputs, None: embedding}
    nudges = {leaf: x.new_zeros(n_rows, *x.shape[1:]) for leaf, x in clean.items()}
    for (node, leaf), vector in vectors.items():
        if node in sources:
            first = sources.index(node) * len(STENCIL)
            for row, step in enumerate(STENCIL, first):
                nudges[leaf][row, node.pos] += step * H * vector

    def hold(site):
        def hook(read, _):
            d = model.dictionaries[site]
            if site.kind == "transcoder" and not d.reads_residual:
                read = normalized.get(f"blocks.{site.layer}.ln2", read)
            seen[site] = read
            skipped = 0.0
            if d.W_skip is not None:
                skipped = (read - inputs[site]) @ d.W_skip * model.reads(ids)[..., None]
            return outputs[site] + skipped + nudges[site]

        return hook

    with torch.no_grad(), held(model, kept, normalized):
        logits = model.forward(
            ids.expand(n_rows, -1),
            {site: hold(site) for site in model.sites},
            embedding=lambda *_: embedding + nudges[None],
        )
    values = torch.zeros(n_rows, len(nodes), dtype=torch.double)
    for i, node in enumerate(nodes):
        if isinstance(node, LatentNode):
            read = model.dictionaries[node.site].W_enc[:, node.latent]
            values[:, i] = seen[node.site][:, node.pos] @ read
    values[:, -1] = raw_difference(logits)
    weights = torch.tensor(list(STENCIL.values())).double() / H
    return torch.einsum("sjt,j->st", values.view(len(sources), len(STENCIL), -1), weights).numpy()
