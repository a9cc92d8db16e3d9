"""The commands do what the Python names do, and say where the results are."""

import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from circuits import Site, splice
from circuits.loading.models import BUNDLED
from experiments.ablation import pearson
from experiments.cli import main
from experiments.commands.minimality import minimality
from graphs import AttributionGraph, prune

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


def test_trace_exports_the_pruned_graph_for_viewers(own, tmp_path):
    whole, path = tmp_path / "whole.json", tmp_path / "viewer.json"
    traced = ["trace", TEXT, *PAIR, *own, "--max-latents", 30]
    result = circuits(*traced, "--out", whole, "--export", path)
    assert result.exit_code == 0, result.output
    assert f"wrote {path}" in result.output
    pruned = prune(AttributionGraph.load(whole), keep_influence=0.8)
    content = json.loads(path.read_text())
    assert content["metadata"]["slug"] == "viewer"
    assert len(content["nodes"]) == len(pruned.digraph)
    assert len(content["links"]) == pruned.digraph.number_of_edges()
    # refused before anything is computed
    assert "exists already" in circuits(*traced, "--export", path).output
    assert "viewers want letters" in circuits(*traced, "--export", tmp_path / "a.b.json").output
    same = circuits(*traced, "--out", whole, "--export", whole, "--force")
    assert f"both name {whole}" in same.output


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


def test_faithfulness_with_errors_as_nodes_and_the_sizes_of_mib(own, tmp_path):
    out = tmp_path / "f.csv"
    result = circuits(
        "faithfulness", TEXT, *PAIR, *own, "--sizes", "mib", "--errors", "scored", "--random", 2,
        "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    frame = pd.read_csv(out)
    assert frame["share"].iloc[-1] == 1
    assert frame["faithfulness"].iloc[-1] == pytest.approx(1, abs=1e-4)
    assert set(frame["errors"]) == {"scored"}
    shares, values = frame["share"][frame["size"] > 0], frame["faithfulness"][frame["size"] > 0]
    assert f"CPR {np.trapezoid(values, shares):.3f}" in result.output
    assert "latents and errors set to zero" in result.output
    few = circuits("faithfulness", TEXT, *PAIR, *own, "--sizes", "5,0.5", "--random", 0)
    assert "CPR" not in few.output, few.output
    assert "k90 " in few.output


def test_minimality_of_a_task(tmp_path):
    out = tmp_path / "m.csv"
    arguments = ["--task", "agreement_simple", "--prompts", 4, "--size", 12, "--inflations", 20]
    result = CliRunner().invoke(minimality, [str(a) for a in [*arguments, "--out", out]])
    assert result.exit_code == 0, result.output
    frame = pd.read_csv(out)
    assert len(frame) == 12
    assert f"{(frame['verdict'] == 'necessary').sum()} necessary" in result.output
    assert set(frame["reference"]) == {"patch"}
    assert frame["node"].tolist()[0] in result.output


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


def test_info_says_what_loading_takes():
    said = circuits("info", "gemma-2-2b", "--sites", "resid,mlp", "--width", "65k").output
    assert "26 layers, d_model 2304, 8 heads, 2.61 billion weights" in said
    assert re.search(r"mlp\s+65k\s+26\s+31\.\d GB", said), said
    assert re.search(r"resid\s+65k\s+26\s+31\.\d GB", said), said
    assert not re.search(r"^attn\s+\d+k\s+26\s", said, re.M), said
    assert re.search(r"^to download +\d+\.\d GB", said, re.M), said
    assert re.search(r"^model and all dictionaries +36\.\d GB +73\.\d GB", said, re.M), said
    assert re.search(r"^model and 3 dictionaries +\d\.\d GB +1\d\.\d GB", said, re.M), said
    assert re.search(r"^cpu +\d.* free of \d+\.\d GB$", said, re.M), said
    assert re.search(r"attn\s+16k\s+0-25", said), said  # what there is besides


def test_info_of_a_model_without_the_default_dictionaries():
    said = circuits("info", "gemma-2-27b").output
    assert "choose dictionaries: gemma-2-27b has no dictionaries of kind attn, mlp" in said
    assert re.search(r"resid\s+131k\s+10, 22, 34", said), said
    chosen = circuits("info", "gemma-2-27b", "--sites", "resid", "--width", "131k").output
    assert re.search(r"resid\s+131k\s+3\s+14\.\d GB", chosen), chosen


def test_info_chooses_among_dictionaries_of_a_folder(own):
    said = circuits("info", own[1], "--dictionaries", own[3], "--sites", "mlp").output
    assert "mlp.2" in said
    assert "resid.2" not in said


def test_check_passes_the_bundled_model_and_writes_tables(tmp_path):
    outs = [tmp_path / "gates.csv", tmp_path / "gates.json"]
    options = [word for out in outs for word in ("--out", out)]
    result = circuits("check", "tiny", "--sites", "mlp", "--device", "cpu", *options)
    assert result.exit_code == 0, result.output
    frame = pd.read_csv(outs[0])
    assert list(frame["verdict"]) == ["passes"] * 4
    for row in frame.to_dict("records"):
        line = rf"{row['site']} .* {row['l0']:.1f} +{row['expected_l0']:g} "
        assert re.search(rf"{line}.* {row['explained_variance']:.3f}  passes", result.output)
    assert "all 4 sites pass, over 5,582 tokens of 400 texts" in result.output
    assert json.loads(outs[1].read_text())["provenance"]["settings"]["texts"] == 400
    assert f"wrote {outs[1]}" in result.output


def test_check_loads_what_the_options_say(tiny, monkeypatch):
    asked = {}

    def load(name, **choice):
        asked.update(choice, name=name)
        return splice(tiny.bridge, {Site(1, "mlp"): tiny.dictionaries[Site(1, "mlp")]})

    monkeypatch.setattr("circuits.load", load)
    texts = BUNDLED / "tiny" / "texts.txt"
    result = circuits(
        "check", "gemma-2-2b", "--sites", "mlp, resid", "--width", "65k", "--l0", "nearest:50",
        "--memory", "20GB", "--device", "cpu", "--text", texts,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert asked == {
        "name": "gemma-2-2b", "dictionaries": None, "sites": ["mlp", "resid"], "width": "65k",
        "l0": "nearest:50", "memory": "20GB", "device": "cpu",
    }  # fmt: skip


def test_check_fails_random_dictionaries_with_code_1(own, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("w1 w2 w3 w4 w5\n\nw9 w8 w7 w20 w11 w12\n")
    out = tmp_path / "gates.json"
    arguments = ["check", own[1], *own[2:], "--text", texts, "--out", out]
    result = circuits(*arguments)
    assert result.exit_code == 1, result.output
    assert "9 of 9 sites fail, over 11 tokens of 2 texts" in result.output
    assert "explained variance below 0 at " in result.output
    assert "another hook point" in result.output
    assert len(json.loads(out.read_text())["rows"]) == 9
    assert circuits(*arguments).exit_code == 2  # the file is there now
    assert circuits(*arguments, "--force").exit_code == 1


def test_help_says_what_for_with_units_and_an_example():
    for command in ("info", "check", "trace", "ablate", "faithfulness"):
        text = circuits(command, "--help").output
        assert f"circuits {command} " in text.partition("Example")[2]
    for command, units in (
        ("trace", "logits for a logit difference"),
        ("ablate", "logits for a logit difference"),
        ("faithfulness", "without a unit"),
        ("info", "Widths count latents"),
        ("check", "a share without a unit"),
        ("check", "0 if all gates pass, 1 if one fails, 2 for bad input"),
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
    again = circuits(*arguments)
    assert again.exit_code == 2
    assert again.output == (
        f"circuits: error: {out} exists already; pass overwrite=True (--force) or another name\n"
    )
    wrong = [*command, "trace", "--max-latents", "0"]
    refused = subprocess.run(wrong, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr == (
        "circuits: error: Invalid value for '--max-latents': 0 is not in the range x>=1; "
        "see circuits trace --help\n"
    )
