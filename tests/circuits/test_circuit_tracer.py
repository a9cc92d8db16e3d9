"""A cross-layer transcoder is read from the files that circuit-tracer itself saved."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from circuits.errors import UserError
from circuits.formats.recognise import find_dictionaries, load_dictionary, site_of
from circuits.loading import sources
from circuits.loading.gemma_scope import dictionaries_from_folder
from circuits.sites import Site

SAVED = Path(__file__).parents[1] / "attribution" / "fixtures" / "circuit_tracer_cross_layer"
SITES = [Site(layer, "transcoder") for layer in range(3)]


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(SAVED / "jumprelu", tmp_path / "jumprelu"))


@pytest.mark.parametrize("name", ["jumprelu", "relu"])
def test_each_layer_is_a_dictionary_that_writes_to_those_above(name):
    found = find_dictionaries(SAVED / name)
    assert list(found) == SITES
    for (layer, site), path in zip(enumerate(SITES), found.values(), strict=True):
        encoder, decoder = (
            load_file(SAVED / name / f"W_{part}_{layer}.safetensors") for part in ("enc", "dec")
        )
        for file in (path, SAVED / name / f"W_enc_{layer}.safetensors"):
            assert site_of(file) == site
            d = load_dictionary(file)
            assert (d.n_later, d.reads_residual) == (2 - layer, name == "relu")
            written = torch.stack(d.decoders, 1)
            assert torch.equal(written, decoder[f"W_dec_{layer}"].float())
            assert torch.equal(d.W_enc.T, encoder[f"W_enc_{layer}"].float())
            assert torch.equal(d.b_dec, encoder[f"b_dec_{layer}"].float())
            pre = encoder[f"W_enc_{layer}"].float() @ torch.ones(d.d_in)
            pre += encoder[f"b_enc_{layer}"]
            threshold = encoder.get(f"threshold_{layer}", torch.tensor(0.0))
            expected = torch.where(pre > threshold, pre, 0).relu()
            torch.testing.assert_close(d.encode(torch.ones(d.d_in)), expected)


def test_large_ones_are_mapped_layer_by_layer(folder, tmp_path, monkeypatch):
    """Although all layers share a folder, each has a copy of its own."""
    read = dictionaries_from_folder(folder, sites=["transcoder"])
    monkeypatch.setenv("GEMMA_CIRCUITS_CACHE", str(tmp_path / "copies"))
    monkeypatch.setattr(sources, "COPY_FROM", 0)
    mapped = dictionaries_from_folder(folder, sites=["transcoder"])
    assert len(list((tmp_path / "copies").glob("*.safetensors"))) == 3
    for site in SITES:
        arrays = mapped[site].arrays
        assert all(torch.equal(arrays[key], a) for key, a in read[site].arrays.items())


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        load_dictionary(path)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_what_it_reads_must_be_known(folder):
    config, path = folder / "config.yaml", folder / "W_dec_0.safetensors"
    good = config.read_text()
    config.write_text(good.replace("ln2.hook_normalized", "mlp.hook_in"))
    refused(path, "from mlp.hook_in to hook_mlp_out", "hook_resid_mid or ln2.hook_normalized")
    config.write_text(good.replace("cross_layer_transcoder", "transcoder_set"))
    refused(path, "model_kind 'transcoder_set'")
    config.write_text("a: [")
    refused(path, str(config), "is not YAML")
    config.write_text("words")
    refused(path, "holds a str")
    config.unlink()
    refused(path, str(config), "No such file")


def test_files_that_are_missing_or_of_another_shape(folder):
    path = folder / "W_dec_1.safetensors"
    (folder / "W_enc_0.safetensors").unlink()
    refused(folder / "W_dec_0.safetensors", "W_enc_0.safetensors", "No such file")
    save_file({"W_dec_1": torch.zeros(14, 16)}, path)
    refused(path, "[14, 16]", "expected [d_sae, n_layers - 1, d_out]")
    save_file({"W_dec_1": torch.zeros(13, 2, 16)}, path)
    refused(path, "shapes that do not agree")
    save_file({"W_dec_2": torch.zeros(14, 1, 16)}, path)
    refused(path, "lacks W_dec_1")
    refused(folder, "holds more than one dictionary")
