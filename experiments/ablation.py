"""Ablate each node of a list: what was attributed to it beside what the metric really loses.

    measured(node) = metric(clean) - metric(node set to its reference value)

has the sign and the units of the attributed `d metric / d value . (value - reference value)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from attribution import Metric, Targets, total_effects
from attribution.effects import GRADIENT_X_ACTIVATION
from attribution.gradients import check_batch_size
from attribution.metrics import Score, bind, metric_name
from attribution.record import record
from circuits import (
    ErrorNode,
    LatentNode,
    Prompt,
    Reference,
    SplicedModel,
    UserError,
    set_to,
    zero_reference,
)
from circuits.formula import check_downstream
from circuits.interventions import check_nodes
from circuits.nodes import parse_node
from circuits.reference import check_reference
from experiments.checks import one_prompt
from experiments.measure import measure
from experiments.plots import ablation_figure
from experiments.results import Result
from experiments.statistics import pearson

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True)
class AblationRow:
    """One node's two numbers, in the metric's units.

    Attributes:
        node: A latent or an error.
        word: The token at its position.
        act: The latent's activation on the prompt; the norm of an error.
        baseline: The value it was set to; the norm of an error.
        attributed: The estimated effect; NaN for a metric without a gradient on the clean run.
        measured: What the metric lost when the node was set to `baseline`.
        label: What the node stands for, where it is known.
    """

    node: LatentNode | ErrorNode
    word: str
    act: float
    baseline: float
    attributed: float
    measured: float
    label: str | None = None


@dataclass(frozen=True)
class Ablations(Result, Sequence[AblationRow]):
    """A row for each ablated node, in the order asked for, and the conventions of both numbers.

    Attributes:
        rows: Also reached as `ablations[i]`, and by iterating.
        metric: The metric's name.
        clean: The metric before the ablations (with `downstream="drop"`, without errors).
        estimator: Of the attributed effects.
        attributed_downstream: Convention of the attributed effects. Theirs is the ablations', but
            for `drop`, under which gradients are not defined: there it is `freeze`.
        downstream: What errors downstream of an ablation do: `recompute`, `freeze` or `drop`.
        reference: Which values ablated nodes are set to: `zero`, `corrupted`, `mean`, ...
        provenance: Model, dictionaries, prompt, metric, settings, versions; JSON-able.
    """

    kind: ClassVar[str] = "ablations"
    shown: ClassVar[tuple[str, ...]] = ("node", "word", "attributed", "measured", "label")

    rows: tuple[AblationRow, ...]
    metric: str
    clean: float
    estimator: str
    attributed_downstream: str
    downstream: str
    reference: str
    provenance: dict[str, Any]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[AblationRow]:
        return iter(self.rows)

    @property
    def settings(self) -> dict[str, str]:
        """The conventions, for captions: `graphs.with_measured(graph, rows, settings=...)`."""
        return {"downstream": self.downstream, "reference": self.reference}

    @property
    def correlation(self) -> float:
        """Pearson's r of attributed and measured; NaN for fewer than two rows or without spread."""
        return pearson([r.attributed for r in self.rows], [r.measured for r in self.rows])

    def labelled(self, labels: Mapping[LatentNode, str]) -> Ablations:
        """The same, with labels such as `graphs.labels_of` gives."""
        rows = (
            replace(row, label=labels.get(row.node)) if isinstance(row.node, LatentNode) else row
            for row in self
        )
        return replace(self, rows=tuple(rows))

    def frame(self) -> DataFrame:
        """One line a node; conventions are columns, so that a line says what it is on its own."""
        import pandas as pd

        return pd.DataFrame(
            {
                "node": [str(r.node) for r in self],
                "site": [str(r.node.site) for r in self],
                "pos": [r.node.pos for r in self],
                "word": [r.word for r in self],
                "label": [r.label for r in self],
                "act": [r.act for r in self],
                "baseline": [r.baseline for r in self],
                "attributed": [r.attributed for r in self],
                "measured": [r.measured for r in self],
                "metric": self.metric,
                "estimator": self.estimator,
                "attributed_downstream": self.attributed_downstream,
                "downstream": self.downstream,
                "reference": self.reference,
            }
        )

    def figure(self) -> Figure:
        """Attributed against measured effects, coloured by kind of site."""
        return ablation_figure(self)


def ablate_each(
    model: SplicedModel,
    prompt: str | Prompt,
    metric: Metric | Targets | Score,
    nodes: Sequence[LatentNode | ErrorNode | str],
    *,
    reference: Reference | None = None,
    downstream: str = "recompute",
    batch_size: int | None = None,
) -> Ablations:
    """Set each of `nodes` alone to its reference value and measure what the metric loses.

    Attribution by gradient x activation with the same reference and the same convention for what
    lies downstream is set beside it. It estimates the effect of *one* node, as measured here.

    Args:
        model: The spliced model.
        prompt: One text.
        metric: A `Metric`, `Targets` (their weighted sum), or a function from logits
            `[batch, pos, vocab]` to `[batch]`.
        nodes: Latents and errors, for example `graph.latents(top=10)`, or their names.
        reference: The values they are set to; zero by default.
        downstream: What errors downstream do. `recompute`: they follow the ablated pass, as in
            the real model. `freeze`: they keep their clean values. `drop`: there are none, not in
            the clean pass either; attributed effects are then those of `freeze`.
        batch_size: Ablations of one forward pass at most; by default as many as 256 MB of latents
            allow.

    Raises:
        UserError: several prompts, a node that cannot be ablated, an unknown convention, or a
            reference of another length.
    """
    check_downstream(downstream)
    check_batch_size(batch_size)
    if isinstance(nodes, str) or not isinstance(nodes, Sequence):
        raise UserError(
            f"give a list of latents and errors, such as graph.latents(top=10); "
            f"got {type(nodes).__name__}"
        )
    ablated_nodes: list[Any] = [parse_node(n) if isinstance(n, str) else n for n in nodes]
    ids = one_prompt(model, prompt)
    reference = reference or zero_reference(model, prompt)
    check_reference(model, reference, ids)
    check_nodes(model, ids, ablated_nodes)
    attributed_downstream = "freeze" if downstream == "drop" else downstream
    effects = None  # where it is flat, nothing can be attributed
    if not (isinstance(metric, Metric | Targets) and metric.flat_at_clean):
        effects = total_effects(
            model, prompt, metric, downstream=attributed_downstream, reference=reference
        )
    rows = [[set_to(node, reference.value(node))] for node in ablated_nodes]
    clean, ablated = measure(
        model, ids, bind(metric, model), rows, downstream=downstream, batch_size=batch_size
    )
    values = Reference("clean", model.trace(ids))
    words = model.words(ids[0])
    found = [
        AblationRow(
            node=node,
            word=words[node.pos],
            act=_size(values.value(node)),
            baseline=_size(reference.value(node)),
            attributed=math.nan if effects is None else effects.of(node),
            measured=clean - value,
        )
        for node, value in zip(ablated_nodes, ablated.tolist(), strict=True)
    ]
    settings = {
        "estimator": GRADIENT_X_ACTIVATION,
        "attributed_downstream": attributed_downstream,
        "downstream": downstream,
        "reference": reference.name,
    }
    return Ablations(
        rows=tuple(found),
        metric=metric_name(metric),
        clean=clean,
        **settings,
        provenance={**record(model, prompt, metric_name(metric), settings), "clean": clean},
    )


def _size(value: Tensor) -> float:
    """A latent's activation as it is, the norm of an error."""
    return (value.norm() if value.ndim else value).item()
