"""Small dictionaries, in memory and in folders of Gemma Scope's layout."""

from pathlib import Path

import numpy as np
import torch

from circuits.dictionaries import Dictionary
from circuits.formats.npz import save_npz

D_IN, D_SAE = 6, 10


def random_arrays(seed=0, d_in=5, d_sae=7, d_out=5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {
        "W_enc": (d_in, d_sae),
        "b_enc": (d_sae,),
        "W_dec": (d_sae, d_out),
        "b_dec": (d_out,),
    }
    arrays = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    return arrays | {"threshold": rng.uniform(0, 1, size=d_sae).astype(np.float32)}


def as_dictionary(arrays: dict[str, np.ndarray], **kwargs) -> Dictionary:
    return Dictionary(**{key: torch.from_numpy(a) for key, a in arrays.items()}, **kwargs)


def dictionary(seed: int, d_out: int = D_IN) -> Dictionary:
    noise = torch.Generator().manual_seed(seed)
    return Dictionary(
        W_enc=torch.randn(D_IN, D_SAE, generator=noise),
        b_enc=torch.randn(D_SAE, generator=noise),
        threshold=torch.rand(D_SAE, generator=noise),
        W_dec=torch.randn(D_SAE, d_out, generator=noise),
        b_dec=torch.randn(d_out, generator=noise),
    )


def put(folder: Path, *paths: str) -> Path:
    """A dictionary at each of `paths`; its `b_dec[0]` is its L0, to tell which was loaded."""
    for seed, path in enumerate(paths):
        made = dictionary(seed)
        made.b_dec[0] = float(path.rpartition("_")[2])
        save_npz(made, folder / path / "params.npz")
    return folder
