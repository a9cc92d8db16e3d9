"""What a study is: which circuits are found how, and how they are tested."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from circuits import UserError
from circuits.catalogue import DEFAULT_WIDTH
from circuits.formula import DOWNSTREAM
from circuits.whole_numbers import whole_number
from experiments.circuit.runs import ERRORS
from experiments.kinds import check_kind_name
from experiments.methods import method_named
from experiments.named import prompts_named

NAMES = ("tasks", "methods", "ablations", "sites")
NUMBERS = {"sizes": 1, "seeds": 0}
"""Lists of numbers, with the least of each."""


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
        model: For `load`, as are `sites`, `dictionaries`, `width` and `l0`.
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
    width: str = DEFAULT_WIDTH
    l0: str | int = "canonical"

    def __post_init__(self) -> None:
        for name in (*NAMES, *NUMBERS):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Sequence) or not value:
                raise UserError(f"{name}={value!r}; a study takes a list, with at least one entry")
            if name in NAMES and not all(isinstance(entry, str) for entry in value):
                raise UserError(f"{name}={list(value)}; give names")
            if name in NUMBERS:
                value = [whole_number(name, entry, NUMBERS[name]) for entry in value]
            if len(set(value)) < len(value):
                raise UserError(f"{name}={list(value)}; give each once")
            object.__setattr__(self, name, tuple(value))
        for name, least in (("n_prompts", 2), ("n_heldout", 2), ("n_random", 0)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least))
        for method in self.methods:
            method_named(method)
        for ablation in self.ablations:
            check_kind_name(ablation)
        if self.downstream not in DOWNSTREAM[:2]:
            raise UserError(f"downstream={self.downstream!r}; choose {' or '.join(DOWNSTREAM[:2])}")
        if self.errors not in ERRORS:
            raise UserError(f"errors={self.errors!r}; choose {', '.join(ERRORS)}")
        for task in self.tasks:
            prompts_named(task, 1)

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
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"cannot read the study {path}: {error}") from None
    known = [field.name for field in fields(Study)]
    strangers = [key for key in told if key not in known]
    if strangers:
        raise UserError(f"{path}: a study has no {strangers[0]!r}; it has {', '.join(known)}")
    if "tasks" not in told:
        raise UserError(f'{path}: name at least one task, for example tasks = ["ioi"]')
    return Study(**{"name": path.stem, **told})
