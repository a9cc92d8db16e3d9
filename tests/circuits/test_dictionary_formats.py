"""A dictionary is read by its own library's rules, found by its site, and never guessed at."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from circuits.dictionaries import ARRAYS
from circuits.errors import UserError
from circuits.formats import dictionary_learning, npz, saelens
from circuits.formats.recognise import find_dictionaries, load_dictionary, site_of
from circuits.sites import Site
from tests.circuits.small_dictionaries import as_dictionary, random_arrays

FIXTURES = Path(__file__).parent / "fixtures"
SAELENS = FIXTURES / "saelens" / "jumprelu"
LEARNED = FIXTURES / "dictionary_learning" / "topk"
TINY = Path(__file__).parents[2] / "circuits" / "bundled" / "tiny" / "dictionaries"
NPZ = TINY / "tiny-scope-mlp" / "layer_3" / "width_1k" / "average_l0_23"


def tensors(seed=0, **shapes) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(array) for key, array in random_arrays(seed, **shapes).items()}


def refused(path: Path, *parts: str, do=load_dictionary) -> None:
    """`path` is refused with one sentence that names it and holds `parts`."""
    with pytest.raises(UserError) as error:
        do(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("path", "load", "given"),
    [
        (NPZ, npz.load_npz, NPZ / "params.npz"),
        (NPZ / "params.npz", npz.load_npz, NPZ / "params.npz"),
        (SAELENS, saelens.load_saelens, SAELENS),
        (SAELENS / "sae_weights.safetensors", saelens.load_saelens, SAELENS),
        (SAELENS / "cfg.json", saelens.load_saelens, SAELENS),
        (LEARNED, dictionary_learning.load_dictionary_learning, LEARNED),
        (LEARNED / "ae.pt", dictionary_learning.load_dictionary_learning, LEARNED),
    ],
)
def test_a_file_or_folder_is_read_in_its_own_format(path, load, given):
    ours, expected = load_dictionary(str(path)), load(given)
    assert (ours.k, ours.name, ours.average_l0) == (expected.k, expected.name, expected.average_l0)
    assert all(torch.equal(ours.arrays[key], expected.arrays[key]) for key in ARRAYS)


@pytest.mark.parametrize("path", [NPZ, SAELENS, LEARNED])
def test_dtype_is_that_of_the_matrices_in_every_format(path):
    dictionary = load_dictionary(path, device="cpu", dtype=torch.bfloat16)
    assert {dictionary.W_enc.dtype, dictionary.W_dec.dtype} == {torch.bfloat16}
    assert {dictionary.b_enc.dtype, dictionary.threshold.dtype} == {torch.float32}


@pytest.mark.parametrize("name", ["params.safetensors", "mine.safetensors"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_plain_safetensors_file_is_taken_at_its_word(tmp_path, name, stored):
    arrays = {key: array.to(stored) for key, array in tensors(d_out=4).items()}
    save_file(arrays, tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        dictionary = load_dictionary(path)
        assert dictionary.W_enc.dtype == torch.float32
        assert (dictionary.k, dictionary.W_skip) == (None, None)
        assert all(torch.equal(dictionary.arrays[key], arrays[key].float()) for key in ARRAYS)


def test_a_plain_skip_connection_is_d_in_by_d_out(tmp_path):
    arrays = tensors() | {"W_skip": torch.randn(5, 5, generator=torch.Generator().manual_seed(0))}
    save_file(arrays, tmp_path / "params.safetensors")
    dictionary = load_dictionary(tmp_path)
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    acts = dictionary.encode(x)
    expected = acts @ arrays["W_dec"] + arrays["b_dec"] + x @ arrays["W_skip"]
    torch.testing.assert_close(dictionary.decode(acts, x), expected)


def test_gemma_scope_2s_names_are_read_too(tmp_path):
    arrays = tensors(d_out=4)
    lower = {key.lower() if key.startswith("W_") else key: a for key, a in arrays.items()}
    skip = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    save_file(lower | {"affine_skip_connection": skip}, tmp_path / "params.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "jump_relu"}))
    dictionary = load_dictionary(tmp_path)
    assert all(torch.equal(dictionary.arrays[key], arrays[key]) for key in ARRAYS)
    assert dictionary.W_skip is not None
    assert torch.equal(dictionary.W_skip, skip)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "topk"}))
    refused(tmp_path, "'topk'", "read as jump_relu")


def test_what_switches_plain_latents_on_is_not_guessed(tmp_path):
    arrays = tensors()
    del arrays["threshold"]
    save_file(arrays, tmp_path / "mine.safetensors")
    refused(tmp_path, "lacks threshold", "save zeros [d_sae]")


def test_saelens_weights_without_their_config_are_not_guessed_at(tmp_path):
    shutil.copy(SAELENS / "sae_weights.safetensors", tmp_path)
    for path in (tmp_path, tmp_path / "sae_weights.safetensors"):
        refused(path, "no cfg.json beside it", "b_dec")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"b_gate": torch.zeros(7)}, ("unknown b_gate", "W_enc, b_enc, threshold, W_dec, b_dec")),
        ({"w_enc": torch.zeros(5, 7)}, ("under two names",)),
        ({"W_dec": torch.zeros(8, 5)}, ("W_dec [8, 5] (expected [7, 5])",)),
        ({"W_enc": torch.zeros(5, 7, dtype=torch.int64)}, ("W_enc is int64",)),
        ({"b_dec": torch.full((5,), torch.nan)}, ("5 of the 5 values of b_dec",)),
        ({"W_skip": torch.zeros(4, 5)}, ("W_skip [4, 5] (expected [5, 5])",)),
    ],
)
def test_plain_arrays_that_are_not_a_dictionarys_are_refused(tmp_path, changes, parts):
    save_file(tensors() | changes, tmp_path / "mine.safetensors")
    refused(tmp_path, *parts)


def test_a_missing_plain_array_is_named(tmp_path):
    arrays = tensors()
    del arrays["b_dec"]
    save_file(arrays, tmp_path / "mine.safetensors")
    refused(tmp_path, "lacks b_dec")


def test_a_cut_plain_file_is_refused(tmp_path):
    path = tmp_path / "mine.safetensors"
    save_file(tensors(), path)
    whole = path.read_bytes()
    for length in (*range(0, len(whole), 41), len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, "truncated or corrupt")
        refused(path, "truncated or corrupt", do=site_of)


def test_a_dictionary_does_not_change_with_its_file(tmp_path):
    path = tmp_path / "mine.safetensors"
    save_file(tensors(0), path)
    dictionary = load_dictionary(path)
    save_file(tensors(1), tmp_path / "other")
    with path.open("r+b") as file:  # in place
        file.write((tmp_path / "other").read_bytes())
    assert torch.equal(load_dictionary(path).W_dec, tensors(1)["W_dec"])
    assert torch.equal(dictionary.W_dec, tensors(0)["W_dec"])


def test_a_folder_of_two_dictionaries_is_refused_and_each_file_loads(tmp_path):
    shutil.copy(NPZ / "params.npz", tmp_path)
    save_file(tensors(), tmp_path / "params.safetensors")
    refused(tmp_path, "more than one", "params.npz", "params.safetensors")
    assert (
        load_dictionary(tmp_path / "params.npz").d_sae
        != load_dictionary(tmp_path / "params.safetensors").d_sae
    )
    (tmp_path / "params.npz").unlink()
    save_file(tensors(), tmp_path / "other.safetensors")
    refused(tmp_path, "more than one", "params.safetensors", "other.safetensors")


def test_another_file_beside_saelens_config_is_not_its_dictionary(tmp_path):
    folder = shutil.copytree(SAELENS, tmp_path / "sae")
    save_file({"sparsity": torch.zeros(24)}, folder / "sparsity.safetensors")
    assert load_dictionary(folder).d_sae == 24
    refused(folder / "sparsity.safetensors", "beside SAELens' cfg.json")


def test_where_there_is_no_dictionary_the_formats_are_named(tmp_path):
    for do in (load_dictionary, site_of, find_dictionaries):
        refused(tmp_path, "no dictionary in", "params.npz", "SAELens", "dictionary_learning", do=do)
    (tmp_path / "notes.txt").write_text("")
    refused(tmp_path / "notes.txt", "no file of a dictionary", "params.npz")
    refused(tmp_path / "gone", "there is no")
    refused(tmp_path / "notes.txt", "is not a folder", do=find_dictionaries)


def test_every_format_says_its_site(tmp_path):
    assert site_of(NPZ) == site_of(NPZ / "params.npz") == Site(3, "mlp")
    assert site_of(SAELENS) == Site(2, "resid")
    assert site_of(LEARNED) == site_of(LEARNED / "ae.pt") == Site(2, "resid")
    save_file(tensors(), tmp_path / "a.safetensors")
    assert site_of(tmp_path) is None
    header = {"hook_name": "blocks.3.attn.hook_z"}
    save_file(tensors(), tmp_path / "a.safetensors", metadata=header)
    assert site_of(tmp_path) == Site(3, "attn")
    npz.save_npz(as_dictionary(random_arrays()), tmp_path / "b.npz")
    assert site_of(tmp_path / "b.npz") is None


def test_all_dictionaries_of_a_folder_are_found_in_the_order_of_the_sites():
    found = find_dictionaries(TINY)
    kinds = ("attn", "transcoder", "mlp", "resid")
    assert list(found) == [Site(layer, kind) for layer in range(4) for kind in kinds]
    assert found[Site(3, "mlp")] == NPZ


def test_formats_may_be_mixed(tmp_path):
    shutil.copytree(SAELENS, tmp_path / "a")
    shutil.copytree(FIXTURES / "dictionary_learning" / "gated", tmp_path / "b" / "trainer_0")
    shutil.copytree(TINY / "tiny-scope-mlp", tmp_path / "tiny-scope-mlp")
    found = find_dictionaries(tmp_path)
    assert [str(site) for site in found] == [
        "mlp.0",
        "mlp.1",
        "resid.1",
        "mlp.2",
        "resid.2",
        "mlp.3",
    ]
    noise = torch.Generator().manual_seed(0)
    for path in found.values():
        dictionary = load_dictionary(path)
        x = torch.randn(20, dictionary.d_in, generator=noise)
        assert 0 < (dictionary.encode(x) > 0).float().mean() < 1


def test_two_dictionaries_for_one_site_are_named(tmp_path):
    shutil.copytree(SAELENS, tmp_path / "a")
    shutil.copytree(LEARNED, tmp_path / "b")
    with pytest.raises(UserError) as error:
        find_dictionaries(tmp_path)
    for part in ("resid.2", str(tmp_path / "a"), str(tmp_path / "b")):
        assert part in str(error.value)


def test_a_dictionary_that_says_no_site_is_named(tmp_path):
    shutil.copytree(SAELENS, tmp_path / "a")
    (tmp_path / "b").mkdir()
    np.savez(tmp_path / "b" / "params.npz", **random_arrays())  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError) as error:
        find_dictionaries(tmp_path)
    assert f"{tmp_path / 'b'} does not say to which site" in str(error.value)
