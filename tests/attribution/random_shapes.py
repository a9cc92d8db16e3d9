"""Random Gemma 2s with random dictionaries, of every shape and choice of sites, for the edges."""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from attribution import logit_diff
from attribution.edges.node_table import NodeTable
from circuits import Dictionary, Site, load_gemma, splice
from circuits.active import Active
from circuits.freeze import Freeze
from circuits.gated import RULES
from tests.random_gemma import save_random_gemma

VOCAB, D_MODEL, D_SAE = 24, 12, 24
METRIC = logit_diff("w3", "w4")
KINDS = ("embed", "attn", "mlp", "transcoder", "resid")


@dataclass(frozen=True)
class Shape:
    """A Gemma 2, the prompt it reads, and which sites are spliced."""

    seed: int
    n_layers: int
    n_kv: int
    group: int
    d_head: int
    window: int
    soft_caps: bool
    n_tokens: int
    sites: tuple[Site, ...]
    skip: bool
    cross: bool
    residual: bool
    dtype: torch.dtype = torch.float32


ROUNDING = {torch.float64: 2**-24, torch.float32: 2**-24, torch.bfloat16: 2**-8}
"""What one rounding changes, by the model's dtype: edges are float32, and so are the norms and the
softmax of a float64 model."""


def missed(dtype):
    """By what share of the largest two ways to the same edges may differ.

    A number passes some 60 roundings on its way through four layers and back, which add up like a
    random walk; those of float32 are in every sum too, bfloat16 products are summed in float32.
    """
    return ROUNDING[dtype] * (8 if dtype == torch.bfloat16 else 64)


@st.composite
def shapes(draw):
    n_layers = draw(st.integers(1, 4))
    every = [Site(n, kind) for n in range(n_layers) for kind in KINDS[1:]] + [Site(0, "embed")]
    sites = draw(st.sets(st.sampled_from(every), min_size=1))
    # a transcoder and an autoencoder do not share one MLP
    sites = {s for s in sites if s.kind != "transcoder" or Site(s.layer, "mlp") not in sites}
    return Shape(
        seed=draw(st.integers(0, 10**6)),
        n_layers=n_layers,
        n_kv=draw(st.sampled_from([1, 2])),
        group=draw(st.sampled_from([1, 3])),
        d_head=draw(st.sampled_from([4, 6])),
        window=draw(st.sampled_from([2, 5])),
        soft_caps=draw(st.booleans()),
        n_tokens=draw(st.integers(1, 8)),
        sites=tuple(sorted(sites)),
        skip=draw(st.booleans()),
        cross=draw(st.booleans()),
        residual=draw(st.booleans()),
        dtype=draw(st.sampled_from(list(ROUNDING))),
    )


def build(shape, folder):
    """The model with its dictionaries, and a prompt."""
    n_heads = shape.n_kv * shape.group
    save_random_gemma(
        folder,
        seed=shape.seed,
        vocab=VOCAB,
        hidden_size=D_MODEL,
        intermediate_size=14,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=shape.n_kv,
        head_dim=shape.d_head,
        query_pre_attn_scalar=shape.d_head,
        sliding_window=shape.window,
        attn_logit_softcapping=50.0 if shape.soft_caps else None,
        final_logit_softcapping=30.0 if shape.soft_caps else None,
        max_position_embeddings=16,
    )
    widths = dict.fromkeys(KINDS, D_MODEL) | {"attn": n_heads * shape.d_head}

    def skip():
        return torch.randn(D_MODEL, D_MODEL) * 0.2

    def later(site):
        """Decoders for the next layers, up to the first without a transcoder."""
        above = itertools.takewhile(
            lambda n: Site(n, "transcoder") in shape.sites,
            range(site.layer + 1, shape.n_layers),
        )
        n = len(list(above)) if shape.cross and site.kind == "transcoder" else 0
        return torch.randn(D_SAE, n, D_MODEL) * 0.2 if n else None

    dictionaries = {
        site: Dictionary(
            W_enc=torch.randn(widths[site.kind], D_SAE) * 0.3,
            b_enc=torch.randn(D_SAE) * 0.1,
            threshold=torch.rand(D_SAE) * 0.3,
            W_dec=torch.randn(D_SAE, widths[site.kind]) * 0.2,
            b_dec=torch.randn(widths[site.kind]) * 0.1,
            W_skip=skip() if shape.skip and site.kind == "transcoder" else None,
            W_later=later(site),
            reads_residual=shape.residual and site.kind == "transcoder",
        ).to(dtype=shape.dtype)
        for site in shape.sites
    }
    bridge = load_gemma(str(folder), device="cpu", dtype=shape.dtype)
    model = splice(bridge, dictionaries, name="random")
    words = torch.randint(0, VOCAB - 4, (shape.n_tokens,)).tolist()
    return model, " ".join(f"w{word}" for word in words)


def crossed(layers, kinds=("attn", "transcoder"), **kwargs):
    """A shape with cross-layer transcoders."""
    sites = tuple(Site(n, kind) for n in range(layers) for kind in kinds)
    fixed = {"n_kv": 2, "group": 1, "d_head": 4, "window": 2, "soft_caps": True, "n_tokens": 2}
    return Shape(seed=3, n_layers=layers, sites=sites, skip=True, cross=True, **fixed, **kwargs)


CROSSED = crossed(3, residual=False)
CROSSED_ALONE = crossed(3, ("transcoder",), residual=True)

freezes = st.builds(
    Freeze, attention=st.booleans(), norms=st.booleans(), mlp=st.sampled_from(RULES)
)

few = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def every_latent(model, ids):
    """The table of all active latents."""
    trace = model.trace(ids)
    latents = {s: Active(t.pos, t.latent, t.acts.float()) for s, t in trace.sites.items()}
    return NodeTable.of(ids.shape[1], latents, ("metric",))


def close(found, expected, rel=1e-4):
    """Within a share of the largest."""
    scale = np.abs(expected).max() if expected.size else 0.0
    np.testing.assert_allclose(found, expected, rtol=0, atol=rel * scale + 1e-7)
