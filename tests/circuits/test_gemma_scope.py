"""A folder that mirrors the hub gives the dictionaries asked for, or says which are missing."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from circuits.catalogue import DEFAULT_WIDTH
from circuits.errors import UserError
from circuits.formats.npz import save_npz
from circuits.loading.gemma_scope import dictionaries_from_folder
from circuits.sites import Site
from tests.circuits.small_dictionaries import D_IN, dictionary, put


@pytest.fixture
def mirror(tmp_path) -> Path:
    """Two layers of each kind, and several files at mlp.1."""
    one = "layer_{}/width_1k/average_l0_{}"
    put(tmp_path / "my-att", one.format(0, 5), one.format(1, 6))
    put(tmp_path / "my-res", one.format(0, 7), one.format(1, 8))
    put(
        tmp_path / "my-mlp",
        one.format(0, 9),
        "layer_1/width_1k/average_l0_40",
        "layer_1/width_1k/average_l0_140",
        "layer_1/width_1k/average_l0_62.5",
        "layer_1/width_2k/average_l0_100",
    )
    (tmp_path / "README.md").write_text("not a folder")
    (tmp_path / "notes").mkdir()
    return tmp_path


def test_a_folder_gives_its_dictionaries_in_the_order_of_the_sites(mirror):
    found = dictionaries_from_folder(mirror, width="1k")
    assert [str(site) for site in found] == [
        "attn.0", "mlp.0", "resid.0", "attn.1", "mlp.1", "resid.1",
    ]  # fmt: skip
    assert [d.average_l0 for d in found.values()] == [5, 9, 7, 6, 62.5, 8]
    assert [d.b_dec[0].item() for d in found.values()] == [5, 9, 7, 6, 62.5, 8]
    assert found[Site(1, "mlp")].name == "layer_1/width_1k/average_l0_62.5"


def test_kinds_layers_device_and_dtype_are_chosen(mirror):
    found = dictionaries_from_folder(
        mirror, sites="resid", layers=iter([1]), dtype=torch.bfloat16, device="cpu"
    )
    assert list(found) == [Site(1, "resid")]
    assert found[Site(1, "resid")].W_enc.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("width", "l0", "expected"),
    [("1k", "canonical", 62.5), ("1k", 140, 140), ("1k", "nearest:1", 40), ("2k", 7, None),
     ("2k", "nearest:7", 100), ("1k", "nearest:101.25", 62.5)],
)  # fmt: skip
def test_width_and_l0_choose_where_a_layer_has_several(mirror, width, l0, expected):
    def choose():
        return dictionaries_from_folder(mirror, sites="mlp", layers=[1], width=width, l0=l0)

    if expected is None:
        with pytest.raises(UserError, match=r"no dictionary with average L0 7 at mlp\.1"):
            choose()
        return
    assert choose()[Site(1, "mlp")].average_l0 == expected  # of two as near, the sparser


@pytest.mark.parametrize("width", [DEFAULT_WIDTH, "1k"])
@pytest.mark.parametrize("l0", ["canonical", 9, "nearest:50"])
def test_the_only_file_of_a_layer_is_taken_unless_another_was_asked_for(mirror, width, l0):
    shutil.rmtree(mirror / "my-mlp" / "layer_1")
    (found,) = dictionaries_from_folder(mirror, sites="mlp", width=width, l0=l0).values()
    assert found.average_l0 == 9
    with pytest.raises(UserError, match=r"no dictionary 65k wide at mlp\.0 of .*: there are 1k$"):
        dictionaries_from_folder(mirror, sites="mlp", width="65k", l0=l0)
    with pytest.raises(UserError, match=r"average L0 7 at mlp\.0, 1k wide, in .*: there are 9; or"):
        dictionaries_from_folder(mirror, sites="mlp", width=width, l0=7)


@pytest.mark.parametrize("choice", [{"width": "1k"}, {"l0": 7}, {"l0": "nearest:7"}])
def test_dictionaries_of_other_libraries_are_not_chosen_by_width_or_l0(tmp_path, choice):
    metadata = {"hook_name": "blocks.3.hook_mlp_out"}
    save_file(dictionary(3).arrays, tmp_path / "params.safetensors", metadata=metadata)
    with pytest.raises(UserError, match="are chosen by their sites alone; leave out width and l0"):
        dictionaries_from_folder(tmp_path, **choice)


def test_a_width_that_several_files_lack_is_answered_with_theirs(mirror):
    with pytest.raises(
        UserError, match=r"no dictionary 16k wide at mlp\.1 of .*: there are 1k, 2k$"
    ):
        dictionaries_from_folder(mirror)


def test_a_mirror_of_the_hub_answers_as_the_hub_does(tmp_path):
    ties = [f"layer_27/width_16k/average_l0_{n}" for n in (64, 136)]
    put(tmp_path / "gemma-scope-9b-pt-att", *ties)
    (found,) = dictionaries_from_folder(tmp_path, sites="attn").values()
    assert found.average_l0 == 136


def folder_error(folder: Path, **choice) -> str:
    with pytest.raises(UserError) as error:
        dictionaries_from_folder(folder, width="1k", **choice)
    return str(error.value)


def test_sites_that_are_not_there_are_named(mirror):
    assert "no dictionary at attn.2, mlp.2, attn.3, mlp.3;" in folder_error(
        mirror, sites=["mlp", "attn"], layers=[1, 2, 3]
    )
    assert "no dictionary at resid.5; " in (
        message := folder_error(mirror, sites="resid", layers=[5])
    )
    assert "has resid at layers 0-1" in message
    shutil.rmtree(mirror / "my-att")
    assert "has no dictionaries of kind attn, only mlp at layers 0-1; resid at layers 0-1" in (
        folder_error(mirror)
    )
    assert len(dictionaries_from_folder(mirror, sites=["mlp", "resid"], width="1k")) == 4


def test_a_missing_or_empty_folder_is_refused(tmp_path):
    assert "no folder" in folder_error(tmp_path / "nowhere")
    assert "holds no folder whose name ends in -res, -att or -mlp" in folder_error(tmp_path)
    (tmp_path / "x-res").mkdir()
    assert "-res, -att or -mlp with layers in it; and no dictionary in" in folder_error(tmp_path)


def test_two_folders_of_one_kind_are_both_named(mirror):
    (mirror / "other-mlp" / "layer_0").mkdir(parents=True)
    assert "my-mlp and " in (message := folder_error(mirror))
    assert "other-mlp are both for mlp" in message
    assert len(dictionaries_from_folder(mirror, sites=["attn", "resid"])) == 4


def test_folders_of_other_libraries_may_end_as_those_of_a_mirror_do(tmp_path):
    for layer in (3, 4):
        (tmp_path / f"l{layer}-mlp").mkdir()
        metadata = {"hook_name": f"blocks.{layer}.hook_mlp_out"}
        path = tmp_path / f"l{layer}-mlp" / "params.safetensors"
        save_file(dictionary(layer).arrays, path, metadata=metadata)
    assert list(dictionaries_from_folder(tmp_path)) == [Site(3, "mlp"), Site(4, "mlp")]


def test_transcoders_of_a_folder_are_taken_when_asked_for(mirror):
    path = "layer_1/width_1k/average_l0_11"
    save_npz(dictionary(0, d_out=D_IN + 1), mirror / "my-transcoders" / path / "params.npz")
    assert len(dictionaries_from_folder(mirror, width="1k")) == 6
    found = dictionaries_from_folder(mirror, sites=("mlp", "transcoder"), layers=[1], width="1k")
    assert [str(site) for site in found] == ["transcoder.1", "mlp.1"]
    assert (found[Site(1, "transcoder")].name, found[Site(1, "transcoder")].d_out) == (path, 7)
    shutil.rmtree(mirror / "my-mlp")
    assert "my-transcoders holds transcoders; ask for them with sites=('transcoder',)" in (
        folder_error(mirror)
    )
    assert len(dictionaries_from_folder(mirror, sites=["attn", "resid"])) == 4


def test_the_embedding_lies_in_the_folder_of_the_residual(mirror):
    assert "has no dictionaries of kind embed" in folder_error(mirror, sites="embed")
    put(mirror / "my-res", "embedding/width_4k/average_l0_44", "embedding/width_4k/average_l0_111")
    assert len(dictionaries_from_folder(mirror, width="1k")) == 6
    found = dictionaries_from_folder(mirror, sites=("resid", "embed"), layers=[1], width="1k")
    assert [str(site) for site in found] == ["embed.0", "resid.1"]
    embed = found[Site(0, "embed")]
    assert (embed.name, embed.average_l0) == ("embedding/width_4k/average_l0_111", 111)
    (embed,) = dictionaries_from_folder(mirror, sites="embed", l0=44).values()
    assert embed.b_dec[0] == 44
    (mirror / "other-res" / "embedding").mkdir(parents=True)
    assert "are both for resid" in folder_error(mirror, sites="embed")


def test_files_lost_on_the_way_are_named(mirror):
    (mirror / "my-res" / "layer_0" / "width_1k" / "average_l0_7" / "params.npz").unlink()
    assert "there is no" in folder_error(mirror)
    assert "average_l0_7/params.npz" in folder_error(mirror)
    shutil.rmtree(mirror / "my-res" / "layer_0" / "width_1k")
    assert "layer_0 holds no width_W/average_l0_X" in folder_error(mirror)
    assert len(dictionaries_from_folder(mirror, layers=[1], width="1k")) == 3


def test_a_dictionary_that_writes_another_size_than_it_reads_is_refused(mirror):
    path = mirror / "my-res" / "layer_0" / "width_1k" / "average_l0_7" / "params.npz"
    save_npz(dictionary(0, d_out=D_IN + 1), path, overwrite=True)
    assert "reads 6 numbers and writes 7" in folder_error(mirror)
