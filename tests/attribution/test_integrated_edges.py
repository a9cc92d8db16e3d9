"""Edges through MLPs by integrated gradients: a loop over the points, from the reference on."""

from typing import Any

import numpy as np
import pytest
import torch

from attribution import attribute
from circuits import LatentNode, Site, UserError, corrupted_reference
from circuits.gated import coefficients
from tests.attribution.random_shapes import METRIC
from tests.attribution.test_edge_references import OTHER, PROMPT, TEXT

BELOW, ATTN, MLP = Site(0, "resid"), Site(1, "attn"), Site(1, "mlp")


def test_integrated_coefficients_from_a_start_are_a_loop_over_points():
    """Autograd of the product at each point of the way; the sum is the product's change."""
    torch.manual_seed(0)
    act = torch.nn.functional.silu
    gate, up, first_gate, first_up = (torch.randn(50, dtype=torch.double) * 3 for _ in range(4))
    places, weights = np.polynomial.legendre.leggauss(4)
    slow = [torch.zeros_like(gate), torch.zeros_like(up)]
    for place, weight in zip((places + 1) / 2, weights / 2, strict=True):
        g = (first_gate + place * (gate - first_gate)).requires_grad_()
        u = (first_up + place * (up - first_up)).requires_grad_()
        grads = torch.autograd.grad((act(g) * u).sum(), [g, u])
        slow = [total + weight * grad for total, grad in zip(slow, grads, strict=True)]
    start = first_gate, first_up
    found = coefficients("integrated", act, gate, up, points=4, start=start)
    torch.testing.assert_close(list(found), slow)
    zero = torch.zeros_like(gate), torch.zeros_like(up)
    from_zero = coefficients("integrated", act, gate, up, points=4, start=zero)
    torch.testing.assert_close(from_zero, coefficients("integrated", act, gate, up, points=4))
    by_gate, by_up = coefficients("integrated", act, gate, up, points=40, start=start)
    change = by_gate * (gate - first_gate) + by_up * (up - first_up)
    torch.testing.assert_close(change, act(gate) * up - act(first_gate) * first_up)


@pytest.mark.parametrize("points", [1, 3])
@pytest.mark.parametrize("against", ["zero", "corrupted"])
def test_integrated_edges_are_a_loop_over_points(model, against, points):
    """Finite differences of the MLP itself at each point between the reference and the prompt."""
    reference = corrupted_reference(model, PROMPT) if against == "corrupted" else None
    a = attribute(
        model, PROMPT, METRIC, max_latents=200, mlp="integrated", points=points, reference=reference
    )
    assert a.provenance["settings"]["edges"] == f"integrated gradients of MLPs (n={points})"
    layer = SlowLayer(model)
    clean, corrupted = (layer.input(*layer.written(text)) for text in (TEXT, OTHER))
    start = corrupted if reference else torch.zeros_like(clean)
    latents = [(i, node) for i, node in enumerate(a.nodes) if isinstance(node, LatentNode)]
    targets = [(i, node) for i, node in latents if node.site == MLP and a.acts[i] != 0][:6]
    h, n_tested = 1e-5, 0
    for s, source in latents:
        if source.site != BELOW:
            continue
        W_dec = model.dictionaries[BELOW].W_dec[source.latent].double()
        moved = torch.zeros_like(clean)
        moved[source.pos] = a.changes[s].double() * W_dec
        way = layer.input(moved, torch.zeros_like(layer.written(TEXT)[1]))
        slope = torch.zeros_like(clean)
        for place, weight in zip(*quadrature(points), strict=True):
            at = start + place * (clean - start)
            slope += weight * (layer.mlp(at + h * way) - layer.mlp(at - h * way)) / (2 * h)
        for t, target in targets:
            reader = model.dictionaries[MLP].W_enc[:, target.latent].double()
            slow = (layer.after(slope)[target.pos] @ reader).item()
            assert a.edges[t, s] == pytest.approx(slow, rel=1e-3, abs=1e-6)
            n_tested += slow != 0
    assert n_tested > 5


def quadrature(points):
    """Gauss and Legendre's places between 0 and 1, and their weights."""
    places, weights = np.polynomial.legendre.leggauss(points)
    return (places + 1) / 2, weights / 2


class SlowLayer:
    """Layer 1 around its MLP, norms held at the scales of `TEXT`; written out, in double."""

    def __init__(self, model):
        huggingface = model.bridge.original_model
        layer = huggingface.model.layers[1]
        self.model, self.act = model, model.family.mlp_of(huggingface, 1).act_fn
        parts = model.family.mlp_of(huggingface, 1)
        names = ("gate_proj", "up_proj", "down_proj")
        self.gate, self.up, self.down = (getattr(parts, n).weight.double() for n in names)
        self.W_O = layer.self_attn.o_proj.weight.double()
        norms = {
            "ln1_post": layer.post_attention_layernorm,
            "ln2": layer.pre_feedforward_layernorm,
            "ln2_post": layer.post_feedforward_layernorm,
        }
        read: dict[str, Any] = {}
        watch = {f"blocks.1.{n}.hook_in": lambda x, n=n: read.update({n: x[0]}) for n in norms}
        with torch.no_grad():
            model.forward(model.tokens(TEXT), {}, watch=watch)
        self.factor = {}
        for name, norm in norms.items():
            square = read[name].double().square().mean(-1, keepdim=True)
            gain = 1 + norm.weight.double()
            self.factor[name] = gain * torch.rsqrt(square + model.config.rms_norm_eps)

    def written(self, text):
        """What the residual site below and the heads write on a text, `[pos, d]` each."""
        outputs = self.model.activations(self.model.tokens(text))[2]
        return outputs[BELOW][0].double(), outputs[ATTN][0].double()

    def input(self, resid, heads):
        return (resid + heads @ self.W_O.T * self.factor["ln1_post"]) * self.factor["ln2"]

    def mlp(self, x):
        return (self.act(x @ self.gate.T) * (x @ self.up.T)) @ self.down.T

    def after(self, x):
        return x * self.factor["ln2_post"]


@pytest.mark.parametrize("points", [0, -1, 2.5])
def test_no_points_are_refused(model, points):
    with pytest.raises(UserError, match=f"points={points}; give a whole number from 1 on"):
        attribute(model, TEXT, METRIC, mlp="integrated", points=points)
