"""What a study is: which circuits are found how, and how they are tested."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from circuits import UserError
from circuits.formula import DOWNSTREAM
from experiments.circuit.runs import ERRORS
from experiments.methods import method_named

LISTS = ("tasks", "methods", "ablations", "sizes", "seeds", "sites")


@dataclass(frozen=True)
class Cell:
    """One combination of a study: a circuit ranked by `method` and tested by `ablation`."""

    task: str
    method: str
    ablation: str
    seed: int


@dataclass(frozen=True)
class Study:
    """A grid of circuits: every task x method x ablation x seed is a cell, tested at all sizes.

    Attributes:
        name: Of the report.
        tasks: Tasks of the bundled model, named data sets, or files of pairs.
        methods: Names of `experiments.methods.METHODS`.
        ablations: Kinds of ablation: `patch`, `mean`, `resample`, `zero`.
        sizes: Numbers of nodes in a circuit.
        seeds: Each draws other prompts, donors and random circuits.
        n_prompts: Prompts that nodes are ranked on.
        n_heldout: Other prompts, that circuits are tested on.
        n_random: Matched random circuits at each size.
        downstream: What errors downstream of an ablation do, in ranking and in testing.
        errors: What becomes of errors: `kept`, `scored` or `removed`.
        model: For `load`, as are `sites` and `dictionaries`.
    """

    name: str
    tasks: Sequence[str]
    methods: Sequence[str] = ("gradient x activation", "integrated gradients", "random")
    ablations: Sequence[str] = ("patch",)
    sizes: Sequence[int] = (10, 30, 100, 300)
    seeds: Sequence[int] = (0,)
    n_prompts: int = 20
    n_heldout: int = 20
    n_random: int = 20
    downstream: str = "recompute"
    errors: str = "kept"
    model: str = "tiny"
    sites: Sequence[str] = ("attn", "mlp", "resid")
    dictionaries: str | None = None

    def __post_init__(self) -> None:
        for name in LISTS:
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Sequence) or not value:
                raise UserError(f"{name}={value!r}; a study takes a list, with at least one entry")
            if len(set(value)) < len(value):
                raise UserError(f"{name}={list(value)}; give each once")
            object.__setattr__(self, name, tuple(value))
        for name in ("n_prompts", "n_heldout", "n_random"):
            least = 0 if name == "n_random" else 2
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UserError(f"{name}={value!r}; give a number from {least} on")
        if not all(isinstance(size, int) and size > 0 for size in self.sizes):
            raise UserError(f"sizes={list(self.sizes)}; give numbers of nodes, from 1 on")
        if not all(isinstance(seed, int) and seed >= 0 for seed in self.seeds):
            raise UserError(f"seeds={list(self.seeds)}; give numbers from 0 on")
        for method in self.methods:
            method_named(method)
        if self.downstream not in DOWNSTREAM[:2]:
            raise UserError(f"downstream={self.downstream!r}; choose {' or '.join(DOWNSTREAM[:2])}")
        if self.errors not in ERRORS:
            raise UserError(f"errors={self.errors!r}; choose {', '.join(ERRORS)}")

    def cells(self) -> Iterator[Cell]:
        """Every combination; the cells of one task follow each other."""
        for task, seed, ablation, method in product(
            self.tasks, self.seeds, self.ablations, self.methods
        ):
            yield Cell(task, method, ablation, seed)

    def settings(self) -> dict[str, Any]:
        """Everything that a cell depends on besides itself, JSON-able."""
        told = asdict(self)
        for name in ("name", "tasks", "methods", "ablations", "seeds"):
            del told[name]
        return {key: list(v) if isinstance(v, tuple) else v for key, v in told.items()}


def read_study(path: str | Path) -> Study:
    """The study that a TOML file declares: the fields of `Study`, one a line.

    Raises:
        UserError: the file cannot be read, or says something that is no field.
    """
    path = Path(path)
    try:
        told = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"cannot read the study {path}: {error}") from None
    known = [field.name for field in fields(Study)]
    strangers = [key for key in told if key not in known]
    if strangers:
        raise UserError(f"{path}: a study has no {strangers[0]!r}; it has {', '.join(known)}")
    if "tasks" not in told:
        raise UserError(f'{path}: name at least one task, for example tasks = ["ioi"]')
    return Study(**{"name": path.stem, **told})
