"""Results are written whole or not at all, and read back as they were."""

import json

import pandas as pd
import pytest
from matplotlib.figure import Figure

from circuits import UserError
from experiments.records import write_figure, write_table

FRAME = pd.DataFrame(
    {"node": ["mlp.0/latent.3@2", 'a, "b"'], "value": [0.1, float("nan")], "label": ["#1", None]}
)


def figure() -> Figure:
    drawing = Figure()
    drawing.subplots().plot([0, 1], [1, 0])
    return drawing


def test_json_reads_back_with_its_provenance(tmp_path):
    path = write_table(tmp_path / "t.json", FRAME, kind="things", provenance={"model": "tiny"})
    content = json.loads(path.read_text())
    assert content["format"] == "gemma-circuits things"
    assert content["provenance"] == {"model": "tiny"}
    assert content["rows"] == [
        {"node": "mlp.0/latent.3@2", "value": 0.1, "label": "#1"},
        {"node": 'a, "b"', "value": None, "label": None},
    ]


def test_csv_reads_back(tmp_path):
    path = write_table(tmp_path / "t.csv", FRAME, kind="things", provenance={})
    back = pd.read_csv(path)
    pd.testing.assert_frame_equal(back, FRAME, check_dtype=False)


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_a_plot_is_drawn_without_pyplot_and_always_the_same(tmp_path, suffix):
    first = write_figure(tmp_path / f"a{suffix}", figure())
    second = write_figure(tmp_path / f"b{suffix}", figure())
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size > 500


@pytest.mark.parametrize("name", ["t.txt", "t", "t.csv.gz", "t.svg"])
def test_another_suffix_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"must end in \.csv, \.json"):
        write_table(tmp_path / name, FRAME, kind="things", provenance={})
    assert not list(tmp_path.iterdir())


def test_an_existing_file_stays_unless_it_may_go(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("old")
    with pytest.raises(UserError, match="exists already"):
        write_table(path, FRAME, kind="things", provenance={})
    assert path.read_text() == "old"
    write_table(path, FRAME, kind="things", provenance={}, overwrite=True)
    assert path.read_text().startswith("node,value,label")


def test_what_cannot_be_drawn_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "p.svg"
    path.write_text("old")
    broken = figure()

    def fail(*_args, **_kwargs):
        raise RuntimeError("half way")

    monkeypatch.setattr(broken, "savefig", fail)
    with pytest.raises(RuntimeError):
        write_figure(path, broken, overwrite=True)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["p.svg"]


def test_provenance_that_is_not_json_writes_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_table(tmp_path / "t.json", FRAME, kind="things", provenance={"model": object()})
    assert not list(tmp_path.iterdir())
