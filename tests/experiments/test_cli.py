"""The commands do what the Python names do, and say where the results are."""

import json
import re
import subprocess
import sys

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from experiments.ablation import pearson
from experiments.cli import main

TEXT = "w1 w5 w9 w2 w5 w9 w30 w7"
CORRUPTED = "w1 w6 w9 w2 w6 w9 w31 w7"
PAIR = ["--target", "w3", "--foil", "w4", "--corrupted", CORRUPTED]


def circuits(*arguments) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def saved(own, tmp_path_factory):
    """A graph that `circuits trace` saved, and what it printed."""
    path = tmp_path_factory.mktemp("saved") / "graph.json"
    result = circuits("trace", TEXT, *PAIR, *own, "--max-latents", 40, "--out", path)
    assert result.exit_code == 0, result.output
    return path, result.output


def test_trace_prints_a_summary_and_writes_every_format(own, tmp_path):
    paths = [tmp_path / f"g{suffix}" for suffix in (".html", ".svg", ".json")]
    outs = [word for path in paths for word in ("--out", path)]
    result = circuits("trace", TEXT, *PAIR, *own, "--max-latents", 30, "--top", 3, *outs)
    assert result.exit_code == 0, result.output
    for text in ("w3 - w4 = ", "30 of ", "replacement 0.", "completeness 0.", "attributed by "):
        assert text in result.output
    assert len(re.findall(r"^\w+\.\d/latent\.\d+@\d", result.output, re.M)) == 3
    for path in paths:
        assert path.stat().st_size > 1000
        assert f"wrote {path}" in result.output


def test_trace_without_a_target_explains_the_most_likely_token(own, model):
    token = model.words(model(TEXT)[0, -1].argmax()[None])[0]
    result = circuits("trace", TEXT, *own, "--max-latents", 5)
    assert f"logit {token} = " in result.output, result.output


@pytest.mark.parametrize("metric", ["logit", "log-prob", "prob"])
def test_a_metric_by_name_comes_back_from_the_saved_graph(own, tmp_path, metric):
    path = tmp_path / "graph.json"
    circuits("trace", TEXT, *PAIR, *own, "--metric", metric, "--max-latents", 5, "--out", path)
    name = json.loads(path.read_text())["provenance"]["metric"]
    result = circuits("ablate", path, "--dictionaries", own[3], "--top", 2)
    assert result.exit_code == 0, result.output
    assert f"metric      {name} = " in result.output


def test_ablate_sets_measured_beside_attributed(saved, own, tmp_path):
    path, _ = saved
    outs = [tmp_path / "a.csv", tmp_path / "a.json", tmp_path / "a.png"]
    options = [word for out in outs for word in ("--out", out)]
    result = circuits("ablate", path, *own[2:], "--top", 8, *options)
    assert result.exit_code == 0, result.output
    frame = pd.read_csv(outs[0])
    graph = json.loads(path.read_text())
    effects = dict(zip(graph["nodes"]["name"], graph["nodes"]["effect"], strict=True))
    assert len(frame) == 8
    for row in frame.to_dict("records"):
        assert row["attributed"] == pytest.approx(effects[row["node"]], rel=1e-3, abs=1e-5)
        assert f"{row['attributed']:+.3f}" in result.output
        assert f"{row['measured']:+.3f}" in result.output
    r = pearson(frame["attributed"].to_list(), frame["measured"].to_list())
    assert f"r = {r:.3f} over 8 latents" in result.output
    assert json.loads(outs[1].read_text())["provenance"]["settings"]["reference"] == "zero"


@pytest.mark.parametrize("downstream", ["recompute", "freeze", "drop"])
def test_ablate_takes_a_prompt_and_patches_from_its_partner(own, downstream):
    result = circuits(
        "ablate", TEXT, *PAIR, *own, "--reference", "corrupted", "--downstream", downstream,
        "--top", 5,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"set to corrupted, downstream {downstream}" in result.output
    attributed = "freeze" if downstream == "drop" else downstream
    assert f"against corrupted, downstream {attributed}" in result.output


def test_faithfulness_from_a_graph_and_from_a_prompt(saved, own, tmp_path):
    path, _ = saved
    for subject in ([path], [TEXT, *PAIR]):
        out = tmp_path / f"f{len(subject)}.csv"
        result = circuits(
            "faithfulness", *subject, *own[2 if subject == [path] else 0 :], "--sizes", "2,20",
            "--downstream", "freeze", "--random", 4, "--out", out,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        frame = pd.read_csv(out)
        assert list(frame["size"]) == [2, 20]
        assert "errors  kept, downstream freeze" in result.output
        assert f"{frame['faithfulness'][1]:.3f}" in result.output


def test_existing_outputs_stay_without_force(saved, own, tmp_path):
    path, _ = saved
    out = tmp_path / "a.csv"
    out.write_text("old")
    refused = circuits("ablate", path, *own[2:], "--top", 2, "--out", out)
    assert refused.exit_code == 2
    assert out.read_text() == "old"
    assert circuits("ablate", path, *own[2:], "--top", 2, "--out", out, "--force").exit_code == 0
    assert out.read_text() != "old"


def test_info_lists_models_and_describes_each_kind(own):
    listed = circuits("info").output
    assert "gemma-2-2b" in listed
    hub = circuits("info", "gemma-2-2b").output
    assert re.search(r"resid\s+16k\s+0-25", hub), hub
    folder = circuits("info", own[1], "--dictionaries", own[3]).output
    assert "3 layers, d_model 32" in folder
    assert re.search(r"mlp\.2\s+96\s+10", folder), folder


def test_help_says_what_for_with_units_and_an_example():
    for command in ("trace", "ablate", "faithfulness", "info"):
        text = circuits(command, "--help").output
        assert f"circuits {command} " in text.partition("Example")[2]
    for command, units in (
        ("trace", "logits for a logit difference"),
        ("ablate", "logits for a logit difference"),
        ("faithfulness", "without a unit"),
        ("info", "Widths count latents"),
    ):
        assert units in " ".join(circuits(command, "--help").output.split())


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from experiments.cli import main\n"
        "try: main(['trace', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_program_in_a_process_of_its_own(own, tmp_path):
    out = tmp_path / "a.csv"
    command = [sys.executable, "-m", "experiments.cli"]
    arguments = ["ablate", TEXT, *PAIR, *own, "--top", "3", "--out", str(out)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(pd.read_csv(out)) == 3
    again = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert again.returncode == 2
    assert again.stderr == (
        f"circuits: error: {out} exists already; pass overwrite=True (--force) or another name\n"
    )
