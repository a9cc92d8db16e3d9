"""Writes `fixtures/saelens/`: small dictionaries saved by SAELens, and what it computes with each.

Needs an environment of its own (`pip install sae-lens==6.54.12 torch==2.13.0`); run it from the
root of the repository: `python tests/circuits/make_saelens_formats_fixture.py`. Weights are random;
SAELens saves them, loads them again from disk, and its `encode` and `forward` are recorded in
`recorded.npz`. Of the `old_` ones, the config alone is written here, flat, as SAELens 3 to 5 wrote
it; SAELens 6 reads it.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from sae_lens import (  # pyright: ignore[reportMissingImports]
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
)
from sae_lens.saes.sae import SAEMetadata  # pyright: ignore[reportMissingImports]
from sae_lens.training.activation_scaler import (  # pyright: ignore[reportMissingImports]
    ActivationScaler,
)

D_IN, D_SAE, D_OUT, N_ROWS = 8, 24, 6, 12
TARGET = Path(__file__).parent / "fixtures" / "saelens"

V6 = {
    "standard": {"architecture": "standard", "hook_name": "blocks.0.hook_resid_post"},
    "standard_raw_input": {
        "architecture": "standard",
        "apply_b_dec_to_input": False,
        "hook_name": "blocks.0.hook_mlp_out",
    },
    "gated": {"architecture": "gated", "hook_name": "blocks.1.hook_resid_post"},
    "gated_raw_input": {
        "architecture": "gated",
        "apply_b_dec_to_input": False,
        "hook_name": "blocks.1.hook_mlp_out",
    },
    "jumprelu": {"architecture": "jumprelu", "hook_name": "blocks.2.hook_resid_post"},
    "jumprelu_bfloat16": {
        "architecture": "jumprelu",
        "dtype": "bfloat16",
        "hook_name": "blocks.2.hook_mlp_out",
    },
    "topk": {"architecture": "topk", "k": 5, "hook_name": "blocks.3.hook_resid_pre"},
    "topk_rescaled": {
        "architecture": "topk",
        "k": 5,
        "rescale_acts_by_decoder_norm": True,
        "hook_name": "blocks.3.hook_mlp_out",
    },
    "hook_z": {
        "architecture": "jumprelu",
        "reshape_activations": "hook_z",
        "hook_name": "blocks.3.attn.hook_z",
    },
    "transcoder": {"architecture": "transcoder", "d_out": D_OUT},
    "skip_transcoder": {"architecture": "skip_transcoder", "d_out": D_OUT},
    "skip_transcoder_square": {"architecture": "skip_transcoder", "d_out": D_IN},
    "jumprelu_transcoder": {"architecture": "jumprelu_transcoder", "d_out": D_OUT},
    "jumprelu_skip_transcoder": {"architecture": "jumprelu_skip_transcoder", "d_out": D_IN},
}
"""What is special in each config."""

OLD = {
    "old_standard": ("standard", {"activation_fn_str": "relu", "normalize_activations": False}),
    "old_no_architecture": ("standard", {"architecture": None, "apply_b_dec_to_input": None}),
    "old_gated": ("gated", {"apply_b_dec_to_input": False}),
    "old_jumprelu": ("jumprelu", {"normalize_activations": None}),
    "old_topk": (
        "topk",
        {
            "architecture": "standard",
            "activation_fn_str": "topk",
            "activation_fn_kwargs": {"k": 4},
        },
    ),
}
"""The architecture whose weights are saved, and what is special in the flat config."""


def randomize(sae: torch.nn.Module, rng: torch.Generator) -> None:
    """Weights under which every branch matters: biases, thresholds and norms of all sizes."""

    def noise(parameter: torch.Tensor, scale: float) -> torch.Tensor:
        return torch.randn(parameter.shape, generator=rng).to(parameter.dtype) * scale

    scales = {"W_enc": 0.5, "W_dec": 0.7, "b_gate": 0.7, "b_mag": 0.7, "r_mag": 0.5, "b_dec": 0.8}
    for name, parameter in sae.named_parameters():
        parameter.data = noise(parameter, scales.get(name, 0.4))
        if name == "threshold":
            parameter.data = parameter.data.abs() * 3
            parameter.data[0] = -1  # a negative one lets nothing negative through


def make(config: dict) -> SAE:
    config = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "device": "cpu", **config}
    hook = config.pop("hook_name", "blocks.1.ln2.hook_normalized")
    config["metadata"] = {"model_name": "gemma-2-2b", "hook_name": hook}
    if "transcoder" in config["architecture"]:
        config["apply_b_dec_to_input"] = False
        config["metadata"]["hook_name_out"] = "blocks.1.hook_mlp_out"
    return SAE.from_dict(config)


@torch.no_grad()
def record(sae: SAE, folder: Path, rng: torch.Generator, scaler: ActivationScaler | None) -> None:
    x = torch.randn(N_ROWS, D_IN, generator=rng)
    given = x.reshape(N_ROWS, 2, D_IN // 2) if "hook_z" in folder.name else x
    scaled = scaler.scale(given) if scaler else given
    acts = sae.encode(scaled)
    x_hat = sae(scaled).reshape(N_ROWS, -1)
    x_hat = scaler.unscale(x_hat) if scaler else x_hat
    np.savez(folder / "recorded.npz", x=x.numpy(), acts=acts.numpy(), x_hat=x_hat.numpy())
    print(f"{folder.name}: {(acts != 0).float().sum(-1).mean():.1f} of {D_SAE} active")


def old_config(name: str, special: dict) -> dict:
    config = {
        "architecture": OLD[name][0],
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "torch.float32",
        "device": "cpu",
        "model_name": "gemma-2-2b",
        "hook_name": "blocks.2.attn.hook_z",
        "hook_layer": 2,
        "hook_head_index": None,
        "prepend_bos": True,
        "context_size": 128,
        "dataset_path": "monology/pile-uncopyrighted",
        "finetuning_scaling_factor": False,
        "apply_b_dec_to_input": True,
        "sae_lens_training_version": "5.0.0",
        "reshape_activations": "none",
        **special,
    }
    if name == "old_no_architecture":  # before there was more than one, and this was an option
        config["hook_point"] = config.pop("hook_name")
    return {key: value for key, value in config.items() if value is not None or "norm" in key}


def main() -> None:
    shutil.rmtree(TARGET, ignore_errors=True)
    rng = torch.Generator().manual_seed(0)
    for name, config in V6.items():
        sae = make(config)
        randomize(sae, rng)
        sae.save_model(TARGET / name)
        record(SAE.load_from_disk(TARGET / name, dtype="float32"), TARGET / name, rng, None)
    for name, (architecture, special) in OLD.items():
        sae = make({"architecture": architecture, **({"k": 4} if architecture == "topk" else {})})
        randomize(sae, rng)
        sae.save_model(TARGET / name)
        (TARGET / name / "cfg.json").write_text(json.dumps(old_config(name, special)))
        record(SAE.load_from_disk(TARGET / name), TARGET / name, rng, None)

    metadata = SAEMetadata(model_name="gemma-2-2b", hook_name="blocks.0.attn.hook_z")
    batch = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(D_IN, D_SAE, k=5, device="cpu", metadata=metadata)
    )
    randomize(batch, rng)
    batch.topk_threshold = torch.tensor(0.9, dtype=batch.topk_threshold.dtype)
    batch.save_inference_model(TARGET / "batchtopk")
    record(SAE.load_from_disk(TARGET / "batchtopk"), TARGET / "batchtopk", rng, None)

    scaled = StandardTrainingSAE(
        StandardTrainingSAEConfig(
            D_IN,
            D_SAE,
            device="cpu",
            normalize_activations="expected_average_only_in",
            metadata=SAEMetadata(model_name="gemma-2-2b", hook_name="blocks.1.attn.hook_z"),
        )
    )
    randomize(scaled, rng)
    scaled.save_model(TARGET / "scaled_checkpoint")
    scaler = ActivationScaler(scaling_factor=0.37)
    scaler.save(str(TARGET / "scaled_checkpoint" / "activation_scaler.json"))
    record(scaled, TARGET / "scaled_checkpoint", rng, scaler)


if __name__ == "__main__":
    main()
