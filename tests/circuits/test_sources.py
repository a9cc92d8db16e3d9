"""Files become dictionaries in memory or mapped copies; nobody can tell from the numbers."""

import pytest
import torch
from safetensors.torch import save_file

from attribution import logit_diff, total_effects
from circuits import Site, UserError, load
from circuits.formats.npz import save_npz
from circuits.loading import sources
from circuits.loading.gemma_scope import dictionaries_from_folder
from tests.random_gemma import TEXT, random_dictionaries

HOMES = {"attn": "my-att", "mlp": "my-mlp", "resid": "my-res"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A mirror of the hub, and an empty folder for copies."""
    monkeypatch.setenv("GEMMA_CIRCUITS_CACHE", str(tmp_path / "copies"))
    for site, dictionary in random_dictionaries().items():
        path = f"{HOMES[site.kind]}/layer_{site.layer}/width_96/average_l0_30/params.npz"
        save_npz(dictionary, tmp_path / "scope" / path)
    return tmp_path / "scope"


def copies(folder):
    return sorted((folder.parent / "copies").glob("*.safetensors"))


@pytest.fixture
def weights(bridge) -> int:
    """Bytes that the model's weights take, a tied one counted once."""
    return sum(weight.numel() * 4 for weight in bridge.original_model.parameters())


@pytest.fixture
def every_file_is_large(monkeypatch):
    monkeypatch.setattr(sources, "COPY_FROM", 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_gives_the_same_dictionary(folder, monkeypatch, dtype):
    direct = dictionaries_from_folder(folder, dtype=dtype)
    assert copies(folder) == []
    monkeypatch.setattr(sources, "COPY_FROM", 0)
    mapped = dictionaries_from_folder(folder, dtype=dtype)
    assert len(copies(folder)) == len(mapped) == 9
    for site, dictionary in direct.items():
        assert (mapped[site].name, mapped[site].average_l0) == (dictionary.name, 30)
        for key, array in dictionary.arrays.items():
            assert torch.equal(mapped[site].arrays[key], array), (site, key)


@pytest.mark.usefixtures("every_file_is_large")
def test_the_file_is_not_read_again(folder, monkeypatch):
    dictionaries_from_folder(folder)
    monkeypatch.setattr(sources, "load_dictionary", None)
    assert dictionaries_from_folder(folder)[Site(1, "mlp")].d_sae == 96


@pytest.mark.usefixtures("every_file_is_large")
def test_a_damaged_file_leaves_no_copy(folder):
    path = next(folder.glob("my-mlp/layer_1/*/*/params.npz"))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"params\.npz is truncated or corrupt"):
        dictionaries_from_folder(folder, sites=["mlp"], layers=[1])
    assert copies(folder) == []


@pytest.mark.usefixtures("every_file_is_large")
def test_memory_decides_what_stays_and_nothing_else(folder, gemma_folder, weights):
    metric = logit_diff("w3", "w4")
    models = [
        load(gemma_folder, dictionaries=folder, device="cpu", memory=memory)
        for memory in (None, "1GB", weights + 100_000)
    ]
    assert [len(m.dictionaries.staying) for m in models[:2]] == [9, 9]
    assert 0 < len(models[2].dictionaries.staying) < 9
    effects = [total_effects(model, TEXT, metric) for model in models]
    for site in models[0].sites:
        assert torch.equal(effects[0].sites[site].effect, effects[2].sites[site].effect)


@pytest.mark.usefixtures("every_file_is_large")
@pytest.mark.parametrize(
    ("memory", "message"),
    [
        ("much", "write for example '20GB'"),
        (0, "write for example '20GB'"),
        ("1kB", "alone takes"),
    ],
)
def test_memory_that_cannot_be_is_refused(folder, gemma_folder, memory, message):
    with pytest.raises(UserError, match=message):
        load(gemma_folder, dictionaries=folder, device="cpu", memory=memory)


@pytest.mark.usefixtures("every_file_is_large")
def test_memory_for_less_than_two_dictionaries_is_refused(folder, gemma_folder, weights):
    with pytest.raises(UserError, match=r"need at least .* three at a time"):
        load(gemma_folder, dictionaries=folder, device="cpu", memory=weights + 1000)


def test_dictionaries_of_other_libraries_load_from_a_folder_or_one_by_one(tmp_path, gemma_folder):
    """Two plain safetensors files, one of which says its site."""
    made = random_dictionaries()
    site, other = Site(1, "mlp"), Site(2, "resid")
    arrays = {key: array.contiguous() for key, array in made[site].arrays.items()}
    (tmp_path / "a").mkdir()
    metadata = {"hook_name": "blocks.1.hook_mlp_out"}
    save_file(arrays, tmp_path / "a" / "params.safetensors", metadata=metadata)
    model = load(gemma_folder, dictionaries=tmp_path, device="cpu")
    assert model.sites == (site,)
    torch.testing.assert_close(model.dictionaries[site].W_enc, made[site].W_enc)
    both = load(gemma_folder, dictionaries={site: tmp_path / "a", other: tmp_path / "a"})
    assert both.sites == (site, other)
    with pytest.raises(UserError, match=r"has dictionaries at mlp\.1, none of kind attn"):
        load(gemma_folder, dictionaries=tmp_path, sites=["attn"])


def test_dictionaries_by_site_are_checked(tmp_path, gemma_folder):
    made = random_dictionaries()[Site(1, "mlp")]
    model = load(gemma_folder, dictionaries={"mlp.1": made}, device="cpu")  # pyright: ignore
    assert model.sites == (Site(1, "mlp"),)
    for wrong, message in [
        ({"mlp": made}, "is not a site"),
        ({Site(1, "mlp"): 3}, "maps sites to paths"),
        ([tmp_path], "is a folder, a model's name or a mapping"),
        (tmp_path / "nowhere", "no folder"),
    ]:
        with pytest.raises(UserError, match=message):
            load(gemma_folder, dictionaries=wrong, device="cpu")


def test_the_scope_of_a_model_of_another_size_is_refused_before_anything_is_fetched():
    with pytest.raises(UserError, match="do not fit gemma-2-2b, a model of another size"):
        load("gemma-2-2b", dictionaries="gemma-2-9b")
    with pytest.raises(UserError, match="load those of gemma-2-2b: dictionaries='gemma-2-2b'"):
        load("gemma-2-2b-it")


def test_a_model_says_how_to_load_its_dictionaries_again(folder, gemma_folder):
    model = load(gemma_folder, dictionaries=folder, device="cpu")
    assert model.dictionaries_from == str(folder)
