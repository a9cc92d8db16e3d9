"""Reading active latents alone gives the numbers of the dense formulas."""

from dataclasses import replace

import pytest
import torch

from circuits import Site
from circuits import active as module
from circuits.active import Active, Reconstruction, find_active, reconstruct, write_active
from circuits.dictionaries import Dictionary

SITE = Site(0, "mlp")
N_POS, D_IN, D_SAE, D_OUT = 9, 12, 50, 7


def random(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def jumprelu() -> Dictionary:
    return Dictionary(
        W_enc=random(D_IN, D_SAE, seed=0),
        b_enc=random(D_SAE, seed=1),
        threshold=random(D_SAE, seed=2).abs(),
        W_dec=random(D_SAE, D_OUT, seed=3),
        b_dec=random(D_OUT, seed=4),
    )


DICTIONARIES = {
    "JumpReLU": jumprelu(),
    "TopK": replace(jumprelu(), k=5),
    "skip": replace(jumprelu(), W_skip=random(D_IN, D_OUT, seed=5)),
    "cross-layer": replace(jumprelu(), W_later=random(D_SAE, 2, D_OUT, seed=10)),
}
X = random(2, N_POS, D_IN, seed=6)
READS = torch.rand(2, N_POS, generator=torch.Generator().manual_seed(7)) < 0.7


@pytest.fixture(params=["whole", "in blocks"])
def blocks(request, monkeypatch):
    """Everything at once, and two or three positions at a time."""
    if request.param == "in blocks":
        monkeypatch.setattr(module, "DENSE_BYTES", 2 * D_SAE * 8)
        monkeypatch.setattr(module, "ROW_NUMBERS", {"cpu": 3 * D_SAE * D_OUT})


@pytest.fixture(params=DICTIONARIES)
def dictionary(request) -> Dictionary:
    return DICTIONARIES[request.param]


@pytest.mark.usefixtures("blocks")
def test_active_latents_are_those_that_encode_switches_on(dictionary):
    x, reads = X.flatten(0, 1), READS.flatten()
    found = find_active(dictionary, x, reads)
    dense = dictionary.encode(x) * reads[:, None]
    assert torch.equal(torch.stack([found.pos, found.latent], 1), dense.nonzero())
    torch.testing.assert_close(found.acts, dense[found.pos, found.latent])
    assert 0 < len(found.pos) < dense.numel() / 2


@pytest.mark.usefixtures("blocks")
def test_what_they_write_and_point_along_are_matrix_products():
    dictionary = DICTIONARIES["JumpReLU"]
    x, reads, direction = X.flatten(0, 1), READS.flatten(), random(2 * N_POS, D_OUT, seed=8)
    found = find_active(dictionary, x, reads)
    written, along = write_active(dictionary.W_dec, found, len(x), direction)
    torch.testing.assert_close(written, (dictionary.encode(x) * reads[:, None]) @ dictionary.W_dec)
    torch.testing.assert_close(along, (direction @ dictionary.W_dec.T)[found.pos, found.latent])


def test_reconstruction_is_decode_of_encode(dictionary):
    x, reads = X.flatten(0, 1), READS.flatten()
    found = find_active(dictionary, x, reads)
    dense = dictionary.decode(dictionary.encode(x), x) * reads[:, None]
    torch.testing.assert_close(reconstruct(dictionary, x, reads, found), dense)


def test_its_gradient_is_the_dense_one(dictionary):
    """Autograd through `decode(encode(x))` is the oracle."""
    upstream = random(1 + dictionary.n_later, 2, N_POS, D_OUT, seed=9)
    sparse, dense = (X.clone().requires_grad_() for _ in range(2))
    value = Reconstruction.apply(sparse, READS, {SITE: dictionary}, SITE)
    acts = dictionary.encode(dense) * READS[..., None]
    own = dictionary.decode(acts, dense) * READS[..., None]
    expected = torch.stack([own, *(acts @ W_dec for W_dec in dictionary.decoders[1:])])
    torch.testing.assert_close(value, expected)
    (value * upstream).sum().backward()
    (expected * upstream).sum().backward()
    torch.testing.assert_close(sparse.grad, dense.grad)


def test_where_nothing_is_active_nothing_is_written(dictionary):
    x = X.flatten(0, 1)
    nowhere = torch.zeros(len(x), dtype=torch.bool)
    found = find_active(dictionary, x, nowhere)
    assert len(found.pos) == 0
    assert reconstruct(dictionary, x, nowhere, found).abs().sum() == 0


def test_bfloat16_matrices_are_summed_in_float32():
    """The error is what rounding the matrices and activations gives; the sum adds nothing."""
    dictionary = DICTIONARIES["JumpReLU"].to(dtype=torch.bfloat16)
    x, reads = X.flatten(0, 1).bfloat16(), READS.flatten()
    found = find_active(dictionary, x, reads)
    written, _ = write_active(dictionary.W_dec, found, len(x))
    wide = dictionary.to(dtype=torch.float64)
    exact, _ = write_active(wide.W_dec, replace(found, acts=found.acts.double()), len(x))
    assert written.dtype == torch.float32
    torch.testing.assert_close(written.double(), exact, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", ["JumpReLU", "skip"])
def test_what_is_not_read_may_be_infinite(name):
    """In float16 BOS encodes to more than 65,504, and its skip connection writes as much."""
    dictionary = DICTIONARIES[name].to(dtype=torch.float16)
    x, reads = X.flatten(0, 1), READS.flatten().clone()
    reads[0] = False
    huge = x.clone()
    huge[0] = 6e4
    assert not dictionary.encode(huge)[0].isfinite().all()
    found, expected = (find_active(dictionary, some, reads) for some in (huge, x))
    assert torch.equal(found.acts, expected.acts)
    assert torch.equal(found.pos, expected.pos)
    torch.testing.assert_close(
        reconstruct(dictionary, huge, reads, found), reconstruct(dictionary, x, reads, expected)
    )


@pytest.mark.parametrize("shape", [(18, D_SAE), (2, N_POS, D_SAE)])
def test_dense_and_back(shape):
    acts = torch.relu(random(18, D_SAE, seed=11))
    assert torch.equal(Active.of(acts).dense(*shape), acts.view(shape))
