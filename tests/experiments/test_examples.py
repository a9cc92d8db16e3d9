"""The examples run as they are read, and the demo can be run again."""

import json
import re
import runpy
from pathlib import Path

import pytest

from circuits import load
from experiments.examples import demo
from experiments.tasks import TASKS

EXAMPLES = Path(demo.__file__).parent


def test_the_first_script_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("circuits.load", load)  # itself: others take what is loaded already
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "ioi.py"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert all("attributed" in line and "measured" in line for line in lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ioi.html", "ioi_faithfulness.svg"]


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"ioi"}))
def test_each_task_has_a_worked_study(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    assert len(capsys.readouterr().out.splitlines()) > 5
    plots = [path for path in tmp_path.rglob("*.svg") if path.stat().st_size > 1000]
    assert plots


def test_the_demo_runs_and_runs_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    demo.main(Path("demo"))
    said = capsys.readouterr().out
    found = re.findall(r"^r = (\S+) \((\w+), ([a-z -]+)", said, re.M)
    r = {(reference, estimator): float(value) for value, reference, estimator in found}
    assert len(r) == 4
    for reference in ("zero", "corrupted"):
        # along the whole way the gradient adds up to the ablation; its tangent alone may not
        assert r[reference, "per-latent integrated gradients"] >= 0.99
        assert r[reference, "gradient x activation"] >= 0.7
    assert said.splitlines()[-1].endswith("demo/ioi.html")
    first = {path.name: path.stat().st_mtime_ns for path in Path("demo").iterdir()}
    assert {"ioi.html", "ioi.svg", "ioi.json", "faithfulness.svg"} < set(first)
    for name in ("zero", "corrupted"):
        rows = json.loads(Path(f"demo/ablation_{name}.json").read_text())["rows"]
        assert len(rows) == 50
        assert any(row["label"] for row in rows)
    monkeypatch.setattr(demo, "STRONGEST", 5)
    monkeypatch.setattr(demo, "SIZES", (10,))
    demo.main(Path("demo"))
    again = {path.name: path.stat().st_mtime_ns for path in Path("demo").iterdir()}
    assert set(again) == set(first)
    assert all(again[name] > first[name] for name in first)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot make the folder"):
        demo.main(tmp_path / "file" / "demo")
