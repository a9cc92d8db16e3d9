"""What SAELens saves is computed as SAELens computes it, or refused in one sentence."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from circuits.errors import UserError
from circuits.formats.saelens import ARRAYS_OF, load_saelens, site_of_hook, site_of_saelens

FIXTURES = Path(__file__).parent / "fixtures" / "saelens"
SITES = {
    "standard": "resid.0",
    "standard_raw_input": "mlp.0",
    "gated": "resid.1",
    "gated_raw_input": "mlp.1",
    "jumprelu": "resid.2",
    "jumprelu_bfloat16": "mlp.2",
    "topk": "resid.2",  # hook_resid_pre of layer 3
    "topk_rescaled": "mlp.3",
    "hook_z": "attn.3",
    "batchtopk": "attn.0",
    "scaled_checkpoint": "attn.1",
    "transcoder": "transcoder.1",
    "skip_transcoder": "transcoder.1",
    "skip_transcoder_square": "transcoder.1",
    "jumprelu_transcoder": "transcoder.1",
    "jumprelu_skip_transcoder": "transcoder.1",
    "old_standard": "attn.2",
    "old_no_architecture": "attn.2",
    "old_gated": "attn.2",
    "old_jumprelu": "attn.2",
    "old_topk": "attn.2",
}
"""Every fixture of `make_saelens_formats_fixture.py`, and where its config says it belongs."""


@pytest.fixture
def copy(tmp_path):
    """A function that copies a fixture, with other settings and arrays, and gives its folder."""

    def copy(name: str, *, arrays=None, **settings) -> Path:
        folder = shutil.copytree(FIXTURES / name, tmp_path / "sae")
        config = json.loads((folder / "cfg.json").read_text()) | settings
        (folder / "cfg.json").write_text(json.dumps(config))
        if arrays is not None:
            stored = load_file(folder / "sae_weights.safetensors") | arrays
            kept = {key: array for key, array in stored.items() if array is not None}
            save_file(kept, folder / "sae_weights.safetensors")
        return folder

    return copy


def refused(folder: Path, *parts: str) -> None:
    """`folder` is refused with one sentence that names it and holds `parts`."""
    with pytest.raises(UserError) as error:
        load_saelens(folder)
    message = str(error.value)
    assert str(folder) in message
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_every_fixture_is_tested():
    assert {folder.name for folder in FIXTURES.iterdir()} == set(SITES)
    config = "cfg.json"
    written = {json.loads((FIXTURES / n / config).read_text()).get("architecture") for n in SITES}
    assert set(ARRAYS_OF) <= written


@pytest.mark.parametrize("name", SITES)
def test_a_dictionary_computes_what_saelens_does(name):
    dictionary = load_saelens(FIXTURES / name)
    with np.load(FIXTURES / name / "recorded.npz", allow_pickle=False) as kept:
        x, acts, x_hat = (torch.from_numpy(kept[key]) for key in ("x", "acts", "x_hat"))
    ours = dictionary.encode(x)
    assert torch.equal(ours != 0, acts != 0)
    assert 0.1 < (acts != 0).float().mean() < 0.9
    torch.testing.assert_close(ours, acts, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dictionary.decode(ours, x), x_hat, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SITES)
def test_a_config_says_where_its_dictionary_belongs(name):
    assert str(site_of_saelens(FIXTURES / name)) == SITES[name]


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.3.hook_resid_post", "resid.3"),
        ("blocks.3.hook_resid_pre", "resid.2"),
        ("blocks.0.hook_resid_pre", "embed.0"),
        ("hook_embed", "embed.0"),
        ("blocks.3.hook_attn_out", "None"),
        ("blocks.3.hook_resid_mid", "None"),
        ("blocks.3.mlp.hook_post", "None"),
        ("blocks.3.hook_mlp_outer", "None"),
        ("model.layers.3", "None"),
        (None, "None"),
    ],
)
def test_a_hook_that_is_no_site_belongs_nowhere(hook, site):
    assert str(site_of_hook(hook)) == site


def test_a_transcoder_belongs_where_it_reads_and_writes(copy):
    folder = copy("transcoder", metadata={"hook_name": "blocks.1.ln2.hook_normalized"})
    assert site_of_saelens(folder) is None
    for reads, writes, site in [
        ("blocks.2.ln2.hook_normalized", "blocks.2.hook_mlp_out", "transcoder.2"),
        ("blocks.2.ln2.hook_normalized", "blocks.3.hook_mlp_out", "None"),
        ("blocks.2.mlp.hook_in", "blocks.2.hook_mlp_out", "None"),  # after the norm's gain
        ("blocks.2.hook_resid_mid", "blocks.2.hook_mlp_out", "None"),
        ("blocks.2.hook_resid_pre", "blocks.2.hook_resid_post", "None"),
    ]:
        config = json.loads((folder / "cfg.json").read_text())
        config["metadata"] = {"hook_name": reads, "hook_name_out": writes}
        (folder / "cfg.json").write_text(json.dumps(config))
        assert str(site_of_saelens(folder)) == site


def test_matrices_take_the_dtype_asked_for_and_vectors_stay_float32():
    dictionary = load_saelens(FIXTURES / "gated", dtype=torch.bfloat16)
    assert {dictionary.W_enc.dtype, dictionary.W_dec.dtype} == {torch.bfloat16}
    assert {dictionary.b_enc.dtype, dictionary.threshold.dtype} == {torch.float32}
    assert load_saelens(FIXTURES / "jumprelu_bfloat16").W_enc.dtype == torch.float32
    assert load_saelens(FIXTURES / "gated", dtype=torch.float64).b_enc.dtype == torch.float64


def test_a_scaling_factor_of_one_is_nothing(copy):
    folder = copy("old_standard", arrays={"scaling_factor": torch.ones(24)})
    assert torch.equal(load_saelens(folder).W_dec, load_saelens(FIXTURES / "old_standard").W_dec)
    shutil.rmtree(folder)
    refused(copy("old_standard", arrays={"scaling_factor": torch.full((24,), 2.0)}), "not 1")


@pytest.mark.parametrize(
    "architecture",
    ["matching_pursuit", "temporal", "abstopk", "batchtopk", "clt", ["jumprelu"], 3],
)
def test_other_architectures_are_refused(copy, architecture):
    refused(
        copy("standard", architecture=architecture),
        f"architecture {str(architecture)!r}",
        "standard, topk, jumprelu, gated, transcoder",
    )


@pytest.mark.parametrize("kind", ["constant_norm_rescale", "layer_norm", "covariance_whitening", 7])
def test_normalisations_that_are_no_fixed_scale_are_refused(copy, kind):
    refused(copy("standard", normalize_activations=kind), repr(kind), "trained with 'none'")


@pytest.mark.parametrize("kind", [True, "expected_average_only_in"])
def test_a_scale_of_the_input_must_be_known(copy, kind):
    folder = copy("standard", normalize_activations=kind)
    refused(folder, "no activation_scaler.json")
    for factor in (None, 0, -1, "2", float("nan"), float("inf")):
        (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": factor}))
        refused(folder, "scaling_factor is", "a positive number")
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 1}))
    assert torch.equal(load_saelens(folder).W_enc, load_saelens(FIXTURES / "standard").W_enc)


def test_a_transcoder_is_neither_scaled_nor_centred(copy):
    refused(
        copy("transcoder", normalize_activations="expected_average_only_in"),
        "a transcoder with normalize_activations",
    )


@pytest.mark.parametrize(
    ("name", "settings", "parts"),
    [
        ("transcoder", {"apply_b_dec_to_input": True}, ("set it to false",)),
        ("standard", {"apply_b_dec_to_input": "yes"}, ("'yes'", "true or false")),
        ("topk", {"rescale_acts_by_decoder_norm": 1}, ("is 1", "true or false")),
        ("topk", {"k": None}, ("k is None", "how many latents")),
        ("topk", {"k": 2.5}, ("k is 2.5",)),
        ("topk", {"k": True}, ("k is True",)),
        ("topk", {"k": 0}, ("k=0", "1 to 24")),
        ("topk", {"k": 25}, ("k=25", "1 to 24")),
        ("old_topk", {"activation_fn_kwargs": {}}, ("k is None",)),
        ("old_topk", {"activation_fn_kwargs": None}, ("k is None",)),
        ("old_standard", {"activation_fn_str": "tanh-relu"}, ("'tanh-relu'", "relu and topk")),
        ("transcoder", {"activation_fn": "topk", "k": 3}, ("'topk'", "'transcoder'")),
        ("old_gated", {"activation_fn_str": "topk"}, ("'topk'", "'gated'")),
        ("old_standard", {"hook_head_index": 2}, ("attention head 2",)),
        ("hook_z", {"reshape_activations": "flatten"}, ("reshaped by 'flatten'",)),
        ("standard", {"d_sae": 23}, ("d_sae=23", "has 24")),
        ("gated", {"d_sae": 23}, ("d_sae=23", "has 24")),
        ("standard", {"d_in": "8"}, ("d_in=8", "has 8")),
        ("transcoder", {"d_out": 8}, ("d_out=8", "has 6")),
        ("standard", {"architecture": "jumprelu"}, ("lacks threshold", "W_enc")),
        ("jumprelu", {"architecture": "standard"}, ("unknown threshold", "architecture standard")),
    ],
)
def test_settings_that_contradict_or_say_too_little_are_refused(copy, name, settings, parts):
    refused(copy(name, **settings), *parts)


@pytest.mark.parametrize(
    ("name", "arrays", "parts"),
    [
        ("standard", {"W_dec": None}, ("lacks W_dec",)),
        ("standard", {"extra": torch.zeros(1)}, ("an unknown extra",)),
        ("standard", {"b_enc": torch.zeros(23)}, ("b_enc [23] (expected [24])",)),
        ("standard", {"W_enc": torch.zeros(0, 24)}, ("no size 0",)),
        ("standard", {"W_enc": torch.zeros(24, dtype=torch.int32)}, ("W_enc is int32",)),
        (
            "standard",
            {"W_dec": torch.full((24, 8), torch.nan)},
            ("192 of the 192 values of W_dec",),
        ),
        ("gated", {"r_mag": torch.zeros(1)}, ("r_mag as threshold", "threshold [1]")),
        ("gated", {"b_gate": torch.zeros(24, 1)}, ("b_gate as threshold",)),
        ("gated", {"b_mag": torch.zeros(1)}, ("b_mag as b_enc",)),
        ("gated", {"r_mag": torch.full((24,), 1e4)}, ("NaN or infinite",)),
        ("skip_transcoder", {"W_skip": torch.zeros(8, 6)}, ("W_skip [6, 8] (expected [8, 6])",)),
        ("skip_transcoder", {"W_skip": torch.zeros(6)}, ("W_skip [6]",)),
    ],
)
def test_arrays_that_are_not_a_dictionarys_are_refused(copy, name, arrays, parts):
    refused(copy(name, arrays=arrays), *parts)


def test_a_file_cut_anywhere_is_refused(copy):
    folder = copy("standard")
    path = folder / "sae_weights.safetensors"
    whole = path.read_bytes()
    for length in (*range(0, len(whole), 41), len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(folder, "truncated or corrupt", "fetch it again")
    config = (folder / "cfg.json").read_text()
    for length in range(0, len(config), 17):
        (folder / "cfg.json").write_text(config[:length])
        refused(folder, "not JSON")


def test_a_missing_file_is_named(copy):
    folder = copy("standard")
    (folder / "sae_weights.safetensors").unlink()
    refused(folder, "sae_weights.safetensors: No such file")
    (folder / "cfg.json").unlink()
    refused(folder, "cfg.json: No such file")


@pytest.mark.parametrize(
    ("file", "content", "part"),
    [
        ("cfg.json", "[1, 2]", "holds a list"),
        ("cfg.json", "\xff\xfe", "not JSON"),
        ("cfg.json", "[" * 100_000, "not JSON"),
        ("sae_weights.safetensors", "<html>Not Found</html>", "truncated or corrupt"),
        ("sae_weights.safetensors", "version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ],
)
def test_what_is_no_such_file_is_said(copy, file, content, part):
    folder = copy("standard")
    (folder / file).write_bytes(content.encode("latin-1"))
    refused(folder, part)
