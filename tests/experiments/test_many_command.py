"""A command over many prompts gets as many as fit the model, and says what did not."""

import json

import pytest
from click.testing import CliRunner

from circuits import UserError
from experiments.cli import main
from tests.experiments.test_named import UNREAD, rows

SMALL = ["--prompts", 3, "--top", 2, "--controls", 0, "--sites", "mlp"]


def table(path, *options):
    arguments = ["table", "--task", path, *SMALL, *options]
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def write(tmp_path):
    def written(*, known: int, unknown: int):
        """A file of pairs that the model cannot read, and after them of those that it can."""
        columns = "clean_prefix", "patch_prefix", "clean_answer", "patch_answer"
        every = list(dict.fromkeys(row[0] for row in rows()))
        known_rows = [row for row in rows() if row[0] in every[:known]]
        strange = [("the xylophone", *row[1:]) for row in list(rows())[:unknown]]
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in strange + known_rows]
        path = tmp_path / "mine.jsonl"
        path.write_text("\n".join(lines))
        return path

    return written


def test_what_does_not_fit_takes_no_place_and_is_told(write):
    result = table(write(known=8, unknown=5))
    assert result.exit_code == 0, result.output
    assert "tiny: 3 prompts of" in result.stdout
    (told,) = [line for line in result.stderr.splitlines() if "left out" in line]
    assert told.startswith("asked for 3: 3 pairs of mine.jsonl; ")
    assert f"5 left out: {UNREAD} ('the xylophone')" in told


def test_too_few_are_told_or_refused(write):
    few = table(write(known=2, unknown=5))
    assert few.exit_code == 0, few.output
    assert "asked for 3: 2 pairs of mine.jsonl; 5 left out" in few.stderr
    assert "asked for 3 others: 0 pairs" in few.stderr
    none = table(write(known=1, unknown=5))
    assert none.exit_code == 2
    assert "1 of the pairs of" in none.stderr
    assert "give another task, or a model that knows its words" in none.stderr


def test_steering_asks_for_no_kind_and_takes_partners_of_any_length(tmp_path, monkeypatch):
    asked = {}

    def steered(model, prompts, *args, **options):
        asked["prompts"] = prompts
        raise UserError("enough")

    monkeypatch.setattr("experiments.steering.dose_response.steer", steered)
    columns = "clean_prefix", "patch_prefix", "clean_answer", "patch_answer"
    pairs = [dict(zip(columns, row, strict=True)) for row in rows()]
    longer = [{**pair, "patch_prefix": f"{pair['patch_prefix']} near"} for pair in pairs]
    path = tmp_path / "longer.jsonl"
    path.write_text("\n".join(map(json.dumps, longer)))
    command = ["steer", "--task", str(path), "--latent", "mlp.0/latent.3", "--prompts", "3"]
    assert "enough" in CliRunner().invoke(main, command).stderr
    assert len(asked["prompts"]) == 3
    assert "No such option" in CliRunner().invoke(main, [*command, "--kind", "zero"]).stderr


def test_a_wrong_kind_is_refused_before_a_model_is_loaded(write, monkeypatch):
    monkeypatch.setattr("circuits.load", None)
    result = table(write(known=8, unknown=0), "--kind", "magic")
    assert result.exit_code == 2
    assert "no kind of ablation 'magic'" in result.stderr
