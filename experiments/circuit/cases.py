"""The prompts that circuits are tested on, with the nodes of all of them brought together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from attribution.metrics import BoundMetric, bind
from circuits import Prompt, Reference, Site, SplicedModel
from circuits.reference import check_reference
from experiments.circuit.runs import Candidates, run_kept
from experiments.kinds import AblationKind
from experiments.node_codes import Codes, NodeCodes
from experiments.pooled import MetricOf
from experiments.rows import rows_in
from experiments.spans import SpanNode, Spans, check_spans


@dataclass(frozen=True, eq=False)
class Case:
    """One prompt.

    Attributes:
        full: m(M), of the model as it is.
        runs: For each donor its values, the candidates, and their codes.
    """

    ids: Tensor
    score: BoundMetric
    full: float
    runs: tuple[tuple[Reference, Candidates, Codes], ...]


@dataclass(frozen=True, eq=False, repr=False)
class CircuitCases:
    """Several prompts, and the nodes that a circuit can hold on any of them.

    Attributes:
        space: Numbers the nodes.
        codes: Of every node that is a candidate on some prompt, ascending, `[n]`.
        cases: One a prompt.
        errors: `kept`, `scored` or `removed`; so is `downstream` a convention.
    """

    model: SplicedModel
    space: NodeCodes
    codes: Codes
    cases: tuple[Case, ...]
    errors: str
    downstream: str

    @classmethod
    def of(
        cls,
        model: SplicedModel,
        prompts: Sequence[str | Prompt],
        spans: Spans,
        metric: MetricOf,
        kind: AblationKind,
        *,
        errors: str,
        downstream: str,
    ) -> CircuitCases:
        """Trace the prompts and their references.

        Raises:
            UserError: spans of other prompts.
        """
        check_spans(spans, prompts)
        space = NodeCodes.of(model, spans)
        cases = [
            _case(model, prompt, i, spans, space, metric, kind, errors == "scored")
            for i, prompt in enumerate(
                tqdm(prompts, "tracing", unit="prompt", disable=None, delay=1)
            )
        ]
        every = np.unique(np.concatenate([codes for case in cases for _, _, codes in case.runs]))
        return cls(model, space, every, tuple(cases), errors, downstream)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def full(self) -> NDArray[np.float64]:
        """m(M) of each prompt, `[n_prompts]`."""
        return np.array([case.full for case in self.cases])

    def places(self, nodes: Sequence[SpanNode]) -> tuple[Codes, NDArray[np.bool_]]:
        """Where `nodes` are among the `n`, and which of them are there at all, `[len(nodes)]`."""
        codes = self.space.of_nodes(nodes)
        places = np.searchsorted(self.codes, codes).clip(max=max(0, len(self) - 1))
        there = self.codes[places] == codes if len(self) else np.zeros(len(codes), dtype=bool)
        return places, there

    def first(
        self, ranked: Sequence[SpanNode], sizes: Sequence[float]
    ) -> tuple[NDArray[np.bool_], list[int]]:
        """The circuits of the first nodes, `[n_circuits, n]`, and how many nodes each has.

        Args:
            ranked: Best first. Those that are candidates on no prompt count, and do nothing.
            sizes: Numbers of nodes, or shares of the `n` as floats; see `faithfulness_curve`.
        """
        places, there = self.places(ranked)
        given = [int(s * len(self)) if isinstance(s, float) else s for s in sizes if not _all(s)]
        counts = sorted({min(count, len(ranked)) for count in given})
        everything = any(map(_all, sizes))
        if everything:
            counts = [count for count in counts if count < len(self)] + [len(self)]
        circuits = np.zeros((len(counts), len(self)), dtype=bool)
        for circuit, count in zip(circuits, counts, strict=True):
            circuit[places[:count][there[:count]]] = True
        if everything:
            circuits[-1] = True
        return circuits, counts

    def metrics(
        self,
        kept: NDArray[np.bool_],
        *,
        batch_size: int | None = None,
        memory: str | int | None = None,
    ) -> NDArray[np.float64]:
        """m of circuits `kept [n_circuits, n]` on each prompt, `[n_circuits, n_prompts]`.

        Over several donors the mean.

        Args:
            batch_size: Circuits of one pass; by default 64, or as many as `memory` holds.
            memory: What a pass may take for activations of latents; 256 MB by default.
        """
        n_runs = sum(len(case.runs) for case in self.cases)
        values = np.empty((len(kept), len(self.cases)))
        bar = tqdm(total=len(kept) * n_runs, desc="circuits", unit="pass", disable=None, delay=1)
        with bar:
            for i, case in enumerate(self.cases):
                rows = batch_size or rows_in(self.model, case.ids.shape[1], memory)
                by_donor = [
                    self._run(case, *run, kept, rows, bar.update).double() for run in case.runs
                ]
                values[:, i] = torch.stack(by_donor).mean(0).cpu().numpy()
        return values

    def _run(
        self,
        case: Case,
        reference: Reference,
        candidates: Candidates,
        codes: Codes,
        kept: NDArray[np.bool_],
        batch_size: int,
        advance: Callable[[int], object],
    ) -> Tensor:
        """m of circuits against one donor, `[n_circuits]`."""
        here = torch.from_numpy(kept[:, np.searchsorted(self.codes, codes)])
        return run_kept(
            self.model,
            case.ids,
            case.score,
            candidates,
            here.to(case.ids.device),
            reference,
            downstream=self.downstream,
            errors=self.errors,
            batch_size=batch_size,
            advance=advance,
        )


def _all(size: float) -> bool:
    """The share of all candidates; the number 1 is one node."""
    return isinstance(size, float) and size == 1


def _case(
    model: SplicedModel,
    prompt: str | Prompt,
    i: int,
    spans: Spans,
    space: NodeCodes,
    metric: MetricOf,
    kind: AblationKind,
    with_errors: bool,
) -> Case:
    ids, score = model.tokens(prompt), bind(metric(prompt), model)
    trace = model.trace(ids)
    errors_at = model.reads(ids)[0] if with_errors else None
    span = space.spans_at(spans, i, ids.shape[1])
    runs = []
    for reference in kind.references(model, prompt):
        check_reference(model, reference, ids)
        candidates = Candidates.of(trace, reference, errors_at=errors_at)
        runs.append((reference, candidates, _codes(candidates, space, span)))
    full = score(model.run(ids, output=score.output)).item()
    return Case(ids, score, full, tuple(runs))


def _codes(candidates: Candidates, space: NodeCodes, span: Codes) -> Codes:
    """Of each candidate, `[n]`; positions of a span that hold the same latent share a code."""
    parts: list[Codes] = []
    for site, (pos, latent, _) in candidates.sites.items():
        parts.append(_at(space, site, span[pos.cpu().numpy()], latent.cpu().numpy()))
    for site, (pos, _) in candidates.errors.items():
        parts.append(_at(space, site, span[pos.cpu().numpy()], None))
    return np.concatenate(parts)


def _at(space: NodeCodes, site: Site, span: Codes, latent: Codes | None) -> Codes:
    assert (span >= 0).all(), "no node is at BOS: it is read nowhere and is in no span"
    return space.codes(site, span, latent)
