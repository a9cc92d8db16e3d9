"""Writes `fixtures/dictionary_learning/`: what the library saves, and what it computes with it.

Needs an environment of its own (`pip install dictionary-learning==0.1.0 torch==2.13.0`, and
`pip uninstall torchvision` if that does not fit); run it from the root of the repository:
`python tests/circuits/make_dictionary_learning_fixture.py`. The library's trainers make random
dictionaries, `trainSAE` with no step of training saves them, `load_dictionary` reads them back, and
their `encode` and `decode` are recorded in `recorded.npz`.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from dictionary_learning.dictionary import AutoEncoderNew  # pyright: ignore[reportMissingImports]
from dictionary_learning.trainers.batch_top_k import (  # pyright: ignore[reportMissingImports]
    BatchTopKTrainer,
)
from dictionary_learning.trainers.gdm import GatedSAETrainer  # pyright: ignore
from dictionary_learning.trainers.jumprelu import JumpReluTrainer  # pyright: ignore
from dictionary_learning.trainers.matryoshka_batch_top_k import (  # pyright: ignore
    MatryoshkaBatchTopKTrainer,
)
from dictionary_learning.trainers.standard import StandardTrainer  # pyright: ignore
from dictionary_learning.trainers.top_k import TopKTrainer  # pyright: ignore
from dictionary_learning.training import trainSAE  # pyright: ignore[reportMissingImports]
from dictionary_learning.utils import load_dictionary  # pyright: ignore[reportMissingImports]

D_IN, D_SAE, N_ROWS = 8, 24, 12
TARGET = Path(__file__).parent / "fixtures" / "dictionary_learning"


class NewTrainer(StandardTrainer):
    """The library's own trainers write `AutoEncoder` for this class too."""

    @property
    def config(self) -> dict:
        return {**super().config, "dict_class": "AutoEncoderNew"}


CASES = {
    "auto_encoder": (StandardTrainer, {"submodule_name": "resid_post_layer_0"}),
    "auto_encoder_new": (
        NewTrainer,
        {"dict_class": AutoEncoderNew, "submodule_name": "mlp_out_layer_0"},
    ),
    "gated": (GatedSAETrainer, {"submodule_name": "resid_post_layer_1"}),
    "jumprelu": (JumpReluTrainer, {"submodule_name": "mlp_out_layer_1"}),
    "topk": (TopKTrainer, {"k": 5, "submodule_name": "resid_post_layer_2"}),
    "batch_topk": (BatchTopKTrainer, {"k": 5, "submodule_name": "mlp_out_layer_2"}),
    "matryoshka": (
        MatryoshkaBatchTopKTrainer,
        {"k": 5, "group_fractions": [0.25, 0.75], "submodule_name": "resid_post_layer_3"},
    ),
}


@torch.no_grad()
def randomize(ae: torch.nn.Module, rng: torch.Generator) -> None:
    """Weights under which every branch matters: biases, thresholds and norms of all sizes."""
    for name, parameter in ae.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng) * 0.6
        if name == "threshold":
            parameter.data = parameter.data.abs() * 2
            parameter.data[0] = -1  # a negative one lets nothing negative through
    for name, buffer in ae.named_buffers():
        if name == "threshold":
            buffer.fill_(0.9)


def main() -> None:
    shutil.rmtree(TARGET, ignore_errors=True)
    rng = torch.Generator().manual_seed(0)
    for name, (trainer_class, special) in CASES.items():

        def trainer(trainer_class=trainer_class, **config):
            made = trainer_class(**config)
            randomize(made.ae, rng)
            return made

        config = {
            "trainer": trainer,
            "steps": 10,
            "activation_dim": D_IN,
            "dict_size": D_SAE,
            "layer": int(special["submodule_name"][-1]),
            "lm_name": "google/gemma-2-2b",
            "device": "cpu",
            "warmup_steps": 1,
            **special,
        }
        if trainer_class not in (TopKTrainer, BatchTopKTrainer, MatryoshkaBatchTopKTrainer):
            config["sparsity_warmup_steps"] = 2
        data = [torch.randn(4, D_IN, generator=rng)]
        trainSAE(data, [config], steps=0, save_dir=str(TARGET / name), device="cpu")
        folder = TARGET / name
        for file in ("ae.pt", "config.json"):
            (folder / "trainer_0" / file).rename(folder / file)
        (folder / "trainer_0").rmdir()

        ae, saved = load_dictionary(str(folder), device="cpu")
        x = torch.randn(N_ROWS, D_IN, generator=rng)
        with torch.no_grad():
            acts = ae.encode(x)
            x_hat = ae.decode(acts)
        np.savez(folder / "recorded.npz", x=x.numpy(), acts=acts.numpy(), x_hat=x_hat.numpy())
        l0 = (acts != 0).float().sum(-1).mean()
        print(f"{name}: {json.dumps(saved['trainer']['dict_class'])}, {l0:.1f} of {D_SAE} active")


if __name__ == "__main__":
    main()
