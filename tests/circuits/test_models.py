"""What `load` and `load_gemma` accept, and what they answer otherwise."""

import json
import shutil

import pytest
import torch

from circuits import Site, UserError, load, load_gemma
from circuits.formats.npz import save_npz


@pytest.fixture
def dictionary_folder(tmp_path, model):
    """A folder that mirrors the hub, holding the random dictionaries."""
    suffix = {"attn": "att", "mlp": "mlp", "resid": "res"}
    for site, dictionary in model.dictionaries.items():
        folder = tmp_path / f"own-{suffix[site.kind]}/layer_{site.layer}/width_96/average_l0_30"
        folder.mkdir(parents=True)
        save_npz(dictionary, folder / "params.npz")
    return tmp_path


def test_own_folders_load_in_one_call(gemma_folder, dictionary_folder, model):
    loaded = load(gemma_folder, dictionaries=dictionary_folder, device="cpu")
    assert loaded.sites == model.sites
    assert torch.equal(loaded("w1 w2 w3"), model("w1 w2 w3"))
    some = load(gemma_folder, dictionaries=dictionary_folder, sites=["resid"], device="cpu")
    assert some.sites == tuple(Site(layer, "resid") for layer in range(3))


def test_an_unknown_model_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match=r"no model 'gpt-5'; choose .*gemma-2-2b"):
        load("gpt-5")


def test_an_unknown_kind_of_site():
    with pytest.raises(UserError, match="no kind of site 'ffn'; choose from attn, mlp, resid"):
        load("tiny", sites=["ffn"])


def test_a_folder_needs_its_dictionaries(gemma_folder):
    with pytest.raises(UserError, match="say where the dictionaries of"):
        load(gemma_folder)


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_gemma(str(tmp_path))


def test_another_architecture(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(UserError, match="type 'mamba'; give one of type gemma2, llama"):
        load_gemma(str(tmp_path))


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damaged_weights(tmp_path, gemma_folder, damage):
    folder = tmp_path / "model"
    shutil.copytree(gemma_folder, folder)
    weights = folder / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot load"):
        load_gemma(str(folder), device="cpu")


def test_a_model_without_its_tokenizer(tmp_path, gemma_folder):
    folder = tmp_path / "model"
    shutil.copytree(gemma_folder, folder, ignore=shutil.ignore_patterns("token*"))
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        load_gemma(str(folder), device="cpu")


def test_a_device_or_dtype_that_cannot_be_used():
    with pytest.raises(UserError, match="device='tpu' cannot be used"):
        load("tiny", device="tpu")
    with pytest.raises(UserError, match=r"give torch\.float32"):
        load("tiny", device="cpu", dtype=torch.int8)
