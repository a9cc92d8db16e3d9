"""Run a study cell by cell; what is finished is on the disk and is never computed again.

1. *Load* the model, and the prompts of each task that fit it.
2. *Rank* the nodes on the first prompts, by the cell's method.
3. *Test* the circuits of all sizes on the held-out prompts.
4. *Write* the cell, whole or not at all; a run that is stopped goes on after the last one written.
"""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from attribution.digest import digest
from attribution.fingerprint import check_weights
from circuits import SplicedModel, UserError, load
from circuits.files import write_atomically
from circuits.formats.array_files import read_json
from experiments.circuit.faithfulness import faithfulness_curve
from experiments.datasets import Pairs
from experiments.kinds import kind_named
from experiments.methods import Question, method_named
from experiments.named import prompts_named, spans_for
from experiments.pooled import MetricOf
from experiments.spans import Spans
from experiments.study.declaration import Cell, Study
from experiments.study.report import StudyReport

FORMAT = "gemma-circuits study 3"


@dataclass(frozen=True)
class _Material:
    """A task's prompts for one seed: to rank nodes on, and to test circuits on."""

    prompts: Pairs
    heldout: Pairs
    metric: MetricOf
    spans: Spans
    heldout_spans: Spans

    def told(self) -> str:
        """How many pairs there are, and what was left out and why."""
        same = self.heldout.left_out == self.prompts.left_out
        tested = f"{len(self.heldout)} others" if same else self.heldout.report()
        return f"ranked on {self.prompts.report()}; tested on {tested}"

    def digest(self) -> str:
        """What tells these prompts from others."""
        return digest([[asdict(p) for p in pairs] for pairs in (self.prompts, self.heldout)])


def run_study(
    study: Study, folder: str | Path, *, model: SplicedModel | None = None
) -> StudyReport:
    """Run what of `study` is not in `folder` yet, and give the report of all its cells.

    Args:
        study: The declaration.
        folder: Holds `study.json` and a file a cell; made if it is not there.
        model: The study's model, if it is loaded already.

    Raises:
        UserError: the folder holds a study with other settings, prompts or weights, or something
            else, or a cell cannot be run; finished cells stay.
    """
    folder = Path(folder)
    _open(folder, study)
    todo = [cell for cell in study.cells() if not cell_path(folder, cell).exists()]
    if todo and model is None:
        model = load(
            study.model, dictionaries=study.dictionaries, sites=study.sites, width=study.width,
            l0=study.l0,
        )  # fmt: skip
    if model is not None:
        for path in (folder / "cells").glob("*.json"):
            check_weights(model, read_json(path).get("provenance", {}), path)
        material = _prepare(model, study, {cell.task for cell in todo}, folder)
        for cell in tqdm(todo, f"study {study.name}", unit="cell", disable=None):
            result = run_cell(model, study, cell, material[cell.task, cell.seed])
            text = json.dumps({"cell": asdict(cell), **result}, indent=1) + "\n"
            write_atomically(cell_path(folder, cell), text, overwrite=True)
    cells = [read_json(cell_path(folder, cell)) for cell in study.cells()]
    return StudyReport(study=study, cells=tuple(cells))


def run_cell(model: SplicedModel, study: Study, cell: Cell, material: _Material) -> dict[str, Any]:
    """Rank, test, and give the curve with the ranking's first nodes, JSON-able."""
    kind = kind_named(cell.ablation, material.prompts, seed=cell.seed)
    question = Question(
        model, material.prompts, material.spans, material.metric, kind, study.downstream, cell.seed
    )
    ranking = method_named(cell.method).rank(question, errors=study.errors == "scored")
    curve = faithfulness_curve(
        model,
        material.heldout,
        material.metric,
        ranking,
        sizes=study.sizes,
        spans=material.heldout_spans,
        reference=kind,
        downstream=study.downstream,
        errors=study.errors,
        n_random=study.n_random,
        seed=cell.seed,
    )
    rows = json.loads(curve.frame().to_json(orient="records") or "[]")
    return {
        "ranking": [str(node) for node in ranking[: max(study.sizes)]],
        "curve": rows,
        "area": curve.area,
        "excess_area": curve.excess_area,
        "prompts": material.digest(),
        "pairs": material.told(),
        "provenance": curve.provenance,
    }


def cell_path(folder: Path, cell: Cell) -> Path:
    """Where a cell is kept."""
    words = "_".join((cell.task, cell.method, cell.ablation, str(cell.seed)))
    safe = "".join(letter if letter.isalnum() else "-" for letter in words)
    return folder / "cells" / f"{safe}-{digest(asdict(cell))[:8]}.json"


def _prepare(
    model: SplicedModel, study: Study, tasks: Container[str], folder: Path
) -> dict[tuple[str, int], _Material]:
    """The prompts of `tasks` by task and seed, as long as they are those of the finished cells."""
    material: dict[tuple[str, int], _Material] = {}
    for cell in study.cells():
        if cell.task not in tasks:
            continue
        key, path = (cell.task, cell.seed), cell_path(folder, cell)
        if key not in material:
            material[key] = _material(model, study, *key)
        if path.exists() and read_json(path).get("prompts") != material[key].digest():
            raise UserError(
                f"{path} was run on other prompts than {cell.task} has now; "
                "give a new folder, or the prompts as they were"
            )
    return material


def _material(model: SplicedModel, study: Study, task: str, seed: int) -> _Material:
    heldout, prompts, metric = prompts_named(
        task, study.n_heldout, seed, n_others=study.n_prompts, model=model
    )
    for name, some in (("rank nodes on", prompts), ("test circuits on", heldout)):
        if not len(some):
            raise UserError(f"{task} has no prompts to {name} that {model.name} can read")
    how = spans_for(model, task, [*prompts, *heldout])
    return _Material(prompts, heldout, metric, how(prompts), how(heldout))


def _open(folder: Path, study: Study) -> None:
    """Make the folder, or check that it holds cells of the same settings."""
    try:
        (folder / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from None
    path, told = folder / "study.json", {"format": FORMAT, "settings": study.settings()}
    if not path.exists():
        others = [file.name for file in folder.iterdir() if file.name != "cells"]
        if others:
            raise UserError(f"{folder} holds other files ({others[0]}); give a new folder")
        write_atomically(path, json.dumps(told, indent=1) + "\n", overwrite=True)
        return
    found = read_json(path)
    if found.get("format") != FORMAT:
        raise UserError(f"{path} is no study of this version ({FORMAT}); give a new folder")
    changed = [k for k, v in told["settings"].items() if found["settings"].get(k) != v]
    if changed:
        key = changed[0]
        raise UserError(
            f"{folder} was run with {key}={found['settings'].get(key)!r}, now "
            f"{told['settings'][key]!r}; give a new folder, or the same settings (tasks, methods, "
            "ablations and seeds may be added)"
        )
