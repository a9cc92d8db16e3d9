"""Llama 2 and 3: a norm before each sublayer and none after it, no soft-caps."""

from typing import Any

import torch
from torch import Tensor

from circuits.families import Family


def scale(norm: Any, x: Tensor) -> Tensor:
    return torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)


def frozen_norm(norm: Any, x: Tensor) -> Tensor:
    held = scale(norm, x).detach()
    return norm.weight * (x.float() * held).type_as(x)  # rounded before the gain


def gain(norm: Any) -> Tensor:
    return norm.weight.float()


FAMILY = Family(
    model_type="llama",
    title="Llama",
    hook_points={
        "embed": "blocks.0.hook_resid_pre",
        "attn": "blocks.{layer}.attn.hook_z",
        "transcoder": "blocks.{layer}.hook_mlp_out",
        "mlp": "blocks.{layer}.hook_mlp_out",  # the MLP's own output
        "resid": "blocks.{layer}.hook_resid_post",
    },
    read_points={"transcoder": "blocks.{layer}.ln2"},
    norms={
        "blocks.{layer}.ln1": "model.layers.{layer}.input_layernorm",
        "blocks.{layer}.ln2": "model.layers.{layer}.post_attention_layernorm",
        "ln_final": "model.norm",
    },
    scale=scale,
    frozen_norm=frozen_norm,
    gain=gain,
    attn_values="model.layers.{layer}.self_attn.v_proj",
    attn_out="model.layers.{layer}.self_attn.o_proj",
    mlp="model.layers.{layer}.mlp",
)
