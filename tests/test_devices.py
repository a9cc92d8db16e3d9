"""The same code on another device gives the same numbers.

On a GPU where there is one (`pytest -m gpu`), and everywhere on a device that only keeps its
tensors apart from the CPU's: what would mix them on a GPU fails there too.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal

from attribution import attribute, attribute_dataset, integrated_effects, logit_diff
from circuits import KINDS, Dictionary, LatentNode, Prompt, Site, load, load_gemma, splice
from circuits.formula import DOWNSTREAM
from experiments import ablate_each, faithfulness_curve, steer
from graphs import prune
from tests.pretend_device import NAME, PretendDevice
from tests.random_gemma import TEXT, random_dictionaries, random_transcoders

METRIC = logit_diff("w3", "w4")
CLOSE: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(scope="module", params=[NAME, pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param != NAME:
        yield request.param
        return
    with PretendDevice():
        yield NAME


@pytest.fixture(scope="module")
def there(gemma_folder, device):
    """`model`, on the device."""
    return on(device, gemma_folder, random_dictionaries())


def on(device: str, folder, dictionaries: dict[Site, Dictionary]):
    moved = {site: dictionary.to(device=device) for site, dictionary in dictionaries.items()}
    return splice(load_gemma(str(folder), device=device), moved, name="random")


def test_a_mix_of_devices_is_refused():
    with PretendDevice():
        here, there = torch.ones(2), torch.ones(2, device=NAME)
        places = torch.tensor([1], device=NAME)
        assert (there + 1)[torch.tensor([0])].tolist() == [2.0]
        for mix in (
            lambda: here + there,
            lambda: here[places],
            lambda: there.index_select(0, places.cpu()),
            lambda: torch.mm(here[None], there[:, None], out=there[None, :1]),
        ):
            with pytest.raises(RuntimeError, match="pretend and on the CPU"):
                mix()
        with pytest.raises(TypeError, match="numpy"):
            np.asarray(there)


def test_splicing_changes_nothing(there):
    ids = there.tokens([TEXT, "w1 w2"])
    with torch.no_grad():
        plain = there.bridge(ids, attention_mask=(ids != 0).long())
    keep = dict.fromkeys(there.sites, lambda acts, error: (acts, error))
    assert torch.equal(there.run(ids, keep), plain)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention": "live"},
        {"norms": "live", "mlp": "relp"},
        {"choose": "influence"},
        {"keep_influence": 0.8},
    ],
    ids=str,
)
def test_attributions_agree_with_the_cpu(there, model, options):
    check_attributions(model, there, **options)


def test_attributions_with_transcoders_agree_with_the_cpu(gemma_folder, bridge, device):
    dictionaries = random_transcoders(skip=True)
    there = on(device, gemma_folder, dictionaries)
    check_attributions(splice(bridge, dictionaries, name="random"), there, mlp="integrated")


def check_attributions(here, there, **options):
    one, other = (attribute(m, TEXT, METRIC, max_latents=100, **options) for m in (here, there))
    assert one.nodes == other.nodes
    torch.testing.assert_close(one.effects, other.effects, **CLOSE)
    np.testing.assert_allclose(one.edges.toarray(), other.edges.toarray(), **CLOSE)


def test_integrated_gradients_agree_with_the_cpu(there, model):
    one, other = (integrated_effects(m, TEXT, METRIC) for m in (model, there))
    site = Site(1, "mlp")
    torch.testing.assert_close(one.sites[site].effect, other.sites[site].effect.cpu(), **CLOSE)


@pytest.mark.parametrize("downstream", DOWNSTREAM)
def test_ablations_agree_with_the_cpu(there, model, downstream):
    nodes = [LatentNode(site, latent, 2 + latent) for site in model.sites for latent in (1, 5)]
    ones, others = (
        ablate_each(m, TEXT, METRIC, nodes, downstream=downstream) for m in (model, there)
    )
    for one, other in zip(ones, others, strict=True):
        assert one.measured == pytest.approx(other.measured, rel=1e-3, abs=1e-3)


def test_studies_agree_with_the_cpu(there, model):
    prompts = [Prompt(TEXT, "w3", "w4"), Prompt(" ".join(reversed(TEXT.split())), "w3", "w4")]
    nodes = prune(attribute(model, TEXT, METRIC, max_latents=8)).latents(top=8)
    for study in (
        lambda m: faithfulness_curve(m, TEXT, METRIC, nodes, sizes=[2], n_random=2).frame(),
        lambda m: attribute_dataset(m, prompts, max_latents=20, max_edges=50).nodes_table(),
        lambda m: steer(
            m, prompts, ["mlp.1/latent.3"], doses=[-1, 0, 1], neutral=[TEXT], n_random=1
        ).frame(),
    ):
        assert_frame_equal(study(model), study(there), **CLOSE)


@pytest.mark.gpu
def test_load_takes_the_gpu_by_default():
    model = load("tiny")
    assert model.device.type == "cuda"
    assert {site.kind for site in model.sites} == set(KINDS)
