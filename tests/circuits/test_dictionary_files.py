"""A file is read as it was written, and a bad one is refused in one sentence."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from circuits.dictionaries import ARRAYS
from circuits.errors import UserError
from circuits.formats.npz import load_npz, save_npz
from tests.circuits.small_dictionaries import as_dictionary, random_arrays


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "layer_3" / "width_1k" / "average_l0_14" / "params.npz"


def write(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType] - its stub takes these for flags
    return path


def test_a_saved_dictionary_loads_as_it_was(path):
    arrays = random_arrays()
    save_npz(as_dictionary(arrays), path)
    loaded = load_npz(path)
    assert (loaded.name, loaded.average_l0) == ("layer_3/width_1k/average_l0_14", 14.0)
    for key in ARRAYS:
        np.testing.assert_array_equal(loaded.arrays[key], arrays[key])
    with np.load(path, allow_pickle=False) as archive:
        assert sorted(archive.files) == sorted(ARRAYS)
        assert {archive[key].dtype for key in ARRAYS} == {np.dtype(np.float32)}


def test_saving_gives_the_same_bytes_and_refuses_to_overwrite(path, tmp_path):
    dictionary = as_dictionary(random_arrays())
    save_npz(dictionary, path)
    again = save_npz(dictionary, tmp_path / "again.npz")
    assert path.read_bytes() == again.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        save_npz(dictionary, path)
    save_npz(as_dictionary(random_arrays(1)), path, overwrite=True)
    assert path.read_bytes() != again.read_bytes()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the folder"):
        save_npz(as_dictionary(random_arrays()), tmp_path / "file" / "params.npz")


def test_outside_the_layout_the_name_is_the_path(tmp_path):
    loaded = load_npz(write(tmp_path / "mine.npz", random_arrays()))
    assert (loaded.name, loaded.average_l0) == (str(tmp_path / "mine.npz"), None)


@pytest.mark.parametrize("stored", ["<f2", ">f4", "<f8"])
def test_any_plain_float_loads_as_float32_or_what_is_asked_for(path, stored):
    arrays = random_arrays()
    write(path, {key: np.asfortranarray(a.astype(stored)) for key, a in arrays.items()})
    loaded = load_npz(path)
    assert loaded.W_enc.dtype == torch.float32
    np.testing.assert_allclose(loaded.W_enc, arrays["W_enc"], rtol=1e-3)
    assert load_npz(path, dtype=torch.bfloat16).W_dec.dtype == torch.bfloat16


def test_compressed_files_load(path):
    path.parent.mkdir(parents=True)
    np.savez_compressed(path, **random_arrays())  # pyright: ignore[reportArgumentType]
    assert load_npz(path).d_sae == 7


def refused(path: Path, *parts: str) -> str:
    """The sentence with which `path` is refused: it names the path, and holds `parts`."""
    with pytest.raises(UserError) as error:
        load_npz(path)
    message = str(error.value)
    assert str(path.parent.name) in message
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


def test_a_missing_file_is_refused(path):
    refused(path, "No such file", "give the path of a params.npz")


def test_a_folder_in_place_of_a_file_is_refused(path):
    path.mkdir(parents=True)
    refused(path, "Is a directory")


def test_a_file_cut_anywhere_is_refused(path):
    whole = write(path, random_arrays()).read_bytes()
    for length in range(0, len(whole), 41):
        path.write_bytes(whole[:length])
        refused(path)
    path.write_bytes(whole[:-1])
    refused(path, "truncated or corrupt", "delete it")
    path.write_bytes(b"")
    refused(path, "truncated or corrupt")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_flipped_byte_is_refused_or_harmless(path, compressed):
    arrays = random_arrays()
    path.parent.mkdir(parents=True)
    (np.savez_compressed if compressed else np.savez)(path, **arrays)  # pyright: ignore
    whole = path.read_bytes()
    n_refused = 0
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        try:
            loaded = load_npz(path)
        except UserError:
            n_refused += 1
        else:  # a byte that no reader looks at, for example a time stamp
            for key in ARRAYS:
                np.testing.assert_array_equal(loaded.arrays[key], arrays[key])
    assert n_refused > 50


@pytest.mark.parametrize("gone", ["threshold", "W_enc"])
def test_a_missing_array_is_named_with_those_present(path, gone):
    arrays = random_arrays()
    del arrays[gone]
    write(path, arrays)
    present = ", ".join(arrays)
    refused(path, f"lacks {gone}", f"its arrays are {present}", ", ".join(ARRAYS))


def test_an_array_that_would_change_the_answer_unseen_is_refused(path):
    write(path, random_arrays() | {"W_skip": np.zeros((5, 5), np.float32)})
    refused(path, "unknown W_skip")


def test_a_wrong_shape_in_a_file_is_refused_as_in_memory(path):
    write(path, random_arrays() | {"W_dec": np.zeros((8, 5), np.float32)})
    refused(path, "W_dec [8, 5] (expected [7, 5])")


def test_nan_in_a_file_is_refused(path):
    arrays = random_arrays()
    arrays["W_dec"][2, 3] = np.nan
    write(path, arrays)
    refused(path, "1 of the 35 values of W_dec")


@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.complex64, np.longdouble])
def test_other_dtypes_are_refused(path, dtype):
    write(path, random_arrays() | {"b_enc": np.zeros(7, dtype)})
    refused(path, f"b_enc is {np.dtype(dtype)}", "float32")


class Trap:
    """Unpickling one sets `sprung`."""

    sprung = False

    def __reduce__(self):
        return _spring, ()


def _spring() -> str:
    Trap.sprung = True
    return "sprung"


def test_nothing_is_ever_unpickled(path):
    write(path, random_arrays() | {"W_enc": np.array([[Trap()]], dtype=object)})
    refused(path, "W_enc holds Python objects", "unpickling")

    path.write_bytes(pickle.dumps(Trap()))
    refused(path, "not an npz file")

    buffer = io.BytesIO()
    np.savez(buffer, **random_arrays())  # pyright: ignore[reportArgumentType]
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            raw = pickle.dumps(Trap()) if name == "W_enc.npy" else source.read(name)
            target.writestr(name, raw)
    refused(path, "truncated or corrupt")
    assert not Trap.sprung


def test_what_is_not_an_npz_file_is_named(path):
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    refused(path, "bare .npy")
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(path, "Git LFS pointer")
    path.write_text("<html>Not Found</html>")
    refused(path, "not an npz file")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no arrays here")
    refused(path, "lacks W_enc, b_enc, threshold, W_dec, b_dec")


def test_a_header_that_promises_more_than_the_file_holds_allocates_nothing(path):
    write(path, random_arrays())
    raw = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(raw, "w") as target:
        for name in source.namelist():
            body = source.read(name)
            target.writestr(
                name, body.replace(b"(7,)", b"(7000000000000,)") if "_" in name else body
            )
    path.write_bytes(raw.getvalue())
    refused(path, "truncated or corrupt")
