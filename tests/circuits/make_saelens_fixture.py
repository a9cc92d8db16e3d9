"""Writes `fixtures/saelens_jumprelu.npz`: what SAELens' own Gemma Scope loader makes of a file.

Needs an environment of its own (`pip install sae-lens==6.54.12 torch==2.13.0`); run it from the
root of the repository: `python tests/circuits/make_saelens_fixture.py`. A small `params.npz` in
Gemma Scope's layout is put where SAELens looks for the download; everything after that is SAELens'.
"""

import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from sae_lens import SAE  # pyright: ignore[reportMissingImports]
from sae_lens.loading import pretrained_sae_loaders  # pyright: ignore[reportMissingImports]

REPO = "google/gemma-scope-2b-pt-mlp"
FOLDER = "layer_3/width_16k/average_l0_14"
D_IN, D_SAE, N_ROWS = 24, 96, 16


def params(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights under which a quarter of the latents is active, and some are at their threshold."""
    W_enc = rng.normal(size=(D_IN, D_SAE)) / np.sqrt(D_IN)
    arrays = {
        "W_enc": W_enc,
        "b_enc": rng.normal(size=D_SAE) * 0.1,
        "threshold": rng.uniform(0.0, 1.5, size=D_SAE),
        "W_dec": W_enc.T + 0.1 * rng.normal(size=(D_SAE, D_IN)),
        "b_dec": rng.normal(size=D_IN),
    }
    arrays = {key: array.astype(np.float32) for key, array in arrays.items()}
    # the first latents read nothing, so that their pre-activation is their b_enc: at, just above
    # and just below the threshold, and under a negative one
    arrays["W_enc"][:, :4] = 0
    arrays["threshold"][:4] = [0.5, 0.5, 0.5, -1.0]
    arrays["b_enc"][:4] = [0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0.499, -0.25]
    return arrays


def saelens(path: Path) -> SAE:
    """The dictionary as `SAE.from_pretrained` builds it from a downloaded `path`."""
    with mock.patch.object(pretrained_sae_loaders, "hf_hub_download", return_value=str(path)):
        config, state, _ = pretrained_sae_loaders.gemma_2_sae_huggingface_loader(
            REPO, FOLDER, cfg_overrides={"d_in": D_IN, "d_sae": D_SAE}
        )
    config = pretrained_sae_loaders.handle_pre_6_0_config(config)
    sae = SAE.from_dict(config)
    sae.load_state_dict(state)
    return sae


def main() -> None:
    rng = np.random.default_rng(0)
    arrays = params(rng)
    x = rng.normal(size=(N_ROWS, D_IN)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.npz"
        np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
        sae = saelens(path)
    with torch.no_grad():
        acts = sae.encode(torch.from_numpy(x))
        x_hat = sae.decode(acts)
    target = Path(__file__).parent / "fixtures" / "saelens_jumprelu.npz"
    target.parent.mkdir(exist_ok=True)
    np.savez(target, x=x, acts=acts.numpy(), x_hat=x_hat.numpy(), **arrays)  # pyright: ignore
    print(f"{target}: {(acts != 0).float().mean():.2f} of the latents active")


if __name__ == "__main__":
    main()
