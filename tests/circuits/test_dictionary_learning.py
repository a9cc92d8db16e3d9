"""What dictionary_learning saves is computed as that library does, or refused in one sentence."""

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from circuits.errors import UserError
from circuits.formats.dictionary_learning import (
    NAMES_OF,
    load_dictionary_learning,
    site_of_dictionary_learning,
)

FIXTURES = Path(__file__).parent / "fixtures" / "dictionary_learning"
SITES = {
    "auto_encoder": "resid.0",
    "auto_encoder_new": "mlp.0",
    "gated": "resid.1",
    "jumprelu": "mlp.1",
    "topk": "resid.2",
    "batch_topk": "mlp.2",
    "matryoshka": "resid.3",
}
"""Every fixture of `make_dictionary_learning_fixture.py`, and where its config says it belongs."""


@pytest.fixture
def copy(tmp_path):
    """A function that copies a fixture, with other settings and arrays, and gives its folder."""

    def copy(name: str, *, arrays=None, **settings) -> Path:
        folder = shutil.copytree(FIXTURES / name, tmp_path / "trainer_0")
        config = json.loads((folder / "config.json").read_text())
        config["trainer"] |= settings
        (folder / "config.json").write_text(json.dumps(config))
        if arrays is not None:
            state = torch.load(folder / "ae.pt", weights_only=True) | arrays
            torch.save({k: a for k, a in state.items() if a is not None}, folder / "ae.pt")
        return folder

    return copy


def refused(folder: Path, *parts: str) -> None:
    """`folder` is refused with one sentence that names it and holds `parts`."""
    with pytest.raises(UserError) as error:
        load_dictionary_learning(folder)
    message = str(error.value)
    assert str(folder) in message
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_every_fixture_is_tested():
    assert {folder.name for folder in FIXTURES.iterdir()} == set(SITES)
    configs = [json.loads((FIXTURES / name / "config.json").read_text()) for name in SITES]
    assert {config["trainer"]["dict_class"] for config in configs} == set(NAMES_OF)


@pytest.mark.parametrize("name", SITES)
def test_a_dictionary_computes_what_the_library_does(name):
    dictionary = load_dictionary_learning(FIXTURES / name)
    with np.load(FIXTURES / name / "recorded.npz", allow_pickle=False) as kept:
        x, acts, x_hat = (torch.from_numpy(kept[key]) for key in ("x", "acts", "x_hat"))
    ours = dictionary.encode(x)
    assert torch.equal(ours != 0, acts != 0)
    assert 0.1 < (acts != 0).float().mean() < 0.9
    torch.testing.assert_close(ours, acts, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dictionary.decode(ours), x_hat, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SITES)
def test_a_config_says_where_its_dictionary_belongs(name):
    assert str(site_of_dictionary_learning(FIXTURES / name)) == SITES[name]


@pytest.mark.parametrize(
    ("layer", "name", "site"),
    [
        (8, "resid_post_layer_8", "resid.8"),
        (8, "resid_post", "resid.8"),
        (12, "mlp_out_layer_12", "mlp.12"),
        (3, "attn_z_layer_3", "attn.3"),
        (3, "blocks.3.attn.hook_z", "attn.3"),
        (3, "blocks.3.hook_mlp_out", "mlp.3"),
        (3, "attn_out_layer_3", "None"),  # after W_O, and no site
        (3, "resid_pre_layer_3", "None"),
        (3, "post", "None"),
        (3, None, "None"),
        (None, "resid_post", "None"),
        (-1, "resid_post", "None"),
    ],
)
def test_a_submodule_that_is_no_site_belongs_nowhere(copy, layer, name, site):
    assert str(site_of_dictionary_learning(copy("topk", layer=layer, submodule_name=name))) == site


def test_two_layers_are_refused(copy):
    folder = copy("topk", layer=4)
    with pytest.raises(UserError, match=r"layer is 4 and submodule_name 'resid_post_layer_2'"):
        site_of_dictionary_learning(folder)


def test_a_batch_topk_dictionary_whose_threshold_was_never_learned_keeps_all(copy):
    unlearned = load_dictionary_learning(
        copy("batch_topk", arrays={"threshold": torch.tensor(-1.0)})
    )
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unlearned.encode(x), torch.relu(unlearned.pre_acts(x)))


def test_a_topk_dictionary_says_k_in_either_file(copy):
    folder = copy("topk", arrays={"k": None, "threshold": None})
    assert load_dictionary_learning(folder).k == 5
    shutil.rmtree(folder)
    folder = copy("topk")
    config = json.loads((folder / "config.json").read_text())
    del config["trainer"]["k"]
    (folder / "config.json").write_text(json.dumps(config))
    assert load_dictionary_learning(folder).k == 5


def test_another_checkpoint_beside_a_config_loads(copy):
    folder = copy("gated")
    (folder / "ae.pt").rename(folder / "ae_500.pt")
    loaded = load_dictionary_learning(folder / "ae_500.pt", dtype=torch.bfloat16)
    assert (loaded.W_enc.dtype, loaded.threshold.dtype) == (torch.bfloat16, torch.float32)
    assert loaded.name == str(folder / "ae_500.pt")
    refused(folder, "ae.pt: No such file")


@pytest.mark.parametrize(
    ("name", "settings", "parts"),
    [
        ("topk", {"dict_class": "CrossCoder"}, ("'CrossCoder'", "AutoEncoder, AutoEncoderNew")),
        ("topk", {"dict_class": "IdentityDict"}, ("'IdentityDict'",)),
        ("topk", {"dict_class": None}, ("None",)),
        ("topk", {"dict_class": ["AutoEncoder"]}, ("['AutoEncoder']",)),
        ("topk", {"k": 6}, ("6 in config.json and 5 in ae.pt",)),
        ("topk", {"k": "5"}, ("'5' in config.json",)),
        ("topk", {"k": 5.0}, ("5.0 in config.json",)),
        ("topk", {"activation_dim": 9}, ("activation_dim=9", "has 8")),
        ("topk", {"dict_size": 23}, ("dict_size=23", "has 24")),
        ("topk", {"dict_class": "JumpReluAutoEncoder"}, ("lacks W_enc", "encoder.weight")),
        ("auto_encoder", {"dict_class": "AutoEncoderNew"}, ("lacks decoder.bias", "unknown bias")),
        ("batch_topk", {"dict_class": "AutoEncoder"}, ("lacks bias", "k, threshold")),
    ],
)
def test_settings_that_contradict_or_say_too_little_are_refused(copy, name, settings, parts):
    refused(copy(name, **settings), *parts)


@pytest.mark.parametrize(
    ("name", "arrays", "parts"),
    [
        ("topk", {"encoder.bias": None}, ("lacks encoder.bias",)),
        ("topk", {"k": torch.tensor(0)}, ("5 in config.json and 0 in ae.pt",)),
        ("topk", {"extra": torch.zeros(1)}, ("an unknown extra",)),
        ("topk", {"encoder.bias": torch.zeros(23)}, ("b_enc [23] (expected [24])",)),
        ("topk", {"encoder.weight": torch.zeros(24)}, ("W_enc [24]",)),
        ("topk", {"encoder.weight": torch.zeros(24, 8).int()}, ("encoder.weight is int32",)),
        ("topk", {"encoder.weight": torch.zeros(24, 8).to_sparse()}, ("a dense float32",)),
        ("topk", {"b_dec": torch.full((8,), torch.inf)}, ("8 of the 8 values of b_dec",)),
        ("topk", {"b_dec": torch.zeros(0)}, ("no size 0",)),
        ("gated", {"r_mag": torch.zeros(1)}, ("r_mag as threshold",)),
        ("batch_topk", {"threshold": torch.zeros(3)}, ("threshold [3] (expected [24])",)),
        ("jumprelu", {"threshold": torch.tensor(0.5)}, ("threshold []",)),
    ],
)
def test_arrays_that_are_not_a_dictionarys_are_refused(copy, name, arrays, parts):
    refused(copy(name, arrays=arrays), *parts)


def test_a_file_cut_anywhere_is_refused(copy):
    folder = copy("topk")
    whole = (folder / "ae.pt").read_bytes()
    for length in (*range(0, len(whole), 41), len(whole) - 1):
        (folder / "ae.pt").write_bytes(whole[:length])
        refused(folder)
    config = (folder / "config.json").read_text()
    for length in range(0, len(config), 17):
        (folder / "config.json").write_text(config[:length])
        refused(folder, "not JSON")


def test_a_flipped_byte_is_refused_or_harmless(copy):
    """Also one that marks an array as a folder, of which torch reads nothing and says nothing."""
    folder = copy("topk")
    expected = load_dictionary_learning(folder).arrays
    whole = (folder / "ae.pt").read_bytes()
    n_refused = 0
    folders = [match.start() + 38 for match in re.finditer(rb"PK\x01\x02", whole)]
    for place in (*range(0, len(whole), 11), *folders):
        flipped = bytes([whole[place] ^ 0x15])
        (folder / "ae.pt").write_bytes(whole[:place] + flipped + whole[place + 1 :])
        try:
            loaded = load_dictionary_learning(folder).arrays
        except UserError:
            n_refused += 1
        else:  # a byte that no reader looks at, for example padding
            assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    assert n_refused > 50


class Trap:
    """Unpickling one makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_but_tensors_is_unpickled(copy, tmp_path):
    folder = copy("topk")
    torch.save({"W_enc": torch.zeros(1), "trap": Trap(tmp_path / "sprung")}, folder / "ae.pt")
    refused(folder, "more than tensors", "can run code")
    (folder / "ae.pt").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    refused(folder)
    assert not (tmp_path / "sprung").exists()
    for other in ([torch.zeros(2)], {"W_enc": 3}, torch.zeros(2)):
        torch.save(other, folder / "ae.pt")
        refused(folder, "not a state dict of tensors")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("[1, 2]", "holds a list"),
        ("{}", 'has no "trainer"'),
        ('{"trainer": "TopKTrainer"}', 'has no "trainer"'),
    ],
)
def test_a_config_of_something_else_is_refused(copy, content, part):
    folder = copy("topk")
    (folder / "config.json").write_text(content)
    refused(folder, part)


def test_what_is_no_such_file_is_said(copy):
    folder = copy("topk")
    (folder / "ae.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused(folder, "git lfs pull")
    (folder / "ae.pt").write_text("<html>Not Found</html>")
    refused(folder)
    (folder / "config.json").unlink()
    refused(folder, "config.json: No such file")
