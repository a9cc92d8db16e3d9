"""Files are written whole or not at all."""

import pytest

from circuits import UserError
from circuits.files import write_atomically


def test_a_new_file_holds_the_data_and_leaves_nothing_beside_it(tmp_path):
    write_atomically(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_an_existing_file_is_kept_unless_it_may_be_replaced(tmp_path):
    path = write_atomically(tmp_path / "a.txt", "old")
    with pytest.raises(UserError, match="exists already"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    write_atomically(path, b"new", overwrite=True)
    assert path.read_text() == "new"


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.link", refused)
    path = write_atomically(tmp_path / "a.txt", "text")
    assert path.read_text() == "text"
    with pytest.raises(UserError, match="exists already"):
        write_atomically(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "a.txt", "old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full_disk)
    with pytest.raises(UserError, match="No space left"):
        write_atomically(path, "new", overwrite=True)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_what_cannot_be_written_is_said_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        write_atomically(tmp_path / "missing" / "a.txt", "text")
    with pytest.raises(UserError, match="is a folder"):
        write_atomically(tmp_path, "text")


def test_a_folder_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UserError, match="not writable"):
        write_atomically(tmp_path / "a.txt", "text")
    assert not any(tmp_path.iterdir())
