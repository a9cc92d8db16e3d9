"""One forward and backward pass: the gradient of a metric at every spliced site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attribution.metrics import BoundMetric
from circuits import Site, SplicedModel, UserError
from circuits.active import Reconstruction
from circuits.cross_layer import Carried
from circuits.freeze import LIVE, Freeze
from circuits.hooks import SiteHook
from circuits.whole_numbers import number_or_none, whole_number

CONVENTIONS = ("recompute", "freeze")
"""Conventions under which gradients are defined; `drop` is for ablation alone."""


@dataclass(frozen=True)
class Gradients:
    """What total effects need of one pass.

    Attributes:
        score: The metric, `[batch]`.
        inputs: What each site reads, `[batch, pos, d_in]`.
        outputs: What the model writes there, before any replacement, `[batch, pos, d_out]`.
        grads: The gradient of the metric with respect to each site's output, `[batch, pos, d_out]`.
            A latent's gradient is `grad @ W_dec[latent]` (of a cross-layer transcoder the sum of
            that over the layers it writes to), an error's is `grad` itself.
        embedding: The scaled embedding, `[batch, pos, d_model]`.
        embedding_grad: The metric's gradient there.
    """

    score: Tensor
    inputs: Mapping[Site, Tensor]
    outputs: Mapping[Site, Tensor]
    grads: Mapping[Site, Tensor]
    embedding: Tensor
    embedding_grad: Tensor


def gradients(
    model: SplicedModel,
    ids: Tensor,
    score: BoundMetric,
    *,
    downstream: str = "recompute",
    freeze: Freeze = LIVE,
    shift: Mapping[Site, Tensor] | None = None,
    clean_errors: Mapping[Site, Tensor] | None = None,
) -> Gradients:
    """The metric's gradient at every site, under one convention for what lies downstream.

    `recompute` lets gradients pass a site as if no dictionary were there. `freeze` holds errors:
    a site gives `decode(encode(x)) + error`, and gradients pass from what it writes to what it
    reads through active latents alone, and through the skip connection if there is one.

    Args:
        model: The spliced model.
        ids: `[batch, pos]`.
        score: The metric, bound to the model. Sites downstream of what it reads have no gradient:
            zeros.
        downstream: `recompute` or `freeze`.
        freeze: Attention patterns and norm scales that gradients treat as constant.
        shift: What is added to the outputs of some sites, `[batch, pos, d]`. Below the first of
            them there are no gradients: zeros.
        clean_errors: With `freeze`, the errors `[batch or 1, pos, d]` that are held; by default
            the pass's own.

    Raises:
        UserError: an unknown convention, or a metric without a gradient to what it reads.
    """
    check_convention(downstream)
    shift = shift or {}
    cut = min(shift, default=None)
    reads = model.reads(ids)
    inputs: dict[Site, Tensor] = {}
    outputs: dict[Site, Tensor] = {}
    results: dict[Site, Tensor] = {}
    start: list[Tensor] = []
    held = _HeldErrors(model, reads, clean_errors)

    def at(site: Site) -> SiteHook:
        def hook(read: Tensor, written: Tensor) -> Tensor:
            inputs[site], outputs[site] = read.detach(), written.detach()
            if downstream == "freeze":
                result = held.result(site, read, written)
            else:
                result = written.view_as(written)  # apart from what a metric may read right here
            if site in shift:
                result = result + shift[site].to(written.dtype)
            if site == cut:
                result = result.detach().requires_grad_()
            results[site] = result
            return result

        return hook

    def embed(x: Tensor, _: Tensor) -> Tensor:
        start.append(x.detach().requires_grad_())
        return start[0]

    with torch.enable_grad():
        read = model.forward(
            ids,
            {site: at(site) for site in model.sites},
            freeze=freeze,
            embedding=embed,
            output=score.output,
        )
        values = checked(score(read), len(ids), {**outputs, "the output": read})
        wanted = [start[0], *results.values()]
        grads = torch.autograd.grad(values.sum(), wanted, allow_unused=True)
    zeros = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, grads, strict=True)]
    by_site = dict(zip(results, zeros[1:], strict=True))
    return Gradients(values.detach(), inputs, outputs, by_site, start[0].detach(), zeros[0])


@dataclass(frozen=True)
class _HeldErrors:
    """What sites give under `freeze`, one after the other up a pass: `decode(encode(x)) + error`.

    Attributes:
        reads: Where dictionaries read, `[batch, pos]`.
        errors: Those that are held; None for the pass's own.
        decoded: What latents of sites below write further up.
    """

    model: SplicedModel
    reads: Tensor
    errors: Mapping[Site, Tensor] | None
    decoded: Carried = field(default_factory=Carried)

    def result(self, site: Site, read: Tensor, written: Tensor) -> Tensor:
        """In the place of `written`, from what the site reads."""
        own, *later = Reconstruction.apply(read, self.reads, self.model.dictionaries, site)
        reconstruction = self.decoded.up(site, own, later)
        if self.errors is not None:
            return (reconstruction + self.errors[site]).to(written.dtype)
        # the pass's own errors: its values stay what they are, bit for bit
        change = reconstruction - reconstruction.detach()
        return written.detach() + change.to(written.dtype)


def checked(values: Tensor, batch: int, computed: Mapping[Any, Any]) -> Tensor:
    """A metric's values, one a row, finite and with a gradient.

    Args:
        computed: What the model computed on the way, in order, by where that was.

    Raises:
        UserError: they are not.
    """
    if not isinstance(values, Tensor) or values.shape != (batch,):
        came = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise UserError(f"a metric gives one number a row, [{batch}]; this one gave {came}")
    if torch.is_inference_mode_enabled():
        raise UserError("attribution needs gradients; leave torch.inference_mode()")
    if not values.requires_grad:
        raise UserError(
            "the metric has no gradient; compute it with torch alone from what the model computes"
        )
    if not values.isfinite().all():
        for where, what in computed.items():
            if isinstance(what, Tensor) and not what.isfinite().all():
                raise UserError(
                    f"what the model itself computes is not finite at {where}; check its weights, "
                    "or load it with dtype=torch.float32"
                )
        raise UserError("the metric is not finite on this prompt; choose another metric or target")
    return values


def check_batch_size(batch_size: int | None, *, automatic: bool = True) -> None:
    """Refuse what is no whole number above 0.

    Args:
        automatic: Whether None leaves the choice to the pass.

    Raises:
        UserError: it is none.
    """
    if automatic:
        number_or_none("batch_size", batch_size, "as many rows as a pass may have")
    else:
        whole_number("batch_size", batch_size)


def check_convention(downstream: str) -> None:
    """Refuse a word that is no convention."""
    if downstream not in CONVENTIONS:
        raise UserError(f"downstream={downstream!r}; attribution knows {' and '.join(CONVENTIONS)}")
