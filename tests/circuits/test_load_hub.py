"""The public call `load("gemma-2-2b")` runs unchanged against a hub: model and dictionaries."""

import subprocess
import sys

import pytest

from circuits import Site
from circuits.catalogue import catalogue, choose_files
from circuits.dictionaries import save_npz
from tests.circuits.hub import Hub
from tests.random_gemma import N_LAYERS, random_dictionaries, save_random_gemma

SCRIPT = """
import torch
from circuits import UserError, load

try:
    model = load("gemma-2-2b", sites=("mlp", "resid"), device="cpu")
except UserError as error:
    print(error)
else:
    keep = dict.fromkeys(model.sites, lambda acts, error: (acts, error))
    ids = model.tokens("w1 w2 w3")
    print(model)
    print(torch.equal(model.run(ids, keep), model.bridge(ids)))
"""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """A small Gemma 2 and its dictionaries under the real names, in the true layout."""
    root = tmp_path_factory.mktemp("hub")
    folders = {"google/gemma-2-2b": save_random_gemma(root / "model", n_layers=26)}
    small = random_dictionaries()
    for file in choose_files(
        catalogue()["gemma-2-2b"], sites=("mlp", "resid"), width="16k", owner="2b"
    ):
        folder = folders.setdefault(file.source, root / file.source.replace("/", "--"))
        site = Site(min(file.site.layer, N_LAYERS - 1), file.site.kind)
        save_npz(small[site], folder / file.path / "params.npz")
    return folders


def run(hub, home, *, offline=False):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=hub.environment(home, offline=offline),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_cold_warm_offline_and_refused(repositories, tmp_path):
    with Hub(repositories) as hub:
        hub.failures["google/gemma-2-2b"] = 403
        (message,) = run(hub, tmp_path)
        assert "the repository is gated; accept its licence" in message
        hub.failures.clear()
        expected = ["SplicedModel('gemma-2-2b', layers 0-25 at mlp, resid, float32, cpu)", "True"]
        assert run(hub, tmp_path) == expected
        n_downloads = len(hub.downloads())
        assert run(hub, tmp_path) == expected
        assert len(hub.downloads()) == n_downloads
        assert run(hub, tmp_path, offline=True) == expected
