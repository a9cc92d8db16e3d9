"""A dictionary computes what Gemma Scope's paper says, and refuses what is not one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.dictionaries import ARRAYS, Dictionary
from circuits.errors import UserError
from circuits.loading.store import DictionaryStore
from circuits.sites import Site
from tests.circuits.small_dictionaries import as_dictionary, random_arrays

FIXTURE = Path(__file__).parent / "fixtures" / "saelens_jumprelu.npz"


def numpy_encode(x, arrays):
    """The slow twin: one latent at a time, in float64."""
    x, arrays = x.astype(np.float64), {key: a.astype(np.float64) for key, a in arrays.items()}
    acts = np.zeros((len(x), len(arrays["b_enc"])))
    for row in range(len(x)):
        for latent in range(acts.shape[1]):
            pre = x[row] @ arrays["W_enc"][:, latent] + arrays["b_enc"][latent]
            if pre > arrays["threshold"][latent] and pre > 0:
                acts[row, latent] = pre
    return acts


def numpy_decode(acts, arrays):
    x_hat = np.tile(arrays["b_dec"].astype(np.float64), (len(acts), 1))
    for latent in range(acts.shape[1]):
        x_hat += np.outer(acts[:, latent], arrays["W_dec"][latent])
    return x_hat


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    d_in=st.integers(1, 6),
    d_sae=st.integers(1, 9),
    d_out=st.integers(1, 6),
)
def test_encode_and_decode_agree_with_a_loop(seed, d_in, d_sae, d_out):
    arrays = random_arrays(seed, d_in, d_sae, d_out)
    dictionary = as_dictionary(arrays)
    x = np.random.default_rng(seed + 1).normal(size=(4, d_in)).astype(np.float32)

    acts = dictionary.encode(torch.from_numpy(x))
    expected = numpy_encode(x, arrays)

    np.testing.assert_allclose(acts, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        dictionary.decode(acts), numpy_decode(expected, arrays), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_leading_dimensions_are_kept(batch):
    dictionary = as_dictionary(random_arrays(d_in=4, d_sae=6, d_out=3))
    acts = dictionary.encode(torch.randn(*batch, 4, generator=torch.Generator().manual_seed(0)))
    assert acts.shape == (*batch, 6)
    assert dictionary.decode(acts).shape == (*batch, 3)
    assert (dictionary.d_in, dictionary.d_sae, dictionary.d_out) == (4, 6, 3)


def unit_dictionary(threshold, dtype=torch.float32) -> Dictionary:
    """Latent i reads and writes coordinate i."""
    n = len(threshold)
    zeros, eye = torch.zeros(n, dtype=dtype), torch.eye(n, dtype=dtype)
    return Dictionary(eye, zeros, torch.tensor(threshold, dtype=dtype), eye, zeros)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_latent_exactly_at_its_threshold_is_off(dtype):
    dictionary = unit_dictionary([0.5, 0.5, 0.5], dtype)
    x = torch.tensor([0.5, 0.5 + 2**-8, 0.5 - 2**-9], dtype=dtype)
    acts = dictionary.encode(x)
    assert acts.tolist() == [0.0, x[1].item(), 0.0]
    assert acts.dtype == dtype


def test_a_negative_threshold_lets_no_negative_activation_through():
    acts = unit_dictionary([-1.0, -1.0]).encode(torch.tensor([-0.5, 0.5]))
    assert acts.tolist() == [0.0, 0.5]


def test_gradients_pass_through_active_latents_alone():
    dictionary = unit_dictionary([0.5, 0.5, -1.0])
    x = torch.tensor([2.0, 0.4, -0.5], requires_grad=True)
    dictionary.encode(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 0.0, 0.0]


def test_bfloat16_agrees_with_float32_up_to_rounding():
    dictionary = as_dictionary(random_arrays(d_in=64, d_sae=128, d_out=64))
    x = torch.randn(10, 64, generator=torch.Generator().manual_seed(1))
    small = dictionary.to(dtype=torch.bfloat16)
    assert small.W_enc.dtype == small.W_dec.dtype == torch.bfloat16
    assert torch.equal(small.threshold, dictionary.threshold), "rounded ones switch latents"
    full, half = dictionary.pre_acts(x), small.pre_acts(x.bfloat16()).float()
    assert (full - half).norm() / full.norm() < 0.01


def test_to_returns_a_new_dictionary():
    dictionary = as_dictionary(random_arrays(), name="a", average_l0=3.0)
    other = dictionary.to(dtype=torch.float64)
    assert dictionary.W_enc.dtype == torch.float32
    assert (other.W_enc.dtype, other.name, other.average_l0) == (torch.float64, "a", 3.0)


def test_wrong_shapes_are_named_one_by_one():
    arrays = random_arrays() | {"b_enc": np.zeros(6, np.float32)}
    with pytest.raises(UserError) as error:
        as_dictionary(arrays, name="mine")
    message = str(error.value)
    assert message.startswith("mine: shapes that do not agree")
    assert "W_enc [5, 7] (expected [5, 7])" in message
    assert "b_enc [6] (expected [7])" in message
    assert all(key in message for key in ARRAYS)


@pytest.mark.parametrize(
    ("key", "shape"),
    [("W_enc", (7,)), ("W_enc", (5, 0)), ("W_dec", (5, 7)), ("threshold", ()), ("b_dec", (5, 1))],
)
def test_every_wrong_shape_is_refused(key, shape):
    with pytest.raises(UserError, match="shapes that do not agree"):
        as_dictionary(random_arrays() | {key: np.zeros(shape, np.float32)})


@pytest.mark.parametrize("key", ARRAYS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(key, value):
    arrays = random_arrays()
    arrays[key].flat[-1] = value
    with pytest.raises(UserError, match=f"1 of the .* values of {key} are NaN or infinite"):
        DictionaryStore({Site(0, "mlp"): as_dictionary(arrays)})


def test_overflow_on_conversion_is_refused():
    arrays = random_arrays()
    arrays["W_enc"][0, 0] = 1e6
    with pytest.raises(UserError, match="W_enc are NaN or infinite"):
        as_dictionary(arrays).to(dtype=torch.float16)


def test_dtypes_must_agree_and_be_floating():
    arrays = random_arrays()
    with pytest.raises(UserError, match="float32, int64"):
        as_dictionary(arrays | {"b_dec": np.zeros(5, np.int64)})
    with pytest.raises(UserError, match="dtype int64"):
        as_dictionary({key: a.astype(np.int64) for key, a in arrays.items()})


def test_encodes_and_decodes_as_saelens_does():
    """Invariant 7; `make_saelens_fixture.py` made the numbers."""
    with np.load(FIXTURE, allow_pickle=False) as kept:
        dictionary = as_dictionary({key: kept[key] for key in ARRAYS})
        x, acts, x_hat = (torch.from_numpy(kept[key]) for key in ("x", "acts", "x_hat"))
    ours = dictionary.encode(x)
    assert torch.equal(ours != 0, acts != 0)
    assert 0.05 < (acts != 0).float().mean() < 0.95
    # at the threshold, just above, just below, and negative above a negative threshold
    assert torch.equal(acts[:, :4] != 0, torch.tensor([False, True, False, False]).expand(16, 4))
    torch.testing.assert_close(ours, acts, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dictionary.decode(ours), x_hat, rtol=1e-5, atol=1e-5)
