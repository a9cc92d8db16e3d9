"""Training a JumpReLU dictionary with straight-through estimators (arXiv 2407.14435).

1. Scale: what is read and what is written get mean squared norm 1 around their means.
2. Train: squared error plus a sparsity penalty that reaches the thresholds alone, through a
   rectangle of width `bandwidth` around each (equations 11 and 12); unit-norm decoder rows.
3. Fold: the scales go into the weights, so that the dictionary reads and writes raw activations.

An autoencoder writes what it reads; a transcoder (arXiv 2406.11944) writes what an MLP makes of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from circuits.dictionaries import Dictionary


@dataclass(frozen=True)
class Recipe:
    """What decides a dictionary, together with its activations.

    Attributes:
        target_l0: The penalty is `sparsity * (L0 / target_l0 - 1)^2` (appendix of the paper), so
            that every site ends near the same number of active latents.
        dead_after: A latent that is off for so many steps is pulled up until it is on again.
        pull: Weight of that pull, on the distance of its pre-activation below its threshold.
    """

    d_sae: int = 1024
    target_l0: float = 22.0
    steps: int = 2500
    batch: int = 1024
    learning_rate: float = 4e-3
    warmup: int = 100
    bandwidth: float = 0.05
    threshold: float = 0.1  # at first a tenth of the latents are on: random ones exceed it
    sparsity: float = 0.3
    dead_after: int = 100
    pull: float = 1e-2
    seed: int = 0


class _Gate(torch.autograd.Function):
    """acts = pre * H(pre - threshold) and on = H(pre - threshold), with the paper's gradients.

    With K the rectangle of width `bandwidth`: d acts / d pre = H, d acts / d threshold =
    -(threshold / bandwidth) K (equation 11), d on / d threshold = -(1 / bandwidth) K (equation 12).
    """

    @staticmethod
    def forward(ctx, pre: Tensor, threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        on = (pre > threshold).to(pre.dtype)
        ctx.save_for_backward(pre, threshold, on)
        ctx.bandwidth = bandwidth
        return pre * on, on

    @staticmethod
    def backward(ctx, *grads: Tensor):
        acts_grad, on_grad = grads
        pre, threshold, on = ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.bandwidth / 2
        to_threshold = (threshold * acts_grad + on_grad) * near
        return acts_grad * on, -to_threshold.sum(0) / ctx.bandwidth, None


class JumpReLU(nn.Module):
    """The dictionary while it is trained, on scaled activations `x` [token, d_in] and `y`
    [token, d_out]."""

    def __init__(self, x: Tensor, y: Tensor, recipe: Recipe) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(recipe.seed)
        directions = torch.randn(recipe.d_sae, y.shape[1], generator=generator)
        directions /= directions.norm(dim=1, keepdim=True)
        self.W_dec = nn.Parameter(directions)
        # of a transcoder too, which reads and writes d_model numbers: there any start would do
        self.W_enc = nn.Parameter(directions.T.clone())
        self.b_enc = nn.Parameter(-x.mean(0) @ self.W_enc.detach())
        self.b_dec = nn.Parameter(y.mean(0))
        self.log_threshold = nn.Parameter(torch.full((recipe.d_sae,), recipe.threshold).log())
        self.bandwidth = recipe.bandwidth

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction [token, d_out], which latents are on [token, d_sae], pre-activations."""
        pre = x @ self.W_enc + self.b_enc
        threshold = self.log_threshold.exp()
        acts, on = _Gate.apply(pre, threshold, self.bandwidth)  # thresholds are above zero
        return acts @ self.W_dec + self.b_dec, on, pre

    @torch.no_grad()
    def fold(self, read_scale: Tensor, write_scale: Tensor) -> Dictionary:
        """The same dictionary on raw activations; decoder rows keep norm 1."""
        return Dictionary(
            W_enc=self.W_enc * (write_scale / read_scale),
            b_enc=self.b_enc * write_scale,
            threshold=self.log_threshold.exp() * write_scale,
            W_dec=self.W_dec.detach().clone(),
            b_dec=self.b_dec * write_scale,
        )


def fit(
    read: Tensor, written: Tensor, recipe: Recipe
) -> Iterator[tuple[float, float, Dictionary | None]]:
    """Train on raw activations, `read` [token, d_in] and `written` [token, d_out]: yields squared
    error and L0 each step, and at last the dictionary."""
    read_scale, write_scale = _scale(read), _scale(written)
    x = read / read_scale
    y = x if written is read else written / write_scale
    model = JumpReLU(x, y, recipe)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe))
    generator = torch.Generator().manual_seed(recipe.seed)
    silent = torch.zeros(recipe.d_sae)  # steps since each latent was last on
    for step in range(recipe.steps):
        rows = torch.randint(len(x), (recipe.batch,), generator=generator)
        output, on, pre = model(x[rows])
        error = (output - y[rows]).square().sum(1).mean()
        l0 = on.sum(1).mean()
        ramp = min(1.0, (step + 1) / recipe.warmup)
        loss = error + ramp * recipe.sparsity * (l0 / recipe.target_l0 - 1) ** 2
        silent = torch.where(on.detach().any(0), 0, silent + 1)
        dead = silent > recipe.dead_after
        if dead.any():
            below = torch.relu(model.log_threshold.exp() - pre) * dead
            loss = loss + recipe.pull * below.sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.W_dec.div_(model.W_dec.norm(dim=1, keepdim=True))
        last = step == recipe.steps - 1
        yield error.item(), l0.item(), model.fold(read_scale, write_scale) if last else None


def _scale(raw: Tensor) -> Tensor:
    """Root of the mean squared norm of `raw` [token, d] around its mean."""
    return (raw - raw.mean(0)).square().sum(1).mean().sqrt()


def _rate(step: int, recipe: Recipe) -> float:
    """Constant after a short start, then linearly to zero over the last third."""
    left = (recipe.steps - step) / recipe.steps
    return min(1.0, (step + 1) / 50, 3 * left)
