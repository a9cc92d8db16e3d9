"""The models that tests share: random ones with random dictionaries, and the bundled one."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network must fail

from pathlib import Path
from typing import Any

import pytest
import torch

from circuits import SplicedModel, load, load_gemma, splice
from tests.random_gemma import random_dictionaries, save_random_gemma
from tests.random_llama import save_random_llama

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):  # they share the cores
    n_threads = max(1, (os.cpu_count() or 1) // workers)
    torch.set_num_threads(n_threads)
    os.environ["OMP_NUM_THREADS"] = str(n_threads)  # of the processes that tests start


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


_loaded: dict[str, SplicedModel] = {}


def _load_once(*arguments: Any, **named: Any) -> SplicedModel:
    asked = repr((arguments, sorted(named.items())))
    if asked not in _loaded:
        _loaded[asked] = load(*arguments, **named)
    return _loaded[asked]


@pytest.fixture
def load_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What scripts and commands load is loaded once in the whole run."""
    monkeypatch.setattr("circuits.load", _load_once)
    for module in ("experiments.examples.demo", "experiments.study.runner"):
        monkeypatch.setattr(f"{module}.load", _load_once)
