"""Circuits beside each other: what they share, and how one serves another's task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from matplotlib.figure import Figure

from attribution import logit_diff
from circuits import Prompt, SplicedModel, UserError
from circuits.whole_numbers import checked_seed, whole_number
from experiments.checks import check_prompts
from experiments.circuit.faithfulness import faithfulness_curve
from experiments.circuit.rankings import Ranking
from experiments.kinds import AblationKind, checked_kind
from experiments.pooled import MetricOf, metric_of_name
from experiments.records import record_prompts
from experiments.results import Result
from experiments.spans import ALL, whole

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, eq=False, repr=False)
class Overlap(Result):
    """What rankings have in common; a row a pair and a size.

    Columns of `frame()`: `circuit`, `other`, `size`; `shared` nodes among the first `size` of both,
    `jaccard`: shared over all of both; `expected_jaccard`: of two random sets of that size among
    the nodes that either ranks.

    Attributes:
        names: Of the circuits.
        rows: The columns above.
        provenance: How the circuits were found, as far as it was told.
    """

    kind: ClassVar[str] = "overlap of circuits"
    shown: ClassVar[tuple[str, ...]] = (
        "circuit", "other", "size", "shared", "jaccard", "expected_jaccard",
    )  # fmt: skip

    names: tuple[str, ...]
    rows: DataFrame
    provenance: dict[str, Any]

    def frame(self) -> DataFrame:
        """One line a pair and a size."""
        return self.rows

    def figure(self) -> Figure:
        """The Jaccard index of every pair at the largest size; blank where one is shorter."""
        size = int(np.max(self.rows["size"]))
        n = len(self.names)
        grid = np.full((n, n), np.nan)
        np.fill_diagonal(grid, 1)
        for row in self.rows.to_dict("records"):
            if row["size"] == size:
                i, j = (self.names.index(row[end]) for end in ("circuit", "other"))
                grid[i, j] = grid[j, i] = row["jaccard"]
        return heatmap(grid, self.names, self.names, f"Jaccard index of the first {size} nodes")


def circuit_overlap(
    rankings: Mapping[str, Ranking],
    *,
    sizes: Sequence[int] = (10, 30, 100),
    settings: dict[str, Any] | None = None,
) -> Overlap:
    """How many of the first nodes each pair of rankings shares.

    Args:
        rankings: By the name of the circuit: a method, a task, a model. Each node counts once.
        sizes: How many first nodes are compared; a size above a ranking's length is left out.
        settings: How the circuits were found, JSON-able, for the record.

    Raises:
        UserError: fewer than two rankings, a size below 1, or all sizes too large.
    """
    import pandas as pd

    names = tuple(rankings)
    if len(names) < 2:
        raise UserError(f"{len(names)} circuits; an overlap is of two or more")
    sizes = [whole_number("sizes", size) for size in sizes]
    rankings = {name: list(dict.fromkeys(ranking)) for name, ranking in rankings.items()}
    rows = []
    for i, name in enumerate(names):
        for other in names[i + 1 :]:
            every = set(rankings[name]) | set(rankings[other])
            for size in sizes:
                if size <= min(len(rankings[name]), len(rankings[other])):
                    first, second = (set(rankings[key][:size]) for key in (name, other))
                    shared = len(first & second)
                    rows.append(
                        {
                            "circuit": name,
                            "other": other,
                            "size": size,
                            "shared": shared,
                            "jaccard": shared / (2 * size - shared),
                            "expected_jaccard": _expected_jaccard(size, len(every)),
                        }
                    )
    if not rows:
        raise UserError(f"sizes {list(sizes)} are above the number of nodes; give smaller ones")
    return Overlap(names, pd.DataFrame(rows), {"settings": settings or {}})


def _expected_jaccard(size: int, n: int) -> float:
    """Of two random sets of `size` among `n`: the mean over the hypergeometric overlap."""
    from scipy.stats import hypergeom

    shared = np.arange(size + 1)
    return float(hypergeom.pmf(shared, n, size, size) @ (shared / (2 * size - shared)))


@dataclass(frozen=True, eq=False, repr=False)
class CrossTask(Result):
    """How faithful the circuit of one task is to another; a row a pair.

    Columns of `frame()`: `circuit` (the task it was found on), `task` (the one it is tested on),
    `size`, `faithfulness`, `random_mean`, the mean of matched random circuits (NaN for a circuit
    that is tested on another task: there are none beside it), `metric` and `n_prompts` of the task.

    Attributes:
        tasks: Names.
        faithfulness: `[circuit, task]`.
        rows: The columns above.
        conventions: Kind of ablation, errors, downstream.
        provenance: By task.
    """

    kind: ClassVar[str] = "cross-task faithfulness"
    shown: ClassVar[tuple[str, ...]] = (
        "circuit", "task", "size", "faithfulness", "random_mean",
    )  # fmt: skip

    tasks: tuple[str, ...]
    faithfulness: np.ndarray
    rows: DataFrame
    conventions: dict[str, str]
    provenance: dict[str, Any]

    def frame(self) -> DataFrame:
        """One line a pair, with the conventions as columns."""
        return self.rows.assign(**self.conventions)

    def figure(self) -> Figure:
        """F of each circuit on each task."""
        told = ", ".join(f"{key} {value}" for key, value in self.conventions.items())
        title = f"F of circuits of {self.rows['size'].max()} nodes\n{told}"
        return heatmap(
            self.faithfulness, self.tasks, self.tasks, title, across="tested on", down="found on"
        )


def cross_task(
    model: SplicedModel,
    rankings: Mapping[str, Ranking],
    prompts: Mapping[str, Sequence[Prompt]],
    metrics: Mapping[str, MetricOf] | None = None,
    *,
    size: int = 100,
    kind: AblationKind | None = None,
    downstream: str = "recompute",
    errors: str = "kept",
    n_random: int = 20,
    seed: int = 0,
) -> CrossTask:
    """Test the circuit of each task on every task.

    Positions of different tasks have nothing in common: nodes are latents anywhere in the prompt
    (spans `whole`), in rankings and in tests.

    Args:
        rankings: By task, nodes of the span `all`.
        prompts: By task, prompts that had no part in the ranking.
        metrics: By task, from a prompt to its metric; `logit_diff` by default.
        size: Nodes of a circuit.
        kind: What is outside a circuit is set to; `patch()` by default.
        downstream, errors, seed: As in `faithfulness_curve`.
        n_random: Random circuits beside each task's own circuit.

    Raises:
        UserError: rankings and prompts are of different tasks, a metric of another one, or nodes of
            other spans.
    """
    import pandas as pd

    kind = checked_kind(kind)
    n_random, seed = whole_number("n_random", n_random, 0), checked_seed(seed)
    metrics = metrics or {}
    _check_tasks(rankings, prompts, metrics)
    tasks = tuple(rankings)
    rows, records = [], {}
    conventions = {"reference": kind.name, "errors": errors, "downstream": downstream}
    settings = {**conventions, "reference_settings": kind.settings}
    settings |= {"size": size, "n_random": n_random}
    for task in tasks:
        metric = metrics.get(task, logit_diff)
        records[task] = record_prompts(
            model, prompts[task], metric_of_name(metric), settings, seed=seed
        )
        for circuit in tasks:
            curve = faithfulness_curve(
                model, prompts[task], metric, rankings[circuit], sizes=[size],
                spans=whole(model, prompts[task]), reference=kind, downstream=downstream,
                errors=errors, n_random=n_random if circuit == task else 0, seed=seed,
            )  # fmt: skip
            score = curve.scores[0]
            rows.append(
                {
                    "circuit": circuit,
                    "task": task,
                    "size": score.size,
                    "faithfulness": score.faithfulness,
                    "random_mean": score.random_mean,
                    "metric": curve.metric,
                    "n_prompts": curve.n_prompts,
                }
            )
    table = pd.DataFrame(rows)
    grid = table.pivot(index="circuit", columns="task", values="faithfulness")
    return CrossTask(
        tasks=tasks,
        faithfulness=grid.loc[list(tasks), list(tasks)].to_numpy(),
        rows=table,
        conventions=conventions,
        provenance=records,
    )


def _check_tasks(
    rankings: Mapping[str, Ranking],
    prompts: Mapping[str, Sequence[Prompt]],
    metrics: Mapping[str, MetricOf],
) -> None:
    """Refuse what is not of the same tasks, or says nothing of another one."""
    if set(rankings) != set(prompts):
        raise UserError(
            f"rankings of {sorted(rankings)} and prompts of {sorted(prompts)}; give both"
        )
    if strangers := set(metrics) - set(rankings):
        own = ", ".join(rankings)
        raise UserError(f"metrics of {sorted(strangers)}; give them for {own} alone")
    for each in prompts.values():
        check_prompts(each)
    if any(node.span != ALL for ranking in rankings.values() for node in ranking):
        raise UserError(
            "nodes of named or aligned spans mean nothing in another task; rank with "
            "spans=whole(model, prompts)"
        )


def heatmap(
    grid: np.ndarray,
    down_names: Sequence[str],
    across_names: Sequence[str],
    title: str,
    *,
    across: str = "",
    down: str = "",
) -> Figure:
    """Shares from 0 to 1 as colours with their numbers; NaN is left blank."""
    size = 1.6 + 0.55 * max(grid.shape)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(grid, vmin=0, vmax=1, cmap="Blues")
    for i, j in zip(*(~np.isnan(grid)).nonzero(), strict=True):
        colour = "white" if grid[i, j] > 0.6 else "black"
        axes.text(j, i, f"{grid[i, j]:.2f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(across_names)), labels=list(across_names), rotation=45, ha="right")
    axes.set_yticks(range(len(down_names)), labels=list(down_names))
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    axes.set_title(title, fontsize=9, parse_math=False)
    return figure
