"""On bad input the command line says one sentence and exits with 2, before anything is written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from experiments.cli import main

TEXT = "w1 w5 w9 w2 w5 w9 w30 w7"
PAIR = ["--target", "w3", "--foil", "w4"]
COMMANDS = ("trace", "ablate", "faithfulness")


def refusal(*arguments) -> str:
    """The one sentence on standard error."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.output
    said = [line for line in result.stderr.splitlines() if "it/s]" not in line and line.strip()]
    assert len(said) == 1, result.stderr
    assert said[0].startswith("circuits: error: ")
    assert result.stdout == ""
    return said[0]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a prompt"),
        ([TEXT, "--task", "ioi"], "and not both"),
        (["--task", "chess"], "no task 'chess'; choose ioi,"),
        (["--task", "ioi", "--example", "-1"], "-1 is not in the range 0<=x<=199"),
        (["--task", "ioi", "--example", "x"], "'x' is not a valid integer"),
        (["--task", "country_capital", "--example", "199"], "has no held-out example 199"),
        (["--task", "ioi", "--foil", "w4"], "brings its own foil"),
        ([TEXT, "--model", "gemma-3"], "no model 'gemma-3'; choose"),
        ([TEXT, "--metric", "loss"], "'loss' is not one of 'logit-diff'"),
        ([TEXT, "--no-such-option"], "No such option"),
        ([TEXT, "--out", "nowhere/a.json"], "the folder nowhere does not exist"),
        ([TEXT, "--out", "a.docx"], "its name must end in"),
    ],
)
def test_before_any_model_is_loaded(command, arguments, message):
    assert message in refusal(command, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "the prompt is empty"),
        (["w1 " * 40], "has 41 tokens with BOS; "),
        (["w1 zebra", *PAIR], "does not know 'zebra'"),
        ([TEXT, "--target", "w3 w4"], "'w3 w4' is not one token"),
        ([TEXT, "--target", "w3", "--foil", "zebra"], "'zebra' is not one token"),
        ([TEXT, "--target", "w3", "--metric", "logit-diff"], "logit-diff needs --foil"),
        ([TEXT, *PAIR, "--corrupted", "w1 w2"], "has 9 tokens and the corrupted one 3"),
        ([TEXT, *PAIR, "--sites", "attn,neuron"], "no kind of site 'neuron'"),
    ],
)
def test_with_a_model_loaded(own, arguments, message):
    assert message in refusal("ablate", *arguments, *own)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trace", "--max-latents", "0"], "0 is not in the range x>=1"),
        (["trace", "--keep-influence", "7"], "7.0 is not in the range 0<=x<=1"),
        (["ablate", "--top", "0"], "0 is not in the range x>=1"),
        (["ablate", "--batch-size", "0"], "0 is not in the range x>=1"),
        (["ablate", "--reference", "corrupted"], "give one with --corrupted"),
        (["faithfulness", "--sizes", "ten"], "give whole numbers"),
        (["faithfulness", "--sizes", "-3"], "give whole numbers"),
    ],
)
def test_options_of_each_command(own, arguments, message):
    assert message in refusal(*arguments, TEXT, *PAIR, *own)


def test_a_circuit_is_smaller_than_what_it_is_chosen_from():
    said = refusal("circuit", "--task", "ioi", "--prompts", "2", "--size", "9999999")
    assert "k=9999999 (--size) of " in said
    assert "k_top" not in said


@pytest.mark.parametrize("command", COMMANDS)
def test_an_existing_output_stays_as_it_was(command, own, tmp_path):
    out = tmp_path / "out.json"
    out.write_text("old")
    assert "exists already" in refusal(command, TEXT, *PAIR, *own, "--out", out)
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_is_a_folder(command, tmp_path):
    folder = tmp_path / "out.json"
    folder.mkdir()
    assert "is a folder" in refusal(command, TEXT, "--out", folder)


def damaged(folder: Path, tmp_path: Path, damage) -> Path:
    """A copy of the dictionaries in which `damage` has dealt with one file."""
    copy = tmp_path / "dictionaries"
    shutil.copytree(folder, copy)
    damage(copy / "random-mlp" / "layer_1" / "width_96" / "average_l0_10" / "params.npz")
    return copy


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def wrong_shape(path: Path) -> None:
    with np.load(path) as arrays:
        changed = {**arrays, "b_enc": arrays["b_enc"][:-1]}
    np.savez(path, **changed)


def not_a_number(path: Path) -> None:
    with np.load(path) as arrays:
        changed = {**arrays, "b_dec": arrays["b_dec"] * np.nan}
    np.savez(path, **changed)


def pickled(path: Path) -> None:
    with np.load(path) as arrays:
        changed = {**arrays, "threshold": np.array([object()])}
    np.savez(path, **changed)


@pytest.mark.parametrize("damage", [Path.unlink, cut_short, wrong_shape, not_a_number, pickled])
def test_a_damaged_dictionary_is_named(gemma_folder, dictionaries_folder, tmp_path, damage):
    folder = damaged(dictionaries_folder, tmp_path, damage)
    said = refusal("trace", TEXT, *PAIR, "--model", gemma_folder, "--dictionaries", folder)
    assert "layer_1" in said


def test_dictionaries_that_are_not_there(gemma_folder, tmp_path):
    options = ["--model", gemma_folder]
    assert "say where the dictionaries of" in refusal("trace", TEXT, *PAIR, *options)
    options += ["--dictionaries", tmp_path / "none"]
    assert "no folder" in refusal("trace", TEXT, *PAIR, *options)


def test_a_file_that_is_no_graph(own, tmp_path):
    path = tmp_path / "graph.json"
    assert f"no file {path}; graph.save (trace --out) writes one" in refusal("ablate", path, *own)
    said = "'g.svg' is the name of a file; give a prompt"
    assert f"{said}, or a graph that trace saved as .json" in refusal("ablate", "g.svg")
    assert refusal("trace", "g.svg").endswith(said)
    path.write_text("{")
    assert "is not whole JSON" in refusal("ablate", path, *own)
    path.write_text("{}")
    assert "no attribution graph" in refusal("faithfulness", path, *own)


@pytest.fixture(scope="module")
def graph(own, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "graph.json"
    arguments = ["trace", TEXT, *PAIR, *own, "--max-latents", "5", "--out", str(path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return path


def test_a_graph_keeps_its_question(graph, own):
    assert "brings its own target" in refusal("ablate", graph, *own, "--target", "w5")


def test_a_graph_is_not_tested_with_other_dictionaries(graph, own, tmp_path):
    content = json.loads(graph.read_text())
    content["provenance"]["dictionaries"]["mlp.1"]["name"] = "another"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    assert "was made with another at mlp.1" in refusal("ablate", other, *own)


def test_a_graph_is_not_tested_with_other_weights(graph, own, tmp_path):
    """A model that was trained on, in its folder or in another."""
    folder = own[own.index("--model") + 1]
    retrained = shutil.copytree(folder, tmp_path / Path(folder).name)
    weights = load_file(retrained / "model.safetensors")
    weights["model.embed_tokens.weight"] *= 1.01
    save_file(weights, retrained / "model.safetensors", metadata={"format": "pt"})
    changed = [str(retrained) if word == folder else word for word in own]
    for command in ("ablate", "faithfulness"):
        assert "was made with other weights" in refusal(command, graph, *changed)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("metric", "my own", "explains 'my own'"),
        ("prompt", None, "does not say which model and prompt"),
    ],
)
def test_a_graph_whose_question_cannot_be_rebuilt(graph, own, tmp_path, field, value, message):
    content = json.loads(graph.read_text())
    content["provenance"][field] = value
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    assert message in refusal("ablate", other, *own)


def test_info_on_what_is_not_there():
    assert "no model 'gemma-9'" in refusal("info", "gemma-9")
    message = refusal("info", "gemma-2-2b-it")
    assert "no dictionaries for 'gemma-2-2b-it'" in message
    assert "--dictionaries gemma-2-2b" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", "17k"], "no dictionary 17k wide"),
        (["--sites", "neuron"], "no kind of site 'neuron'"),
        (["--l0", "some"], "l0 is 'canonical'"),
    ],
)
def test_info_on_dictionaries_that_are_not_there(arguments, message):
    assert message in refusal("info", "gemma-2-2b", *arguments)
    assert "say which model" in refusal("info", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'MODEL'"),
        (["gemma-3"], "no model 'gemma-3'"),
        (["gemma-2-2b", "--width", "17k"], "no dictionary 17k wide"),
        (["tiny", "--sites", "neuron"], "no kind of site 'neuron'"),
        (["tiny", "--device", "toaster"], "device='toaster' cannot be used"),
        (["tiny", "--text", "nowhere.txt"], "cannot read nowhere.txt: No such file"),
        (["tiny", "--out", "gates.svg"], "its name must end in .csv, .json"),
        (["tiny", "--batch-size", "0"], "0 is not in the range x>=1"),
        (["tiny", "--memory", "lots"], "memory='lots'; write for example '20GB'"),
        (["tiny", "--memory", "1kB"], "alone takes"),
    ],
)
def test_check_before_anything_is_measured(arguments, message):
    assert message in refusal("check", *arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n  \n", "holds no texts; write one a line"),
        (b"\xff\xfe", "is not text in UTF-8"),
        (b"w1 w2\nw1 zebra\n", "text 2 of 2 cannot be read: "),
    ],
)
def test_check_on_texts_that_cannot_be_used(own, tmp_path, content, message):
    texts = tmp_path / "texts.txt"
    texts.write_bytes(content)
    assert message in refusal("check", own[1], *own[2:], "--text", texts)


def test_check_of_a_model_that_does_not_know_english(own):
    said = refusal("check", own[1], *own[2:])
    assert "text 1 of 62 cannot be read" in said
    assert "give texts of its own (--text)" in said
