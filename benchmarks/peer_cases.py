"""The cases of `against_peers.py`: random models, transcoders and prompts, for both sides alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from random_gemma import Shape, prompt_ids
from torch import Tensor

VOCAB, D_SAE = 1024, 4096
SHAPES = {
    256: Shape(n_layers=6, d_model=256, n_heads=4, n_kv_heads=2, head_dim=64, d_mlp=1024),
    2304: Shape(n_layers=3, d_model=2304, n_heads=8, n_kv_heads=4, head_dim=256, d_mlp=9216),
}
BATCH_SIZES = {
    256: {1000: (512, 128, 64, 32), 4000: (512, 128, 64), 10000: (512, 64)},
    2304: {1000: (128, 32, 16), 4000: (64, 32), 10000: (32,)},
}
"""That circuit-tracer is tried with, by `d_model` and number of latents; its default is 512."""


@dataclass(frozen=True)
class Case:
    """A model, a prompt's length and about how many latents are active on it."""

    d_model: int
    latents: int
    tokens: int

    @property
    def name(self) -> str:
        return f"d{self.d_model}-{self.latents // 1000}k-{self.tokens}"


CASES = [
    *(Case(256, latents, tokens) for tokens in (8, 24, 48) for latents in (1000, 4000, 10000)),
    *(Case(2304, latents, 24) for latents in (1000, 4000, 10000)),
]


@torch.no_grad()
def describe(case: Case, folder: Path, threads: int) -> dict[str, Any]:
    """What both sides are told; writes a transcoder for each layer of the model in `folder`."""
    from safetensors.torch import save_file
    from transformers import Gemma2ForCausalLM

    model: Any = Gemma2ForCausalLM.from_pretrained(folder, attn_implementation="eager")
    ids = prompt_ids(VOCAB, case.tokens, seed=1)
    read, written = [], []

    def keep_read(module: Any, args: tuple[Tensor], out: Tensor) -> None:
        x = args[0][0, 1:]  # what the norm reads, without BOS, where neither side has latents
        read.append(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.eps))

    def keep_written(module: Any, args: tuple[Tensor], out: Tensor) -> None:
        written.append(out[0, 1:])

    for layer in model.model.layers:
        layer.pre_feedforward_layernorm.register_forward_hook(keep_read)
        layer.post_feedforward_layernorm.register_forward_hook(keep_written)
    assert model(torch.tensor([ids])).logits.isfinite().all()
    torch.manual_seed(2)
    files = []
    for layer, (x_in, x_out) in enumerate(zip(read, written, strict=True)):
        files.append(str(folder / f"{case.name}.transcoder.{layer}.safetensors"))
        save_file(transcoder(x_in, x_out, case.latents // len(read)), files[-1])
    return {"folder": str(folder), "transcoders": files, "ids": ids, "threads": threads}


def transcoder(x_in: Tensor, x_out: Tensor, active: int) -> dict[str, Tensor]:
    """A random encoder, of which about `active` latents are on at the positions of `x_in [n, d]`.

    The decoder is random too, then moved by the least that takes away nine tenths of what it misses
    of `x_out [n, d]`: were errors all there is, pruning would have no latents to keep.
    """
    d_model = x_in.shape[1]
    W_enc = torch.randn(d_model, D_SAE) * d_model**-0.5
    b_enc, b_dec = torch.randn(D_SAE) * 0.1, torch.randn(d_model) * 0.1
    pre = x_in @ W_enc + b_enc
    at = threshold(pre, active)
    acts = pre * (pre > at)
    W_dec = torch.randn(D_SAE, d_model) * 0.01
    W_dec += 0.9 * torch.linalg.pinv(acts) @ (x_out - acts @ W_dec - b_dec)
    thresholds = torch.full((D_SAE,), at)
    return {"W_enc": W_enc, "b_enc": b_enc, "threshold": thresholds, "W_dec": W_dec, "b_dec": b_dec}


def threshold(pre: Tensor, wanted: int) -> float:
    """What about `wanted` of `pre` exceed: the middle of the widest gap within 1 %.

    In the middle of a gap, rounding cannot put a latent on the other side for one of the two.
    """
    falling = pre.flatten().sort(descending=True).values
    spread = max(wanted // 100, 2)
    near = falling[wanted - spread : wanted + spread]
    at = int((near[:-1] - near[1:]).argmax())
    return float(near[at : at + 2].mean())
