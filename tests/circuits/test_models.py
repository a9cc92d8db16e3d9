"""What `load` and `load_gemma` accept, and what they answer otherwise."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from circuits import Site, UserError, load, load_gemma
from circuits.formats.npz import save_npz
from tests.random_llama import save_random_llama


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


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[]", "holds a list"),
        ("{", "truncated or is not JSON"),
        ('{"model_type": "gemma2", "dtype": "foo"}', "dtype 'foo'; write float32"),
        ('{"model_type": "gemma2", "torch_dtype": "int8"}', "dtype 'int8'; write float32"),
        ('{"model_type": "gemma2", "dtype": ["float32"]}', "; write float32"),
        (None, "cannot read"),
    ],
)
def test_a_damaged_configuration(tmp_path, config, message):
    (tmp_path / "tokenizer.json").touch()
    path = tmp_path / "config.json"
    if config is None:
        path.mkdir()  # as good as a file that may not be read
    else:
        path.write_text(config)
    with pytest.raises(UserError, match=message):
        load_gemma(str(tmp_path), device="cpu")


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


WITHOUT = "model.layers.1.mlp.up_proj.weight"
"""A weight that some folders lack."""


def lose_one(weights: dict) -> None:
    del weights[WITHOUT]


def rename(weights: dict) -> None:
    for name in [name for name in weights if "norm" in name]:
        weights[f"old.{name}"] = weights.pop(name)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(
    ("change", "config", "lacks", "holds"),
    [
        (lose_one, {}, f"lacks weights: {WITHOUT};", None),
        (
            rename,
            {},
            r"model\.layers\.0\.input_layernorm\.weight, .* and 10 more;",
            r"holds others that the model has not: old\.model\.layers\.0\.input_layernorm.weight, "
            ".* and 10 more;",
        ),
        (dict.clear, {}, r"weights: model\.embed_tokens\.weight, .* and 32 more;", None),
        (None, {"num_hidden_layers": 4}, r"weights: model\.layers\.3\..* and 8 more;", None),
    ],
)
def test_weights_that_are_missing_are_not_made_up(
    tmp_path, gemma_folder, change, config, lacks, holds, sharded
):
    folder = tmp_path / "model"
    shutil.copytree(gemma_folder, folder)
    weights = load_file(folder / "model.safetensors")
    if change is not None:
        change(weights)
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    if "num_hidden_layers" in config:
        settings["layer_types"] += settings["layer_types"][:1]
    path.write_text(json.dumps(settings | config))
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = [names[::2], names[1::2]] if sharded else [names]
    for number, part in enumerate(parts):
        file = f"model-{number}.safetensors" if sharded else "model.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, {"format": "pt"})
    if sharded:
        places = {name: f"model-{i}.safetensors" for i, part in enumerate(parts) for name in part}
        if WITHOUT not in places:
            places[WITHOUT] = "model-0.safetensors"  # an index may promise what no file holds
        index = {"metadata": {}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=lacks) as error:
        load_gemma(str(folder), device="cpu")
    if holds is None:
        assert "holds others" not in str(error.value)
    else:
        assert re.search(holds, str(error.value))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["tied", "head alone", "inner", "extra", "shards"])
def test_weights_that_transformers_finds_need_no_more(tmp_path, gemma_folder, form, dtype):
    """A tied head, a folder of the model below the head, buffers of older versions, shards."""
    folder = tmp_path / "model"
    shutil.copytree(gemma_folder, folder)
    path = folder / "model.safetensors"
    weights = load_file(path)
    assert "lm_head.weight" not in weights
    if form == "head alone":
        weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    elif form == "inner":
        weights = {name.removeprefix("model."): weight for name, weight in weights.items()}
    elif form == "extra":
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    if form == "shards":
        path.unlink()
        plain = AutoModelForCausalLM.from_pretrained(gemma_folder)
        plain.save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("*.safetensors"))) > 2
    else:
        save_file(weights, path, {"format": "pt"})
    loaded, whole = (load_gemma(str(f), device="cpu", dtype=dtype) for f in (folder, gemma_folder))
    ids = torch.tensor([[2, 5, 9]])
    assert torch.equal(loaded(ids), whole(ids))


def test_a_head_of_its_own_is_missed(tmp_path):
    folder = save_random_llama(tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights: lm_head\.weight;"):
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


@pytest.mark.parametrize(
    ("name", "dictionaries", "repository"),
    [
        ("gemma-2-2b", "folder", "google/gemma-2-2B"),
        ("gemma-2-2b", "folder", "google/gemma-scope-2b-pt-res"),
        ("gemma-2-2b", None, "google/gemma-scope-9b-pt-res"),
        ("gemma-2-2b-it", "gemma-2-2b", "google/gemma-2-2b"),
        ("tiny", None, "google/gemma-2-2b"),
        ("folder", "folder", "folder"),
    ],
)
def test_a_pin_of_what_is_not_loaded_is_refused(tmp_path, name, dictionaries, repository):
    def given(name: str) -> str:
        return str(tmp_path) if name == "folder" else name

    with pytest.raises(UserError, match=f"revision pins .*{given(repository)}; the repositories"):
        load(
            given(name),
            dictionaries=dictionaries and given(dictionaries),
            revision={given(repository): "0" * 40},
        )


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"width": "65k"}, r"no dictionary 65k wide at attn\.0-3 of .*: there are 1k$"),
        (
            {"l0": 7},
            r"no dictionary with average L0 7 at attn\.0 \(and at \d+ other sites\), 1k wide",
        ),
    ],
)
def test_what_the_bundled_model_lacks_is_refused(choice, message):
    with pytest.raises(UserError, match=message):
        load("tiny", **choice, device="cpu")
    assert load("tiny", width="1k", l0="nearest:7", device="cpu").sites


def test_one_file_is_given_by_its_site(tmp_path):
    path = tmp_path / "params.npz"
    path.touch()
    with pytest.raises(UserError, match=r"one file; say its site.*\{Site\(layer, kind\): '.*npz'"):
        load("tiny", dictionaries=path, device="cpu")


def test_dictionaries_by_site_are_checked_before_the_model_is_fetched(tmp_path, model):
    made = model.dictionaries[Site(1, "mlp")]
    for wrong, message in [
        ({"mlp": made}, "is not a site"),
        ({Site(1, "mlp"): 3}, "maps sites to paths"),
        ({Site(1, "mlp"): tmp_path / "nowhere"}, r"there is no .*nowhere for mlp\.1; give"),
    ]:
        with pytest.raises(UserError, match=message):
            load("gemma-2-2b", dictionaries=wrong)


def test_a_model_may_be_named_with_its_owner(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no dictionaries for 'gemma-2-2b-it'"):
        load("google/gemma-2-2b-it")
    with pytest.raises(UserError, match="of gemma-2-9b do not fit gemma-2-2b, a model of another"):
        load("google/gemma-2-2b", dictionaries="google/gemma-2-9b")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "google" / "gemma-2-2b").mkdir(parents=True)
    with pytest.raises(UserError, match=r"google/gemma-2-2b has no config\.json"):
        load_gemma("google/gemma-2-2b", device="cpu")  # a folder here is meant
