"""A researcher's own folders, as `--model` and `--dictionaries` take them, and the plain model."""

from pathlib import Path

import numpy as np
import pytest
from transformers import Gemma2ForCausalLM

from circuits.catalogue import KIND_OF_SUFFIX


def save_dictionaries(folder: Path, dictionaries: dict) -> Path:
    """In the hub's layout: one folder a kind, below it Gemma Scope's."""
    suffixes = {kind: suffix for suffix, kind in KIND_OF_SUFFIX.items()}
    for site, d in dictionaries.items():
        home = folder / f"random-{suffixes[site.kind]}" / f"layer_{site.layer}"
        path = home / "width_96" / "average_l0_10"
        path.mkdir(parents=True)
        names = ("W_enc", "b_enc", "threshold", "W_dec", "b_dec")
        np.savez(path / "params.npz", **{name: getattr(d, name).numpy() for name in names})
    return folder


@pytest.fixture(autouse=True)
def _load_once(load_once):
    """Here scripts and commands load the same models again and again."""


@pytest.fixture(scope="session")
def plain(gemma_folder):
    """The random model without TransformerLens."""
    return Gemma2ForCausalLM.from_pretrained(gemma_folder).eval()


@pytest.fixture(scope="session")
def dictionaries_folder(model, tmp_path_factory) -> Path:
    return save_dictionaries(tmp_path_factory.mktemp("dictionaries"), dict(model.dictionaries))


@pytest.fixture(scope="session")
def own(gemma_folder, dictionaries_folder) -> list[str]:
    """Options that name the random model and its dictionaries."""
    return ["--model", str(gemma_folder), "--dictionaries", str(dictionaries_folder),
            "--device", "cpu"]  # fmt: skip
