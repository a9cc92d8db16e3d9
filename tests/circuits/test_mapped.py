"""A dictionary's mapped copy is the dictionary, made once, whole or not at all."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from circuits import Site, UserError
from circuits.loading import mapped
from circuits.loading.mapped import copy_path, mapped_copy, open_mapped, save_mapped
from tests.random_gemma import random_dictionaries

DICTIONARY = random_dictionaries()[Site(1, "attn")]


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A file to make copies of, and a folder of one's own for them."""
    monkeypatch.setenv("GEMMA_CIRCUITS_CACHE", str(tmp_path / "copies"))
    path = tmp_path / "params.npz"
    path.write_bytes(b"of which only name, size and time count")
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [None, 3])
def test_a_copy_is_the_dictionary_bit_for_bit(tmp_path, dtype, k):
    generator = torch.Generator().manual_seed(0)
    skip = torch.randn(DICTIONARY.d_in, DICTIONARY.d_out, generator=generator)
    before = replace(DICTIONARY, k=k, W_skip=skip if k else None, average_l0=7.5).to(dtype=dtype)
    save_mapped(before, tmp_path / "copy")
    after = open_mapped(tmp_path / "copy")
    assert (after.name, after.average_l0, after.k) == (before.name, 7.5, k)
    assert after.arrays.keys() == before.arrays.keys()
    for key, array in before.arrays.items():
        assert torch.equal(after.arrays[key], array), key
    assert after.W_enc.T.is_contiguous(), "a latent's column lies in one piece"


def test_one_copy_is_made_however_many_ask(source):
    made = []

    def read():
        made.append(1)
        return DICTIONARY

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: mapped_copy(source, torch.float32, read), range(8)))
    assert len(made) == 1
    assert len(set(paths)) == 1
    assert [p.name for p in paths[0].parent.iterdir()] == [paths[0].name], "nothing else is left"


def test_each_dtype_has_its_own_copy(source):
    assert copy_path(source, torch.float32) != copy_path(source, torch.bfloat16)


def test_a_file_that_changed_has_another_copy(source):
    before = copy_path(source, torch.float32)
    os.utime(source, ns=(1, 1))
    assert copy_path(source, torch.float32) != before


def test_a_file_of_the_hub_is_known_by_its_content(tmp_path, source):
    """Two snapshots that link to one blob share a copy."""
    blob = tmp_path / "blobs" / ("a" * 64)
    blob.parent.mkdir()
    blob.write_bytes(b"x")
    links = [tmp_path / "snapshots" / name / "params.npz" for name in ("one", "two")]
    for link in links:
        link.parent.mkdir(parents=True)
        link.symlink_to(blob)
    assert {copy_path(link, torch.float32).name for link in links} == {
        f"{'a' * 64}.float32.v1.safetensors"
    }


def test_a_full_disk_leaves_nothing_and_says_what_to_do(source, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mapped, "save_file", full)
    with pytest.raises(UserError, match="no space left on the disk; make room, or set GEMMA_"):
        mapped_copy(source, torch.float32, lambda: DICTIONARY)
    folder = copy_path(source, torch.float32).parent
    assert [path for path in folder.iterdir() if path.suffix != ".lock"] == []


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_copy_is_refused(tmp_path, keep):
    save_mapped(DICTIONARY, tmp_path / "copy")
    (tmp_path / "copy").write_bytes((tmp_path / "copy").read_bytes()[:keep])
    with pytest.raises(UserError, match="delete it, it will be made again"):
        open_mapped(tmp_path / "copy")


def test_another_safetensors_file_is_refused(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(UserError, match="not written by this version"):
        open_mapped(tmp_path / "other")


def test_a_failed_read_leaves_no_copy(source):
    def broken():
        raise UserError("truncated")

    with pytest.raises(UserError, match="truncated"):
        mapped_copy(source, torch.float32, broken)
    assert not copy_path(source, torch.float32).exists()
    assert mapped_copy(source, torch.float32, lambda: DICTIONARY).exists()


def test_only_the_hubs_own_names_stand_for_content(tmp_path, source):
    """A folder that happens to be called `blobs` is a folder like others."""
    first, second = (tmp_path / name / "blobs" / "params.npz" for name in ("one", "two"))
    for path in (first, second):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    assert copy_path(first, torch.float32) != copy_path(second, torch.float32)


def test_settings_beside_the_weights_count(tmp_path, source):
    """SAELens' `cfg.json` says how to read `sae_weights.safetensors`."""
    weights, settings = tmp_path / "sae" / "sae_weights.safetensors", tmp_path / "sae" / "cfg.json"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    settings.write_text("5")
    before = copy_path(weights, torch.float32)
    assert before == copy_path(weights.parent, torch.float32)
    settings.write_text("10")
    assert copy_path(weights, torch.float32) != before


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_several_files_of_one_folder_have_a_copy_each(tmp_path, suffix):
    first, second = (tmp_path / f"{name}.{suffix}" for name in "ab")
    (tmp_path / "config.json").write_text("of both")
    for path in (first, second):
        path.write_bytes(b"weights")
    assert copy_path(first, torch.float32) != copy_path(second, torch.float32)


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize(
    ("weights", "beside"),
    [
        ("W_dec_0.safetensors", "W_enc_0.safetensors"),
        ("W_dec_0.safetensors", "config.yaml"),
        ("sae_weights.safetensors", "cfg.json"),
        ("ae.pt", "config.json"),
    ],
)
def test_what_lies_beside_weights_in_a_snapshot_of_the_hub_counts(tmp_path, weights, beside):
    """A later revision that changes it alone links to the same blob of weights."""
    paths = []
    for revision, last in (("one", "b"), ("two", "c"), ("like one", "b")):
        snapshot = tmp_path / "snapshots" / revision
        snapshot.mkdir(parents=True)
        for name, digest in ((weights, "a"), (beside, last)):
            blob = tmp_path / "blobs" / (digest * 64)
            blob.parent.mkdir(exist_ok=True)
            if not blob.exists():
                blob.write_bytes(b"x")
            (snapshot / name).symlink_to(blob)
        paths.append(copy_path(snapshot / weights, torch.float32))
    assert paths[0] != paths[1]
    assert paths[0] == paths[2]


def test_what_a_killed_process_left_is_cleared_away(source):
    path = copy_path(source, torch.float32)
    path.parent.mkdir(parents=True)
    (path.parent / f".{path.name}.abc").write_bytes(b"half")
    mapped_copy(source, torch.float32, lambda: DICTIONARY)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_copy_that_is_gone_is_named(tmp_path):
    with pytest.raises(UserError, match="is gone; load the model again"):
        open_mapped(tmp_path / "nowhere")
