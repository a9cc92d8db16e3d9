"""How much of the metric survives when everything outside a circuit is ablated, by its size.

    F(C) = (m(C) - m(empty)) / (m(M) - m(empty))

`m(C)` is the metric with the latents of C left alone and every other latent set to the reference,
`m(empty)` with none left alone, `m(M)` of the model as it is. F(M \\ C) of the complement is the
circuit's completeness: low is good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from attribution import Metric, Targets
from attribution.attribute import record
from attribution.gradients import check_batch_size
from attribution.metrics import Score, bind, metric_name
from circuits import LatentNode, Prompt, Reference, SplicedModel, UserError, zero_reference
from circuits.reference import check_reference
from experiments.checks import one_prompt
from experiments.circuit_runs import ERRORS, Candidates, run_kept
from experiments.plots import faithfulness_figure
from experiments.results import Result
from graphs import AttributionGraph

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

BAND = (0.05, 0.95)
"""Quantiles of the random circuits' faithfulness that are shown."""

SMALLEST_GAP = 0.1
"""Of |m(M)|: below it, F divides by next to nothing."""


@dataclass(frozen=True)
class CircuitScore:
    """One circuit and the random circuits of its size.

    Attributes:
        size: Number of latents.
        faithfulness: F(C); 1 for the whole model, 0 for the empty circuit.
        completeness: F(M without C).
        random_mean: Mean F of the random circuits; NaN without any.
        random_low: Their 5 % quantile.
        random_high: Their 95 % quantile.
    """

    size: int
    faithfulness: float
    completeness: float
    random_mean: float
    random_low: float
    random_high: float


@dataclass(frozen=True)
class FaithfulnessCurve(Result):
    """Faithfulness by size, and the conventions it depends on.

    Attributes:
        scores: One a size, ascending.
        metric: The metric's name.
        full: m(M), in the metric's units.
        empty: m(empty), in the metric's units.
        n_latents: How many latents there are to keep or ablate.
        downstream: What errors do downstream of an ablation: `recompute` or `freeze`.
        errors: `kept` or `removed`.
        reference: What ablated latents are set to: `zero`, `corrupted`, `mean`, ...
        provenance: Model, dictionaries, prompt, metric, settings, versions, seed; JSON-able.
    """

    kind: ClassVar[str] = "faithfulness"
    shown: ClassVar[tuple[str, ...]] = (
        "size", "faithfulness", "completeness", "random_mean", "random_low", "random_high",
    )  # fmt: skip

    scores: tuple[CircuitScore, ...]
    metric: str
    full: float
    empty: float
    n_latents: int
    downstream: str
    errors: str
    reference: str
    provenance: dict[str, Any]

    def frame(self) -> DataFrame:
        """One line a size; conventions are columns, so that a line says what it is on its own."""
        import pandas as pd

        return pd.DataFrame([asdict(score) for score in self.scores]).assign(
            n_latents=self.n_latents,
            metric=self.metric,
            full=self.full,
            empty=self.empty,
            downstream=self.downstream,
            errors=self.errors,
            reference=self.reference,
        )

    def figure(self) -> Figure:
        """Faithfulness by size with the random circuits' band."""
        return faithfulness_figure(self)


def faithfulness_curve(
    model: SplicedModel,
    prompt: str | Prompt,
    metric: Metric | Targets | Score,
    graph: AttributionGraph | Sequence[LatentNode],
    *,
    sizes: Sequence[int],
    reference: Reference | None = None,
    downstream: str = "recompute",
    errors: str = "kept",
    n_random: int = 20,
    seed: int = 0,
    batch_size: int = 64,
) -> FaithfulnessCurve:
    """Faithfulness of the circuits of the strongest latents, beside random circuits.

    Candidates are all latents of all sites that are active on the prompt or in the reference,
    whether `graph` holds them or not. A circuit's latents take the values that the changed pass
    gives them. F is 1 with all candidates kept and 0 with none, whatever the convention, as long
    as errors are kept.

    What is asked depends on the errors, which carry what dictionaries miss:

    - `errors="kept", downstream="freeze"`: errors are constants, so that what the circuit adds
      can only have come through its latents at every site on the way. The strictest.
    - `errors="kept", downstream="recompute"`: errors follow the changed pass, as in the real
      model. They let information past the ablated latents, above all where every `resid` site is
      spliced: small circuits look better and m(empty) is far from what zero information gives.
    - `errors="removed"`: errors are set to the reference's too. F with all latents kept is then
      not 1 but the share of the metric that latents carry without any error.

    Args:
        model: The spliced model.
        prompt: The text that `graph` is of.
        metric: A `Metric`, `Targets` (their weighted sum), or a function from logits
            `[batch, pos, vocab]` to `[batch]`.
        graph: Its strongest latents make the circuits; or latents, strongest first.
        sizes: Numbers of latents. A size above the number of latents in `graph` becomes that
            number: what the graph does not rank cannot be added.
        reference: What is outside a circuit is set to this; zero by default.
        downstream: What kept errors do: `recompute` or `freeze`.
        errors: `kept` or `removed`.
        n_random: Circuits of each size drawn from all candidates.
        seed: Of the draws. A larger circuit of a draw holds the smaller ones.
        batch_size: Circuits of one forward pass; lower it to save memory.

    Raises:
        UserError: `graph` is of another prompt or model, an unknown convention, no sizes, or the
            metric hardly changes when everything is ablated, so that F means nothing.
    """
    _check(downstream, errors, sizes, n_random)
    check_batch_size(batch_size)
    ids = one_prompt(model, prompt)
    reference = reference or zero_reference(model, prompt)
    check_reference(model, reference, ids)
    candidates = Candidates.of(model.trace(ids), reference)
    ranked = _ranked(model, ids, graph)
    order = torch.tensor(candidates.places(ranked), dtype=torch.long)
    sizes = sorted({min(size, len(ranked)) for size in sizes})

    generator = torch.Generator().manual_seed(seed)
    n = len(candidates.nodes)
    draws = [torch.randperm(n, generator=generator) for _ in range(n_random)]
    circuits = torch.stack([_mask(order[:size], n) for size in sizes])
    randoms = [_mask(draw[:size], n) for size in sizes for draw in draws]
    ends = torch.stack([torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)])
    kept = torch.cat([ends, circuits, ~circuits, *[r[None] for r in randoms]]).to(ids.device)

    score = bind(metric, model)
    full = score(model.run(ids, output=score.output)).item()
    metrics = run_kept(
        model,
        ids,
        score,
        candidates,
        kept,
        reference,
        downstream=downstream,
        errors=errors,
        batch_size=batch_size,
    ).tolist()
    if errors == "kept":
        full = metrics[0]  # the same number, in the arithmetic of the same batch
    empty = metrics[1]
    _check_gap(full, empty, reference.name)
    shares = [(value - empty) / (full - empty) for value in metrics[2:]]
    settings = {
        "downstream": downstream,
        "errors": errors,
        "reference": reference.name,
        "n_random": n_random,
        "ranked_by": graph.provenance.get("settings")
        if isinstance(graph, AttributionGraph)
        else "the order given",
    }
    return FaithfulnessCurve(
        scores=_scores(sizes, shares, n_random),
        metric=metric_name(metric),
        full=full,
        empty=empty,
        n_latents=n,
        downstream=downstream,
        errors=errors,
        reference=reference.name,
        provenance={**record(model, prompt, metric_name(metric), settings), "seed": seed},
    )


def _ranked(
    model: SplicedModel, ids: Tensor, graph: AttributionGraph | Sequence[LatentNode]
) -> list[LatentNode]:
    """The latents of `graph`, strongest first."""
    if not isinstance(graph, AttributionGraph):
        return list(dict.fromkeys(graph))  # each once: sizes count latents
    words = tuple(model.words(ids[0]))
    if graph.words != words:
        raise UserError(
            f"the graph is of the prompt {' '.join(graph.words)!r}, not of {' '.join(words)!r}; "
            "trace this prompt first"
        )
    return graph.latents()


def _mask(places: Tensor, n: int) -> Tensor:
    """Booleans `[n]`, true at `places`."""
    return torch.zeros(n, dtype=torch.bool).index_fill(0, places, True)


def _scores(sizes: list[int], shares: list[float], n_random: int) -> tuple[CircuitScore, ...]:
    """From F of the circuits, of their complements, and of the random circuits size by size."""
    k = len(sizes)
    randoms = torch.tensor(shares[2 * k :], dtype=torch.float64).view(k, n_random)
    scores = []
    for i, size in enumerate(sizes):
        mean, low, high = [float("nan")] * 3
        if n_random:
            mean = randoms[i].mean().item()
            low, high = randoms[i].quantile(torch.tensor(BAND, dtype=torch.float64)).tolist()
        scores.append(CircuitScore(size, shares[i], shares[k + i], mean, low, high))
    return tuple(scores)


def _check(downstream: str, errors: str, sizes: Sequence[int], n_random: int) -> None:
    if downstream not in ("recompute", "freeze"):
        raise UserError(
            f"downstream={downstream!r}; a faithfulness curve knows recompute and freeze"
            + (", and errors='removed' in the place of drop" if downstream == "drop" else "")
        )
    if errors not in ERRORS:
        raise UserError(f"errors={errors!r}; choose {' or '.join(ERRORS)}")
    if not sizes or any(size < 0 for size in sizes):
        raise UserError(f"sizes={list(sizes)}; give at least one number of latents, none below 0")
    if n_random < 0:
        raise UserError(f"n_random={n_random}; give 0 or more")


def _check_gap(full: float, empty: float, reference: str) -> None:
    """Refuse to divide by a difference that is next to nothing."""
    if abs(full - empty) <= SMALLEST_GAP * abs(full):
        raise UserError(
            f"the metric is {full:.3g} and still {empty:.3g} with every latent set to {reference}, "
            f"less than {SMALLEST_GAP:.0%} of change, so faithfulness would divide by next to "
            "nothing; try another metric, reference, downstream='freeze' or errors='removed'"
        )
