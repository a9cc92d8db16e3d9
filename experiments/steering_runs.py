"""The passes of a dose and response: the metric of prompts, and the KL on neutral texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from attribution.gradients import gradients
from attribution.metrics import bind
from circuits import Output, Prompt, Site, SplicedModel, UserError
from circuits.outputs import ALL_LOGITS
from experiments.pooled import MetricOf
from experiments.spans import SpanNode, Spans
from experiments.steering_vectors import as_large, positions, shifts, steered_passes

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class SteeringPlan:
    """What is done to every text.

    Attributes:
        amounts: What a dose of 1 raises each latent by, in units of its activation.
        doses: Multiples of that.
        directions: Random ones, each a unit vector `[d_out]` for each site that is written to.
        downstream: `recompute` or `freeze`.
        batch_size: Passes at a time.
    """

    amounts: Mapping[SpanNode, float]
    doses: tuple[float, ...]
    directions: Sequence[Mapping[Site, Tensor]]
    downstream: str
    batch_size: int

    @property
    def shape(self) -> tuple[int, int]:
        """The latents first and the random directions after them, by doses."""
        return 1 + len(self.directions), len(self.doses)

    def steering(
        self, model: SplicedModel, ids: Tensor, spans: Spans | None = None, i: int = 0
    ) -> dict[Site, Tensor]:
        """What a dose of 1 adds on `ids [1, pos]`, the `i`th prompt of `spans`."""
        places = [positions(model, ids, node, spans, i) for node in self.amounts]
        return shifts(model, ids, self.amounts, places)

    def passes(
        self, model: SplicedModel, ids: Tensor, steering: Mapping[Site, Tensor], output: Output
    ) -> Iterator[tuple[Array, Any]]:
        """What passes give, with the places `[2, n]` in `shape` that each is of.

        The first is the clean pass: that of dose 0, to which nothing is added.
        """
        ways = [steering, *(as_large(steering, directions) for directions in self.directions)]
        doses = np.array(self.doses)
        still = np.argwhere(np.broadcast_to(doses == 0, self.shape)).T
        moved = np.argwhere(np.broadcast_to(doses != 0, self.shape)).T
        yield still, model.run(ids, downstream=self.downstream, output=output)
        rows = [
            {site: self.doses[dose] * shift for site, shift in ways[way].items()}
            for way, dose in moved.T.tolist()
        ]
        how = {"output": output, "downstream": self.downstream, "batch_size": self.batch_size}
        for n, read in enumerate(steered_passes(model, ids, rows, **how)):
            yield moved[:, n * self.batch_size :][:, : self.batch_size], read


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


def responses(
    model: SplicedModel,
    prompts: Sequence[str | Prompt],
    metric: MetricOf,
    plan: SteeringPlan,
    spans: Spans | None = None,
) -> tuple[Array, Array]:
    """The metric, `[1 + n_random, n_prompts, n_doses]`, and the foretold slopes `[n_prompts]`.

    The slope is the sum over sites and positions of the gradient times what a dose of 1 adds.
    """
    n_ways, n_doses = plan.shape
    values, slopes = np.zeros((n_ways, len(prompts), n_doses)), np.zeros(len(prompts))
    for i, prompt in enumerate(tqdm(prompts, "steering", unit="prompt", disable=None, delay=1)):
        ids, score = model.tokens(prompt), bind(metric(prompt), model)
        steering = plan.steering(model, ids, spans, i)
        grads = gradients(model, ids, score, downstream=plan.downstream).grads
        products = [(grads[site][0].float() * shift).sum() for site, shift in steering.items()]
        slopes[i] = torch.stack(products).sum().item()
        for (ways, doses), read in plan.passes(model, ids, steering, score.output):
            values[ways, i, doses] = score(read).double().cpu().numpy()
    return values, slopes


def divergences(
    model: SplicedModel, texts: Sequence[str | Prompt], plan: SteeringPlan
) -> tuple[Array, Array]:
    """`KL(clean || steered)` in nats, `[1 + n_random, n_positions, n_doses]`, and whose position.

    Of the next token at every position that dictionaries read, of one text after the other; the
    second array `[n_positions]` numbers the texts.
    """
    found, text_of = [], []
    for i, text in enumerate(tqdm(texts, "neutral texts", unit="text", disable=None, delay=1)):
        ids = model.tokens(text)
        (reads,) = model.reads(ids)
        values = np.zeros((plan.shape[0], int(reads.sum()), plan.shape[1]))
        clean = None
        for (ways, doses), read in plan.passes(model, ids, plan.steering(model, ids), ALL_LOGITS):
            log_p = read[:, reads].float().log_softmax(-1)
            clean = log_p if clean is None else clean
            kl = (clean.exp() * (clean - log_p)).sum(-1)  # [batch, pos]
            values[ways, :, doses] = kl.double().cpu().numpy()
        found.append(values)
        text_of.append(np.full(values.shape[1], i))
    return np.concatenate(found, axis=1), np.concatenate(text_of)
