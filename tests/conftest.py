"""The models that tests share: random ones with random dictionaries, and the bundled one."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network must fail

from pathlib import Path

import pytest
import torch

from circuits import SplicedModel, load, load_gemma, splice
from tests.random_gemma import random_dictionaries, save_random_gemma
from tests.random_llama import save_random_llama

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):  # they share the cores
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


@pytest.fixture(scope="session")
def gemma_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_gemma(tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="session")
def bridge(gemma_folder: Path):
    return load_gemma(str(gemma_folder), device="cpu")


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def llama_bridge(llama_folder: Path):
    return load_gemma(str(llama_folder), device="cpu")


@pytest.fixture(scope="session")
def model(bridge) -> SplicedModel:
    """Every site spliced, float32."""
    return splice(bridge, random_dictionaries(), name="random")


@pytest.fixture(scope="session")
def tiny() -> SplicedModel:
    """The bundled model with its dictionaries."""
    return load("tiny", device="cpu")
