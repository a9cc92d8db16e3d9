"""The same code on a GPU gives the same numbers (`pytest -m gpu`)."""

import numpy as np
import pytest
import torch

from attribution import attribute, integrated_effects, logit_diff
from circuits import KINDS, LatentNode, Site, load, load_gemma, splice
from circuits.formula import DOWNSTREAM
from experiments import ablate_each
from tests.random_gemma import TEXT, random_dictionaries

pytestmark = pytest.mark.gpu
METRIC = logit_diff("w3", "w4")


@pytest.fixture(scope="module")
def on_gpu(gemma_folder):
    dictionaries = {s: d.to(device="cuda") for s, d in random_dictionaries().items()}
    return splice(load_gemma(str(gemma_folder), device="cuda"), dictionaries, name="random")


def test_splicing_changes_nothing(on_gpu):
    ids = on_gpu.tokens([TEXT, "w1 w2"])
    with torch.no_grad():
        plain = on_gpu.bridge(ids, attention_mask=(ids != 0).long())
    keep = dict.fromkeys(on_gpu.sites, lambda acts, error: (acts, error))
    assert torch.equal(on_gpu.run(ids, keep), plain)


@pytest.mark.parametrize(
    "options",
    [{}, {"attention": "live"}, {"norms": "live", "mlp": "relp"}, {"choose": "influence"}],
    ids=str,
)
def test_attributions_agree_with_the_cpu(on_gpu, model, options):
    here, there = (attribute(m, TEXT, METRIC, max_latents=100, **options) for m in (model, on_gpu))
    assert here.nodes == there.nodes
    torch.testing.assert_close(here.effects, there.effects, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(here.edges.toarray(), there.edges.toarray(), rtol=1e-3, atol=1e-3)


def test_integrated_gradients_agree_with_the_cpu(on_gpu, model):
    here, there = (integrated_effects(m, TEXT, METRIC) for m in (model, on_gpu))
    site = Site(1, "mlp")
    torch.testing.assert_close(
        here.sites[site].effect, there.sites[site].effect.cpu(), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("downstream", DOWNSTREAM)
def test_ablations_agree_with_the_cpu(on_gpu, model, downstream):
    nodes = [LatentNode(site, latent, 2 + latent) for site in model.sites for latent in (1, 5)]
    here, there = (
        ablate_each(m, TEXT, METRIC, nodes, downstream=downstream) for m in (model, on_gpu)
    )
    for one, other in zip(here, there, strict=True):
        assert one.measured == pytest.approx(other.measured, rel=1e-3, abs=1e-3)


def test_load_takes_the_gpu_by_default():
    model = load("tiny")
    assert model.device.type == "cuda"
    assert {site.kind for site in model.sites} == set(KINDS)
