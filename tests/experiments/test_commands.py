"""What all commands have in common: the options of loading, and mistakes told in one sentence."""

import pytest
from click.testing import CliRunner

from circuits import UserError
from experiments.cli import main
from experiments.tiny.quality import main as quality

ONE_PROMPT = {
    "trace": [],
    "ablate": [],
    "faithfulness": [],
    "edges": [],
    "path": ["--from", "mlp.0/latent.3@2"],
}
MANY_PROMPTS = {
    "table": [],
    "report": [],
    "circuit": [],
    "kinds": [],
    "minimality": [],
    "steer": ["--latent", "mlp.0/latent.3"],
}
MODEL = ["--model", "gemma-2-27b"]
LOADING = {
    "check": ["gemma-2-27b"],
    **{name: ["w1 w2", *MODEL, *own] for name, own in ONE_PROMPT.items()},
    **{name: ["--task", "ioi", *MODEL, *own] for name, own in MANY_PROMPTS.items()},
}
"""Every command that loads a model, with what it needs."""


def said(*arguments) -> str:
    """What a command that refuses says, in one sentence."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 2, (result.output, result.exception)
    (line,) = result.stderr.splitlines()
    return line


def test_every_command_loads_or_says_what_there_is():
    assert set(main.commands) == {*LOADING, "info", "study"}


@pytest.mark.parametrize("command", LOADING)
def test_what_to_load_is_said_in_one_way(command, monkeypatch):
    asked = {}

    def load(name, **choice):
        asked.update(choice, name=name)
        raise UserError("enough")

    monkeypatch.setattr("circuits.load", load)
    options = ["--dictionaries", "mine", "--sites", "resid, mlp", "--width", "131k",
               "--l0", "nearest:50", "--device", "cpu", "--memory", "20GB"]  # fmt: skip
    assert said(command, *LOADING[command], *options) == "circuits: error: enough"
    assert asked == {
        "name": "gemma-2-27b", "dictionaries": "mine", "sites": ["resid", "mlp"],
        "width": "131k", "l0": "nearest:50", "device": "cpu", "memory": "20GB",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("caf\xe9".encode("latin1"), "is not text in UTF-8; save it as such"),
        (b"\n \n", "holds no texts; write one a line"),
        (None, "No such file or directory; give a text file"),
    ],
)
@pytest.mark.parametrize("option", ["--text", "--neutral"])
def test_texts_are_read_before_a_model_is_loaded(monkeypatch, tmp_path, option, content, message):
    monkeypatch.setattr("circuits.load", None)
    path = tmp_path / "texts.txt"
    if content is not None:
        path.write_bytes(content)
    command = "check" if option == "--text" else "steer"
    assert message in said(command, *LOADING[command], option, path)


def test_the_quality_of_the_bundled_model_does_not_replace_a_file(tmp_path):
    path = tmp_path / "quality.md"
    path.write_text("old")
    result = CliRunner().invoke(quality, ["--save", str(path)])
    assert result.exit_code == 2
    assert "exists already; pass" in result.stderr


@pytest.mark.parametrize("command", ["faithfulness", "edges", *MANY_PROMPTS])
def test_a_seed_below_0_is_refused_before_a_model_is_loaded(command, monkeypatch):
    monkeypatch.setattr("circuits.load", None)
    assert "-1 is not in the range x>=0" in said(command, *LOADING[command], "--seed", -1)
