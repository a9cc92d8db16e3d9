"""The passes of a dose and response: the metric of prompts, and the KL on neutral texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from attribution.gradients import gradients
from attribution.metrics import BoundMetric, bind
from circuits import Output, Prompt, Site, SplicedModel, UserError
from circuits.interventions import Edit
from circuits.outputs import ALL_LOGITS
from experiments.pooled import MetricOf
from experiments.spans import SpanNode, Spans
from experiments.steering.modes import steer_rows
from experiments.steering.vectors import Shifts, as_large, positions, shifts, steering_edits

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class SteeringPlan:
    """What is done to every text.

    Attributes:
        nodes: Latents, steered together.
        scales: What a dose of 1 raises each by, or sets it to, in units of its activation.
        mode: `add` or `set`.
        doses: Multiples of the scales, ascending, 0 among them.
        directions: Random ones, each a unit vector `[d_out]` for each site that is written to.
        downstream: `recompute` or `freeze`.
        batch_size: Passes at a time.
    """

    nodes: tuple[SpanNode, ...]
    scales: tuple[float, ...]
    mode: str
    doses: tuple[float, ...]
    directions: Sequence[Mapping[Site, Tensor]]
    downstream: str
    batch_size: int

    @property
    def moving(self) -> list[int]:
        """The doses, by number, that change something: adding 0 is the clean pass."""
        return [i for i, dose in enumerate(self.doses) if dose or self.mode == "set"]

    def amounts(self, i: int) -> list[float]:
        """What the dose number `i` raises each latent by, or sets it to."""
        return [self.doses[i] * scale for scale in self.scales]


@dataclass(frozen=True, eq=False)
class Steered:
    """What one text gives.

    Attributes:
        clean: Of the clean pass, `[...]`.
        values: Of the latents and then of the random directions, `[1 + n_random, n_doses, ...]`.
        changes: What steering the latents changes of what sites write, `[n_doses, pos, d_out]`.
    """

    clean: Array
    values: Array
    changes: Shifts


@dataclass(frozen=True, eq=False)
class Text:
    """A text to be steered.

    Attributes:
        model: The spliced model.
        ids: `[1, pos]`.
        places: Where each latent is steered, `[n_nodes, pos]`.
        output: What passes give.
        read: From that of some rows, and of the clean pass, to numbers `[rows, ...]`.
    """

    model: SplicedModel
    ids: Tensor
    places: Tensor
    output: Output
    read: Callable[[Any, Any], Array]

    def steered(self, plan: SteeringPlan) -> Steered:
        """At every dose: along the latents, then along directions as large as what that changes."""
        model, ids, output = self.model, self.ids, self.output
        unchanged = model.run(ids, output=output)
        (clean,) = self.read(unchanged, unchanged)
        values = np.empty((1 + len(plan.directions), len(plan.doses), *clean.shape))
        values[:] = clean
        errors = model.errors(ids) if plan.downstream == "freeze" else None

        def go(edits: Mapping[Site, Edit], n: int) -> Array:
            how: Any = {"downstream": plan.downstream, "clean_errors": errors, "output": output}
            return self.read(model.run(ids.expand(n, -1), edits, **how), unchanged)

        nothing = torch.zeros(len(plan.doses), *self.places.shape, device=ids.device)
        changes = shifts(model, plan.nodes, nothing)
        for some in _batches(plan.moving, plan.batch_size):
            rows = [plan.amounts(i) for i in some]
            edits, changed = steer_rows(model, ids, plan.nodes, rows, self.places, plan.mode)
            values[0, some] = go(edits, len(some))
            for site, change in changed().items():
                changes[site][some] = change
        pairs = [(way, i) for way in range(len(plan.directions)) for i in plan.moving]
        for some in _batches(pairs, plan.batch_size):
            ways, doses = (list(numbers) for numbers in zip(*some, strict=True))
            large = {site: change[doses] for site, change in changes.items()}
            along = {s: torch.stack([plan.directions[w][s] for w in ways])[:, None] for s in large}
            edits = steering_edits(as_large(large, along))
            values[[1 + way for way in ways], doses] = go(edits, len(some))
        return Steered(clean, values, changes)


@dataclass(frozen=True, eq=False)
class Responses:
    """The metric on prompts.

    Attributes:
        clean: Of the model as it is, `[n_prompts]`.
        values: Of the latents and then of the random directions, `[1 + n_random, n_prompts,
            n_doses]`.
        foretold: Of the latents by the gradient on the clean pass times what steering changes,
            `[n_prompts, n_doses]`.
    """

    clean: Array
    values: Array
    foretold: Array


def responses(
    model: SplicedModel,
    prompts: Sequence[str | Prompt],
    metric: MetricOf,
    plan: SteeringPlan,
    spans: Spans,
) -> Responses:
    """The metric of every prompt at every dose."""
    clean, values, told = [], [], []
    for i, prompt in enumerate(tqdm(prompts, "steering", unit="prompt", disable=None, delay=1)):
        ids, score = model.tokens(prompt), bind(metric(prompt), model)

        def read(out: Any, _: Any, score: BoundMetric = score) -> Array:
            return score(out).double().cpu().numpy()

        places = positions(model, ids, plan.nodes, spans, i)
        found = Text(model, ids, places, score.output, read).steered(plan)
        grads = gradients(model, ids, score, downstream=plan.downstream).grads
        products = [(grads[site].float() * x).sum((1, 2)) for site, x in found.changes.items()]
        clean.append(found.clean)
        values.append(found.values)
        told.append(found.clean + torch.stack(products).double().sum(0).cpu().numpy())
    return Responses(np.array(clean), np.stack(values, axis=1), np.array(told))


@dataclass(frozen=True, eq=False)
class Divergences:
    """`KL(clean || steered)` of the next token in nats, wherever dictionaries read neutral texts.

    Attributes:
        values: Of the latents and then of the random directions, `[1 + n_random, n_positions,
            n_doses]`.
        text_of: The number of each position's text, `[n_positions]`.
        n_texts: How many texts.
    """

    values: Array
    text_of: Array
    n_texts: int


def divergences(
    model: SplicedModel, texts: Sequence[str | Prompt], plan: SteeringPlan
) -> Divergences:
    """The KL at every position, of one text after the other, steered at every position."""
    found, text_of = [], []
    for i, text in enumerate(tqdm(texts, "neutral texts", unit="text", disable=None, delay=1)):
        ids = model.tokens(text)
        (reads,) = model.reads(ids)

        def read(logits: Tensor, clean: Tensor, reads: Tensor = reads) -> Array:
            log_p, steered = (x[:, reads].float().log_softmax(-1) for x in (clean, logits))
            return (log_p.exp() * (log_p - steered)).sum(-1).double().cpu().numpy()

        places = positions(model, ids, plan.nodes)
        values = Text(model, ids, places, ALL_LOGITS, read).steered(plan).values
        found.append(values.transpose(0, 2, 1))
        text_of.append(np.full(values.shape[-1], i))
    return Divergences(np.concatenate(found, axis=1), np.concatenate(text_of), len(texts))


def largest_activations(
    model: SplicedModel, prompts: Sequence[str | Prompt], nodes: Sequence[SpanNode]
) -> tuple[float, ...]:
    """Each latent's largest activation on the prompts, at any position.

    Raises:
        UserError: a latent is on nowhere.
    """
    largest = np.zeros(len(nodes))
    for prompt in prompts:
        ids = model.tokens(prompt)
        _, inputs, _ = model.activations(ids)
        acts = {
            site: model.split(site, inputs[site], model.reads(ids))[0]
            for site in {node.site for node in nodes}
        }
        here = [acts[node.site][..., node.latent].max().item() for node in nodes]
        largest = np.maximum(largest, here)
    for node, value in zip(nodes, largest.tolist(), strict=True):
        if value == 0:
            raise UserError(
                f"{node} is on nowhere on the {len(prompts)} prompts, so that doses have no scale; "
                "give scales (--scale) in units of its activation, or prompts that it fires on"
            )
    return tuple(largest.tolist())


def _batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
