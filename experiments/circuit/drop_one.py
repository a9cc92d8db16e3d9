"""Which nodes of a circuit it needs: each dropped alone, beside random nodes added to it.

The hypothesis test of minimality of Shi et al. (2024, "Hypothesis Testing the Circuit Hypothesis in
LLMs", arXiv 2410.13032), for nodes instead of edges:

1. *Drop*: `|F(C) - F(C without v)|` of each node v of the circuit C.
2. *Inflate*: C with a random node r from outside of it, and r dropped again:
   `|F(C with r) - F(C)|`. Random nodes are matched: a node of C is drawn, and r from the other
   candidates of its site (or site and span), with replacement, `n_inflations` times.
3. *Test* each node against all of these drops. Two questions, of which at most one has the answer
   yes:

   - *Necessary*: is its drop larger than a random node's? With n inflations, b of them with at
     least its drop, `p = (1 + b) / (1 + n)`, corrected for all nodes (Benjamini-Hochberg). Where
     F is higher without the node, it is *opposing* instead.
   - *Superfluous*: is its drop not even above 90 % of theirs? This is Shi et al.'s test: with s
     smaller drops among n, p is the binomial probability of at most s at a rate of 0.9, corrected
     by Bonferroni. A circuit with such a node is not minimal.

Dropping one node at a time does not see redundancy: of two nodes of which one is enough, neither is
necessary. `kept_alone` therefore says how faithful the necessary nodes are by themselves. And nodes
are necessary for what their circuit does: where F(C) is next to nothing, so are the losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from attribution.gradients import check_batch_size
from circuits import Reference, SplicedModel, UserError
from circuits.whole_numbers import checked_seed, number_or_none, whole_number
from experiments.circuit.drop_one_plot import minimality_figure
from experiments.circuit.question import AnyMetric, AnyNodes, AnyPrompts, CircuitQuestion, Gains
from experiments.kinds import AblationKind
from experiments.level import LEVEL
from experiments.node_codes import Codes
from experiments.pooled import pairs_of
from experiments.results import Result
from experiments.spans import SpanNode, Spans
from experiments.statistics import benjamini_hochberg, ratio_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

QUANTILE = 0.9
"""Of random nodes' drops: where a node's is surely below it, the circuit does not need it."""

LEAST = ceil(1 / LEVEL)
"""Random nodes: of fewer no p could be below `LEVEL`."""

NOISE = 1e-5
"""Drops of F below it are float32's and count as none."""

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Minimality(Result):
    """A row a node of the circuit, the largest drop first.

    Columns of `frame()`, F being a share without a unit:

    - `loss`, `low`, `high`: F(C) - F(C without the node) and its 95 % interval by prompt pairs;
      below 0 where the circuit is better without the node. The drop is its size.
    - `percentile`: share of random added nodes with a smaller drop.
    - `p`, `q`: of the drop being as large for a random node; q over all nodes.
    - `p_superfluous`: of so small a drop where it is above 90 % of random nodes'; Bonferroni.
    - `verdict`: `necessary` or, with a loss below 0, `opposing` (q at most 0.05), `superfluous`
      (p_superfluous at most 0.05), or `undecided`.

    Attributes:
        nodes: In the order of the rows.
        table: The columns above.
        inflations: Drops of the random nodes added to the circuit, `[n_inflations]`.
        faithfulness: F(C), how sufficient the circuit is.
        completeness: F(M without C); 1 less it says how necessary the circuit is.
        kept_alone: F of the necessary nodes without the rest of the circuit.
        n_prompts: How many prompts.
        conventions: Metric, kind of ablation, errors, downstream, what random nodes match.
        provenance: Everything that the numbers depend on.
    """

    kind: ClassVar[str] = "minimality"
    shown: ClassVar[tuple[str, ...]] = (
        "node", "loss", "low", "high", "percentile", "q", "p_superfluous", "verdict",
    )  # fmt: skip

    nodes: tuple[SpanNode, ...]
    table: DataFrame
    inflations: Array
    faithfulness: float
    completeness: float
    kept_alone: float
    n_prompts: int
    conventions: dict[str, str]
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        told = ", ".join(f"{key} {value}" for key, value in self.conventions.items())
        return (
            f"Minimality({len(self.nodes)} nodes: {self.count('necessary')} necessary, "
            f"{self.count('superfluous')} superfluous; F(C) = {self.faithfulness:.2f}, "
            f"F(M \\ C) = {self.completeness:.2f}, the necessary nodes alone "
            f"{self.kept_alone:.2f}; {self.n_prompts} prompts; {told})"
        )

    @property
    def necessity(self) -> float:
        """1 - F(M without C): the share of the metric that is lost without the circuit."""
        return 1 - self.completeness

    def count(self, verdict: str) -> int:
        """How many nodes are `necessary`, `opposing`, `superfluous` or `undecided`."""
        return int((np.asarray(self.table["verdict"]) == verdict).sum())

    def frame(self) -> DataFrame:
        """One line a node; what holds for the whole circuit, and the conventions, as columns."""
        return self.table.assign(
            faithfulness=self.faithfulness,
            completeness=self.completeness,
            kept_alone=self.kept_alone,
            n_inflations=len(self.inflations),
            n_prompts=self.n_prompts,
            **self.conventions,
        )

    def figure(self) -> Figure:
        """The loss of each node with its interval, over the band of random added nodes."""
        return minimality_figure(self)


def minimality(
    model: SplicedModel,
    prompts: AnyPrompts,
    metric: AnyMetric,
    nodes: AnyNodes,
    *,
    size: int | None = None,
    spans: Spans | None = None,
    reference: Reference | AblationKind | None = None,
    downstream: str = "recompute",
    errors: str = "kept",
    n_inflations: int = 200,
    matched: str = "site",
    seed: int = 0,
    batch_size: int | None = None,
    memory: str | int | None = None,
) -> Minimality:
    """Drop each node of a circuit, and say whether that does more than dropping a random one.

    Args:
        model: The spliced model.
        prompts: One prompt, or several that had no part in choosing the nodes.
        metric: As in `faithfulness_curve`; so are `spans`, `reference`, `downstream`, `errors`.
        nodes: The circuit: a graph or nodes of one prompt, nodes at spans of several.
        size: The first so many nodes make the circuit; all by default.
        n_inflations: Random nodes to compare with. The least p is `1 / (1 + n_inflations)`.
        matched: They are of the `site`, or the site and `span`, of the circuit's.
        seed: Of the random nodes and the intervals.
        batch_size: Circuits of one forward pass; by default 64, or as many as `memory` holds.
        memory: What a pass may take for activations of latents, such as `"1GB"`; 256 MB by default.

    Raises:
        UserError: no nodes, nothing outside the circuit to compare with, or what
            `faithfulness_curve` refuses.
    """
    size = number_or_none("size", size, "all nodes")
    n_inflations = whole_number("n_inflations", n_inflations, LEAST, f", for p to be below {LEVEL}")
    seed = checked_seed(seed)
    check_batch_size(batch_size)
    question = CircuitQuestion.of(
        model, prompts, metric, nodes,
        spans=spans, reference=reference, downstream=downstream, errors=errors,
    )  # fmt: skip
    groups, cases = question.groups(matched), question.cases
    ranked = question.ranked[:size]
    if not ranked:
        raise UserError("the circuit has no nodes; give at least one")
    places, there = cases.places(ranked)
    circuit = np.zeros(len(cases), dtype=bool)
    circuit[places[there]] = True
    added = draw_others(circuit, groups, n_inflations, seed=seed)
    others, draws = np.unique(added, return_inverse=True)  # each is run once
    how = {"batch_size": batch_size, "memory": memory}
    gains = Gains.of(question, _tried(circuit, places, there, others), **how)

    f, last = gains.faithfulness, 2 + len(ranked)
    losses = gains.circuits[0] - gains.circuits[2:last]  # [k, n_prompts]
    low, high = ratio_interval(losses.T, gains.gap, pairs_of(question.prompts), seed=seed)
    inflations = _sizes(f[last:] - f[0])[draws]
    loss = f[0] - f[2:last]
    table = verdicts(loss, inflations)
    for at, column in enumerate(([str(node) for node in ranked], loss, low, high)):
        table.insert(at, ("node", "loss", "low", "high")[at], column)
    order = np.argsort(-np.abs(loss), kind="stable")
    necessary = (np.asarray(table["verdict"]) == "necessary") & there
    alone = np.zeros((1, len(cases)), dtype=bool)
    alone[0, places[necessary]] = True
    conventions = {**question.conventions(), "matched": matched}
    settings = {"matched": matched, "n_inflations": n_inflations, "size": len(ranked)}
    return Minimality(
        nodes=tuple(ranked[i] for i in order),
        table=table.iloc[order].reset_index(drop=True),
        inflations=inflations,
        faithfulness=float(f[0]),
        completeness=float(f[1]),
        kept_alone=float(Gains.of(question, alone, **how).faithfulness[0]),
        n_prompts=len(gains.full),
        conventions=conventions,
        provenance=question.provenance(settings, seed=seed),
    )


def draw_others(circuit: NDArray[np.bool_], groups: Codes, n: int, *, seed: int) -> Codes:
    """`n` nodes outside a circuit, each of the group of a random node of it, with replacement.

    Args:
        circuit: Which candidates it holds, `[n_candidates]`.
        groups: The group of each.

    Raises:
        UserError: no group of the circuit has another node.
    """
    rng = np.random.default_rng(seed)
    outside = {group: (~circuit & (groups == group)).nonzero()[0] for group in np.unique(groups)}
    own = [group for group in groups[circuit] if len(outside[group])]
    if not own:
        raise UserError(
            "the circuit holds every candidate of its sites, so that there is no random node to "
            "compare with; give a smaller circuit"
        )
    return np.array([rng.choice(outside[group]) for group in rng.choice(own, size=n)])


def _tried(
    circuit: NDArray[np.bool_], places: Codes, there: NDArray[np.bool_], others: Codes
) -> NDArray[np.bool_]:
    """The circuit, its complement, it without each of its nodes, and it with each of `others`.

    Args:
        circuit: Which candidates it holds, `[n_candidates]`.
        places: The candidate that each of its nodes is, `[k]`, where it is `there`, `[k]`.
        others: Candidates outside it, `[n]`.

    Returns:
        `[2 + k + n, n_candidates]`.
    """
    dropped = np.tile(circuit, (len(places), 1))
    dropped[there.nonzero()[0], places[there]] = False
    inflated = np.tile(circuit, (len(others), 1))
    inflated[np.arange(len(others)), others] = True
    return np.concatenate([[circuit, ~circuit], dropped, inflated])


def verdicts(losses: Array, inflations: Array) -> DataFrame:
    """Both tests of each node: `percentile`, `p`, `q`, `p_superfluous`, `verdict`.

    Args:
        losses: What F loses without each node of the circuit, `[k]`.
        inflations: Drops of random added nodes, `[n]`.
    """
    import pandas as pd

    n = len(inflations)
    smaller = (inflations < _sizes(losses)[:, None]).sum(1)
    p = (1 + n - smaller) / (1 + n)
    q = benjamini_hochberg(p)
    superfluous = np.minimum(1, binom.cdf(smaller, n, QUANTILE) * len(losses))
    verdict = np.select(
        [(q <= LEVEL) & (losses > 0), q <= LEVEL, superfluous <= LEVEL],
        ["necessary", "opposing", "superfluous"],
        "undecided",
    )
    return pd.DataFrame(
        {
            "percentile": smaller / n,
            "p": p,
            "q": q,
            "p_superfluous": superfluous,
            "verdict": verdict,
        }
    )


def _sizes(changes: Array) -> Array:
    """`|changes|`, with what is only noise at 0."""
    return np.where(np.abs(changes) < NOISE, 0.0, np.abs(changes))
