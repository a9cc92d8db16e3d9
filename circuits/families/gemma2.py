"""Gemma 2: a norm before and after each sublayer, gains stored as an offset from 1."""

from typing import Any

import torch
from torch import Tensor

from circuits.families import Family


def scale(norm: Any, x: Tensor) -> Tensor:
    return torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + norm.eps)


def frozen_norm(norm: Any, x: Tensor) -> Tensor:
    held = scale(norm, x).detach()
    return (x.float() * held * (1.0 + norm.weight.float())).type_as(x)  # rounded last


def gain(norm: Any) -> Tensor:
    return 1 + norm.weight.float()


FAMILY = Family(
    model_type="gemma2",
    title="Gemma 2",
    hook_points={
        # scaled by sqrt(d_model), which `embed.hook_out` is in some versions and not in others
        "embed": "blocks.0.hook_resid_pre",
        "attn": "blocks.{layer}.attn.hook_z",
        "transcoder": "blocks.{layer}.hook_mlp_out",
        "mlp": "blocks.{layer}.hook_mlp_out",  # the output of ln2_post
        "resid": "blocks.{layer}.hook_resid_post",
    },
    read_points={"transcoder": "blocks.{layer}.ln2"},
    norms={
        "blocks.{layer}.ln1": "model.layers.{layer}.input_layernorm",
        "blocks.{layer}.ln1_post": "model.layers.{layer}.post_attention_layernorm",
        "blocks.{layer}.ln2": "model.layers.{layer}.pre_feedforward_layernorm",
        "blocks.{layer}.ln2_post": "model.layers.{layer}.post_feedforward_layernorm",
        "ln_final": "model.norm",
    },
    scale=scale,
    frozen_norm=frozen_norm,
    gain=gain,
    attn_values="model.layers.{layer}.self_attn.v_proj",
    attn_out="model.layers.{layer}.self_attn.o_proj",
    mlp="model.layers.{layer}.mlp",
    attn_out_norm="blocks.{layer}.ln1_post",
    soft_cap="final_logit_softcapping",
)
