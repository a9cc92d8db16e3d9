"""A study runs every cell once, whatever stops it, and reports what it found."""

import json
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from circuits import UserError, load
from experiments.commands.study import study as study_command
from experiments.study import Study, read_study, run_study, runner

TASKS_HERE = ("agreement_simple", "city_country")
KINDS = ("kind", "tall")


@pytest.fixture(scope="module")
def model():
    return load("tiny")


def small(**changes):
    told = {
        "name": "Two <tasks>",
        "tasks": TASKS_HERE,
        "methods": ("gradient x activation", "random"),
        "sizes": (30, 300),
        "n_prompts": 3,
        "n_heldout": 3,
        "n_random": 2,
    }
    return Study(**(told | changes))


@pytest.fixture(scope="module")
def whole_run(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "whole"
    return run_study(small(), folder, model=model), folder


def test_the_cells_are_every_combination():
    study = small(ablations=("patch", "zero"), seeds=(0, 1, 2))
    cells = list(study.cells())
    assert len(cells) == len(set(cells)) == 2 * 2 * 2 * 3


def test_a_stopped_command_says_what_is_kept(tmp_path, monkeypatch):
    def stopped(model, study, cell, material):
        if cell.method == "random":
            raise KeyboardInterrupt
        return {}

    monkeypatch.setattr(runner, "run_cell", stopped)
    declaration = tmp_path / "small.toml"
    declaration.write_text(
        'tasks = ["ioi"]\nmethods = ["RelP", "random"]\nn_prompts = 2\nn_heldout = 2\n'
    )
    result = CliRunner().invoke(study_command, [str(declaration)])
    assert result.exit_code == 1
    said = f"1 of 2 cells are done and kept in {tmp_path / 'small'}; the same command goes on there"
    assert said in result.stderr


def test_a_stopped_run_goes_on_and_computes_nothing_twice(model, whole_run, tmp_path, monkeypatch):
    real, computed = runner.run_cell, []

    def stopped(model, study, cell, material):
        if len(computed) == 3:
            raise KeyboardInterrupt
        computed.append(cell)
        return real(model, study, cell, material)

    monkeypatch.setattr(runner, "run_cell", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_study(small(), tmp_path / "study", model=model)
    assert len(list((tmp_path / "study" / "cells").iterdir())) == 3

    monkeypatch.setattr(runner, "run_cell", lambda *args: computed.append(args[2]) or real(*args))
    report = run_study(small(), tmp_path / "study", model=model)
    assert computed == list(small().cells())
    assert curves(report) == curves(whole_run[0])  # as if it had not been stopped

    monkeypatch.setattr(runner, "run_cell", None)
    assert curves(run_study(small(), tmp_path / "study")) == curves(report)  # nor the model loaded


def curves(report):
    return [(cell["cell"], cell["curve"], cell["ranking"]) for cell in report.cells]


def test_tasks_may_be_added_and_settings_not_changed(model, whole_run, monkeypatch):
    _, folder = whole_run
    monkeypatch.setattr(runner, "run_cell", None)  # nothing is to be computed
    fewer = small(tasks=TASKS_HERE[:1], methods=("random",))
    assert len(run_study(fewer, folder, model=model).cells) == 1
    with pytest.raises(UserError, match="n_prompts=3, now 4; give a new folder"):
        run_study(small(n_prompts=4), folder, model=model)


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        run_study(small(), tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["thesis.tex"]


def test_the_summary_is_the_mean_over_seeds(model, tmp_path):
    study = small(tasks=TASKS_HERE[:1], methods=("random",), seeds=(0, 1), n_random=0)
    report = run_study(study, tmp_path / "seeds", model=model)
    (row,) = report.summary().to_dict("records")
    cells = report.cells
    by_size = [[line["faithfulness"] for line in cell["curve"]] for cell in cells]
    assert by_size[0] != by_size[1]
    assert [row["F(30)"], row["F(300)"]] == pytest.approx(np.mean(by_size, axis=0).tolist())
    assert row["area"] == pytest.approx(np.mean([cell["area"] for cell in cells]))
    assert row["seeds"] == 2


def test_attribution_finds_better_circuits_than_chance(whole_run):
    summary = whole_run[0].summary()
    # other cities have other latents: what three prompts rank says little about three more
    for task, margin in zip(TASKS_HERE, (0.3, 0), strict=True):
        areas = {
            row["method"]: row["area"] for row in summary.to_dict("records") if row["task"] == task
        }
        assert areas["gradient x activation"] > areas["random"] + margin


def test_the_report_stands_alone_and_says_everything(whole_run):
    report, folder = whole_run
    page = report.write(folder).read_text()
    assert not re.search(r"""(src|href)\s*=\s*["']?(http|//)|<script|@import|url\(http""", page)
    assert "Two &lt;tasks&gt;" in page
    assert page.count('src="data:image/svg+xml;base64,') == 2
    for told in (*TASKS_HERE, "gradient x activation", "random", "seeds", "torch", "recompute"):
        assert told in page
    markdown = (folder / "report.md").read_text()
    for row in report.summary().to_dict("records"):
        assert f"{row['F(300)']:.3f}" in markdown
        assert f"{row['F(300)']:.3f}" in page
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", markdown):
        assert (folder / name).exists()
    assert report.write(folder).exists()  # again


def write_pairs(path, kinds, verb="remember"):
    """Four pairs for each word: the kind man remembers, the kind men remember."""
    nouns = (("man", "men"), ("boy", "boys"), ("girl", "girls"), ("poet", "poets"))
    lines = [
        json.dumps(
            {"clean_prefix": f"the {kind} {one}", "patch_prefix": f"the {kind} {many}",
             "clean_answer": f"{verb}s", "patch_answer": verb}
        )
        for kind in kinds
        for one, many in nouns
    ]  # fmt: skip
    path.write_text("\n".join(lines))


def test_pairs_that_do_not_fit_take_no_place_and_are_told(model, tmp_path):
    """Four of each are asked for, and of eight pairs that the model knows there are four of each,
    however many it does not know."""
    path = tmp_path / "mine.jsonl"
    write_pairs(path, (*KINDS, *[f"unknown{i}" for i in range(20)]))
    study = small(tasks=(str(path),), methods=("random",), sizes=(5,), n_prompts=4, n_heldout=4)
    report = run_study(study, tmp_path / "study", model=model)
    left_out = "80 left out: tiny cannot read it: unknown words, empty, or too long"
    (told,) = [cell["pairs"] for cell in report.cells]
    assert told.startswith(f"ranked on 4 pairs of {path.name}; {left_out}")
    assert told.endswith("; tested on 4 others")
    page = report.write(tmp_path / "study").read_text()
    for text in (page, (tmp_path / "study" / "report.md").read_text()):
        assert left_out in text


@pytest.mark.parametrize("added", [{"methods": ("random", "activation size")}, {"seeds": (0, 1)}])
def test_cells_are_not_set_beside_those_of_other_prompts(model, tmp_path, added):
    """Neither another method nor another seed of a file that has changed; as it was, both go on."""
    path, folder = tmp_path / "mine.jsonl", tmp_path / "study"
    how = {"tasks": (str(path),), "methods": ("random",), "sizes": (5,), "n_random": 0}
    write_pairs(path, KINDS)
    report = run_study(small(**how), folder, model=model)
    write_pairs(path, KINDS, verb="like")
    with pytest.raises(UserError, match=r"was run on other prompts than .*mine\.jsonl has now"):
        run_study(small(**how | added), folder, model=model)
    assert len(list((folder / "cells").iterdir())) == 1
    write_pairs(path, KINDS)
    assert curves(run_study(small(**how | added), folder, model=model))[0] == curves(report)[0]
    assert len(list((folder / "cells").iterdir())) == 2


def test_cells_are_not_set_beside_those_of_other_weights(model, tmp_path):
    """Neither in the same declaration nor in one of other cells, which a third would join."""
    how = {"tasks": TASKS_HERE[:1], "sizes": (5,), "n_random": 0}
    folder = tmp_path / "study"
    run_study(small(**how, methods=("random",)), folder, model=model)
    retrained = load("tiny")
    with torch.no_grad():
        next(retrained.bridge.original_model.parameters()).mul_(1.01)
    for methods in (("random", "activation size"), ("activation size",), ("random",)):
        with pytest.raises(UserError, match=r"\.json was made with other weights than tiny"):
            run_study(small(**how, methods=methods), folder, model=retrained)
    assert len(list((folder / "cells").iterdir())) == 1
    run_study(small(**how, methods=("random", "activation size")), folder, model=load("tiny"))
    assert len(list((folder / "cells").iterdir())) == 2


def test_a_study_loads_what_it_declares(model, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(runner, "load", lambda name, **how: asked.append((name, how)) or model)
    how = {"sites": ("resid",), "width": "131k", "l0": "nearest:50", "dictionaries": "mine/"}
    study = small(tasks=TASKS_HERE[:1], methods=("random",), sizes=(5,), n_random=0,
                  model="gemma-2-27b", **how)  # fmt: skip
    run_study(study, tmp_path / "study")
    assert asked == [("gemma-2-27b", how)]
    told = json.loads((tmp_path / "study" / "study.json").read_text())["settings"]
    assert (told["width"], told["l0"]) == ("131k", "nearest:50")


def test_a_declaration_is_read_from_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('tasks = ["ioi"]\nsizes = [5, 50]\nerrors = "scored"\n')
    study = read_study(path)
    assert (study.name, study.sizes, study.errors) == ("mine", (5, 50), "scored")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sizes = [5]", "name at least one task"),
        ('tasks = ["ioi"]\ntaks = 1', "no 'taks'; it has name, tasks"),
        ('tasks = "ioi"', "takes a list"),
        ('tasks = ["ioi", "ioi"]', "give each once"),
        ('tasks = ["ioi"]\nmethods = ["magic"]', "no method 'magic'; choose gradient"),
        ('tasks = ["ioi"]\nsizes = [0]', "sizes=0; give a whole number from 1 on"),
        ('tasks = ["ioi"]\nsizes = [[10, 30]]', "sizes=[10, 30]; give a whole number"),
        ('tasks = ["ioi"]\nsizes = [true]', "sizes=True; give a whole number"),
        ('tasks = [["ioi"]]', "tasks=[['ioi']]; give names"),
        ('tasks = ["ioi", "iou"]', "no task, data set or file 'iou'"),
        ('tasks = ["ioi", "nowhere.jsonl"]', "nowhere.jsonl"),
        ('tasks = ["ioi"]\nablations = ["patch", "magic"]', "no kind of ablation 'magic'"),
        ('tasks = ["ioi"]\nseeds = [-1]', "from 0 on"),
        ('tasks = ["ioi"]\nn_prompts = 1', "from 2 on"),
        ('tasks = ["ioi"]\nerrors = "gone"', "errors='gone'"),
        ('tasks = ["ioi"]\ndownstream = "drop"', "recompute or freeze"),
        ("tasks = [", "cannot read the study"),
    ],
)
def test_what_no_study_is(tmp_path, text, says):
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(says)):
        read_study(path)


def test_the_command(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'tasks = ["agreement_simple"]\nmethods = ["activation size"]\nsizes = [10]\n'
        "n_prompts = 2\nn_heldout = 2\nn_random = 0\n"
    )
    result = CliRunner().invoke(study_command, [str(path)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "activation size" in result.output
    told = json.loads((tmp_path / "mine" / "study.json").read_text())
    assert told["settings"]["n_prompts"] == 2
    assert (tmp_path / "mine" / "report.html").exists()
