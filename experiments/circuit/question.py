"""What a study of circuits is asked: prompts, a metric, ranked nodes, what the others become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attribution import Metric, Targets
from attribution.fingerprint import check_weights
from attribution.gradients import check_convention
from attribution.metrics import Score, metric_name
from circuits import ErrorNode, LatentNode, Prompt, Reference, SplicedModel, UserError
from experiments.checks import check_prompts, one_prompt
from experiments.circuit.cases import CircuitCases
from experiments.circuit.rankings import check_on_one, check_sites, ranked_on_many, ranked_on_one
from experiments.circuit.runs import ERRORS
from experiments.kinds import AblationKind, checked_kind, zero
from experiments.node_codes import Codes
from experiments.pooled import MetricOf, metric_of_name
from experiments.records import record_prompts
from experiments.spans import SpanNode, Spans, aligned
from graphs import AttributionGraph

SMALLEST_GAP = 0.1
"""Of |m(M)|: what is at stake is more, or shares of it would divide by next to nothing."""

MATCHED = ("site", "span")
"""What random nodes have in common with those of a circuit: the site, or the site and span."""

AnyPrompts = str | Prompt | Sequence[str | Prompt]
AnyMetric = Metric | Targets | Score | MetricOf
AnyNodes = AttributionGraph | Sequence[LatentNode | ErrorNode] | Sequence[SpanNode]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class CircuitQuestion:
    """Prompts traced and nodes read, whatever they were given as.

    Attributes:
        cases: The prompts, with all candidates.
        ranked: Nodes, best first.
        prompts: As they were given.
        metric: Its name; so are `reference`, the kind of ablation, and `ranked_by`, what made a
            graph. `reference_settings` are those of the kind.
    """

    cases: CircuitCases
    ranked: tuple[SpanNode, ...]
    prompts: Sequence[str | Prompt]
    metric: str
    reference: str
    reference_settings: Mapping[str, Any]
    ranked_by: Any

    @classmethod
    def of(
        cls,
        model: SplicedModel,
        prompts: AnyPrompts,
        metric: AnyMetric,
        nodes: AnyNodes,
        *,
        spans: Spans | None,
        reference: Reference | AblationKind | None,
        downstream: str,
        errors: str,
    ) -> CircuitQuestion:
        """Arguments as in `faithfulness_curve`.

        Raises:
            UserError: nodes of another prompt or model, or an unknown convention.
        """
        _check(downstream, errors)
        if isinstance(nodes, AttributionGraph):
            check_weights(model, nodes.provenance, "the graph")
        given: Any = metric
        if isinstance(prompts, str | Prompt):
            ids = one_prompt(model, prompts)
            asked = [prompts]
            spans = aligned(model, asked)
            ranked = ranked_on_one(model.words(ids[0]), model.reads(ids)[0], nodes, errors)
            kind, name = _kind(reference), metric_name(given)

            def metric_of(prompt: Any) -> Any:
                return given
        else:
            check_prompts(prompts, texts=True)
            asked = prompts
            spans = spans or aligned(model, asked)
            ranked = ranked_on_many(nodes, spans, errors)
            if isinstance(reference, Reference):
                raise UserError(
                    f"the reference {reference.name} is of one prompt; for several give a kind of "
                    "ablation, such as patch()"
                )
            kind, name = checked_kind(reference, name="reference"), metric_of_name(given)
            metric_of = given
        check_sites(model, ranked)
        cases = CircuitCases.of(
            model, asked, spans, metric_of, kind, errors=errors, downstream=downstream
        )
        if isinstance(prompts, str | Prompt):
            check_on_one(cases, ranked)
        made_by = nodes.provenance.get("settings") if isinstance(nodes, AttributionGraph) else None
        ranked_by = made_by or "the order given"
        return cls(cases, tuple(ranked), asked, name, kind.name, kind.settings, ranked_by)

    def groups(self, matched: str) -> Codes:
        """Of each candidate the number of its site, or site and span, `[n]`; errors apart.

        Raises:
            UserError: `matched` is neither.
        """
        if matched not in MATCHED:
            raise UserError(f"matched={matched!r}; choose {' or '.join(MATCHED)}")
        space = self.cases.space
        return (space.sites_of if matched == "site" else space.spans_of)(self.cases.codes)

    def conventions(self) -> dict[str, str]:
        """What numbers of this question depend on, by name."""
        return {
            "metric": self.metric,
            "reference": self.reference,
            "errors": self.cases.errors,
            "downstream": self.cases.downstream,
        }

    def provenance(self, settings: dict[str, Any], *, seed: int) -> dict[str, Any]:
        """Everything that numbers of this question depend on, with further `settings`."""
        told = {**self.conventions(), **settings, "ranked_by": self.ranked_by}
        told["reference_settings"] = self.reference_settings
        return record_prompts(self.cases.model, self.prompts, self.metric, told, seed=seed)


@dataclass(frozen=True, eq=False)
class Gains:
    """What circuits gain over the empty one, in the metric's units.

    Attributes:
        full: m(M) of each prompt, `[n_prompts]`; so is `empty` m(empty).
        circuits: `m(C) - m(empty)`, `[n_circuits, n_prompts]`.
    """

    full: Array
    empty: Array
    circuits: Array

    @classmethod
    def of(
        cls,
        question: CircuitQuestion,
        kept: NDArray[np.bool_],
        *,
        batch_size: int | None,
        memory: str | int | None,
    ) -> Gains:
        """Run circuits `kept [n_circuits, n]`, and the whole and the empty one beside them.

        Raises:
            UserError: the mean metric hardly changes when everything is ablated.
        """
        cases = question.cases
        ends = np.array([[True] * len(cases), [False] * len(cases)])
        metrics = cases.metrics(np.concatenate([ends, kept]), batch_size=batch_size, memory=memory)
        # all kept is the model, here in the arithmetic of the same batch
        full, empty = cases.full if cases.errors == "removed" else metrics[0], metrics[1]
        check_gap(full, empty, question.reference)
        return cls(full, empty, metrics[2:] - empty)

    @property
    def gap(self) -> Array:
        """`m(M) - m(empty)` of each prompt, `[n_prompts]`."""
        return self.full - self.empty

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Prompts where enough is at stake for an F of their own, `[n_prompts]`."""
        return enough(self.gap, self.full)

    @property
    def faithfulness(self) -> Array:
        """F of each circuit, a ratio of means over prompts, `[n_circuits]`."""
        return self.circuits.mean(1) / self.gap.mean()


def enough(at_stake: Array | float, whole: Array | float) -> NDArray[np.bool_]:
    """Whether what is at stake is more than next to nothing beside the whole metric, elementwise.

    Where it is not, shares of it are not told. A NaN is not enough.
    """
    return np.abs(at_stake) > SMALLEST_GAP * np.abs(whole)


def check_gap(full: Array, empty: Array, reference: str) -> None:
    """Refuse to divide by a difference that is next to nothing.

    Args:
        full: m(M) of each prompt, `[n_prompts]`.
        empty: m(empty).
        reference: What all nodes are set to, for the message.

    Raises:
        UserError: the mean metric hardly changes when everything is ablated.
    """
    m, rest = full.mean(), empty.mean()
    if not enough(m - rest, m):
        raise UserError(
            f"the metric is {m:.3g} and still {rest:.3g} with every latent set to {reference}, "
            f"less than {SMALLEST_GAP:.0%} of change, so faithfulness would divide by next to "
            "nothing; try another metric, reference, downstream='freeze' or errors='removed'"
        )


def _kind(reference: Reference | AblationKind | None) -> AblationKind:
    """A reference of one prompt, as a kind of ablation of that prompt; zero by default."""
    if isinstance(reference, Reference):
        return AblationKind(reference.name, lambda model, prompt: (reference,))
    return checked_kind(zero() if reference is None else reference, name="reference")


def _check(downstream: str, errors: str) -> None:
    if downstream == "drop":
        raise UserError(
            "downstream='drop'; circuits are tested under recompute and freeze, and "
            "errors='removed' in the place of drop"
        )
    check_convention(downstream)
    if errors not in ERRORS:
        raise UserError(f"errors={errors!r}; choose {', '.join(ERRORS)}")
