"""Other libraries' conventions, folded, compute what they said."""

import numpy as np
import pytest
import torch

from circuits.dictionaries import Dictionary
from circuits.errors import UserError
from circuits.formats.folding import (
    b_dec_subtracted,
    gate_as_threshold,
    input_scaled,
    to_dictionary,
    unit_decoder,
)
from tests.circuits.small_dictionaries import random_arrays

SEEDS = range(5)


def draw(seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The five arrays of a dictionary and inputs `[40, 5]`, in float64."""
    arrays = {key: torch.from_numpy(a).double() for key, a in random_arrays(seed).items()}
    return arrays, torch.randn(40, 5, generator=torch.Generator().manual_seed(seed)).double()


def run(arrays, x) -> tuple[torch.Tensor, torch.Tensor]:
    dictionary = Dictionary(**arrays)
    acts = dictionary.encode(x)
    assert 0 < (acts > 0).double().mean() < 1
    return acts, dictionary.decode(acts)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_gated_autoencoder_is_a_jumprelu_one(seed):
    arrays, x = draw(seed)
    noise = torch.Generator().manual_seed(seed + 100)
    names = ("b_mag", "b_gate", "r_mag")
    gate = {name: torch.randn(7, generator=noise).double() for name in names}
    z = x @ arrays["W_enc"]
    expected = torch.relu(gate["r_mag"].exp() * z + gate["b_mag"]) * (z + gate["b_gate"] > 0)
    kept = {key: arrays[key] for key in ("W_enc", "W_dec", "b_dec")}
    acts, _ = run(gate_as_threshold({**kept, **gate}), x)
    assert torch.equal(acts > 0, expected > 0)
    torch.testing.assert_close(acts, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_unit_decoder_measures_latents_by_what_they_write(seed):
    arrays, x = draw(seed)
    acts, x_hat = run(arrays, x)
    unit = unit_decoder(arrays)
    scaled_acts, same_x_hat = run(unit, x)
    norms = arrays["W_dec"].norm(dim=-1)
    torch.testing.assert_close(unit["W_dec"].norm(dim=-1), torch.ones(7).double())
    torch.testing.assert_close(scaled_acts, acts * norms)
    torch.testing.assert_close(same_x_hat, x_hat)


def test_a_latent_that_writes_nothing_stays_as_it_is():
    arrays, x = draw(0)
    arrays["W_dec"][2] = 0
    acts, _ = run(unit_decoder(arrays), x)
    torch.testing.assert_close(acts[:, 2], run(arrays, x)[0][:, 2])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_scale_of_the_input_is_folded(seed):
    arrays, x = draw(seed)
    acts, x_hat = run(arrays, 0.3 * x)
    same_acts, same_x_hat = run(input_scaled(arrays, 0.3), x)
    torch.testing.assert_close(same_acts, acts)
    torch.testing.assert_close(same_x_hat, x_hat / 0.3)


@pytest.mark.parametrize("seed", SEEDS)
def test_b_dec_subtracted_from_the_input_is_folded(seed):
    arrays, x = draw(seed)
    acts, x_hat = run(arrays, x - arrays["b_dec"])
    same_acts, same_x_hat = run(b_dec_subtracted(arrays), x)
    torch.testing.assert_close(same_acts, acts)
    torch.testing.assert_close(same_x_hat, x_hat)


def test_folding_leaves_its_argument_alone():
    arrays, _ = draw(0)
    before = {key: array.clone() for key, array in arrays.items()}
    for fold in (unit_decoder, b_dec_subtracted, lambda arrays: input_scaled(arrays, 2.0)):
        fold(arrays)
        assert all(torch.equal(arrays[key], before[key]) for key in before)


def test_an_overflow_while_folding_is_refused(tmp_path):
    arrays = {key: torch.from_numpy(a) for key, a in random_arrays().items()}
    names = ("b_mag", "b_gate", "r_mag")
    kept = {key: arrays[key] for key in ("W_enc", "W_dec", "b_dec")}
    gated = {**kept, **{name: torch.full((7,), 100.0) for name in names}}
    with pytest.raises(UserError, match="NaN or infinite"):
        to_dictionary(gate_as_threshold(gated), tmp_path)


def test_the_encoder_has_each_latent_in_one_piece(tmp_path):
    arrays = {key: torch.from_numpy(a) for key, a in random_arrays().items()}
    dictionary = to_dictionary(arrays, tmp_path, dtype=torch.bfloat16)
    assert dictionary.W_enc.T.is_contiguous()
    assert (dictionary.W_enc.dtype, dictionary.b_enc.dtype) == (torch.bfloat16, torch.float32)
    np.testing.assert_array_equal(dictionary.b_dec, arrays["b_dec"])
