"""The public call `load("gemma-2-2b")` runs unchanged against a hub: model and dictionaries."""

import inspect
import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch
from huggingface_hub import constants

from circuits import Site, UserError, load
from circuits.catalogue import catalogue, choose_files
from circuits.formats.npz import save_npz
from circuits.loading.hub import commit_of, download_model
from circuits.loading.models import model_folder
from tests.circuits.hub import Hub
from tests.random_gemma import N_LAYERS, random_dictionaries, save_random_gemma

MODEL = "google/gemma-2-2b"
MLP = "google/gemma-scope-2b-pt-mlp"
SHARDS = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
FIRST = "layer_0/width_16k/average_l0_119/params.npz"
SECOND = "layer_1/width_16k/average_l0_105/params.npz"

LOADED = "SplicedModel('gemma-2-2b', layers 0-25 at mlp, resid, bfloat16, cpu) True"


def said() -> str:
    """What a call of `load` gives: the model, and whether it is the plain one; or why not."""
    try:
        model = load("gemma-2-2b", sites=("mlp", "resid"), device="cpu")
    except UserError as error:
        return str(error)
    keep = dict.fromkeys(model.sites, lambda acts, error: (acts, error))
    ids = model.tokens("w1 w2 w3")
    return f"{model} {torch.equal(model.run(ids, keep), model.bridge(ids))}"


SCRIPT = f"""
import sys
import time
import torch
from circuits import UserError, load

{inspect.getsource(said)}

time.sleep = lambda seconds: None  # the client waits between attempts
for line in sys.stdin:
    print(said(), flush=True)
"""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """A small Gemma 2 in three shards and its dictionaries, under the real names and layout."""
    root = tmp_path_factory.mktemp("hub")
    folders = {MODEL: save_random_gemma(root / "model", num_hidden_layers=26)}
    in_shards(folders[MODEL])
    small = random_dictionaries()
    for file in choose_files(
        catalogue()["gemma-2-2b"], sites=("mlp", "resid"), width="16k", owner="2b"
    ):
        folder = folders.setdefault(file.source, root / file.source.replace("/", "--"))
        site = Site(min(file.site.layer, N_LAYERS - 1), file.site.kind)
        save_npz(small[site], folder / file.path / "params.npz")
    return folders


def in_shards(folder: Path) -> None:
    """Split `model.safetensors` as the large models on the hub are."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    names = sorted(tensors)
    places = {name: SHARDS[i * len(SHARDS) // len(names)] for i, name in enumerate(names)}
    for shard in SHARDS:
        kept = {name: tensors[name] for name in names if places[name] == shard}
        safetensors.torch.save_file(kept, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


@contextmanager
def process(hub, home):
    """A process whose every call loads once more and returns what it printed."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        env=hub.environment(home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None

        def load_again() -> str:
            print(file=running.stdin, flush=True)
            return running.stdout.readline().strip()  # type: ignore[union-attr]

        try:
            yield load_again
        finally:
            running.stdin.close()
            running.wait(timeout=60)


def in_cache(home: Path, repo: str, file: str) -> Path:
    (path,) = home.glob(f"hub/models--{repo.replace('/', '--')}/snapshots/*/{file}")
    return path


def damage(path: Path, *, keep: int | None = None) -> Path:
    """Cut the file that the link `path` stands for to `keep` bytes, or flip a bit of it."""
    blob = path.resolve()
    raw = bytearray(blob.read_bytes())
    raw[len(raw) // 2] ^= 1
    blob.write_bytes(raw if keep is None else raw[:keep])
    return path


def test_refused_interrupted_damaged_cold_and_warm(repositories, tmp_path):
    with Hub(repositories) as hub, process(hub, tmp_path) as load_again:
        hub.token = "hf_right"
        assert "set HF_TOKEN" in load_again()
        hub.token = None
        for status, says in [
            (401, f"of {MODEL}: the hub wants a valid token (401)"),
            (403, "the repository is gated; accept its licence"),
            (404, "has no such repository or does not show it to you"),
            (429, "too many requests (429); wait some minutes"),
            (500, "the hub answered 500; try again later"),
        ]:
            hub.failures[MODEL] = status
            assert says in load_again()
        hub.failures.clear()
        assert not hub.downloads()

        hub.broken_at = 30_000  # beyond the small files, within the shards
        assert "files that arrived whole are kept" in load_again()
        n_small = sum("json" in path for path in hub.downloads())
        hub.broken_at = None
        assert load_again() == LOADED
        assert sum("json" in path for path in hub.downloads()) == n_small

        n_downloads = len(hub.downloads())
        assert load_again() == LOADED
        assert len(hub.downloads()) == n_downloads

        damaged = [
            damage(in_cache(tmp_path, MODEL, SHARDS[1]), keep=1000),
            damage(in_cache(tmp_path, MODEL, "tokenizer.json")),
            damage(in_cache(tmp_path, MLP, FIRST)),
            damage(in_cache(tmp_path, MLP, SECOND), keep=1000),
        ]
        for path in damaged:
            assert load_again().startswith(f"{path} was not what the hub has")
        assert load_again() == LOADED
        assert len(hub.downloads()) == n_downloads + len(damaged)


@pytest.fixture
def hub(repositories, tmp_path, monkeypatch):
    """The loopback hub, with this process' client turned to it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with Hub(repositories) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)
        yield hub
        huggingface_hub.close_session()


def test_offline(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert f"cannot fetch the files of {MODEL}: it is not in the cache and offline" in said()
    with monkeypatch.context() as online:
        online.setattr(constants, "HF_HUB_OFFLINE", False)
        for repo in hub.repositories:
            huggingface_hub.snapshot_download(repo)
    n_requests = len(hub.requests)
    assert said() == LOADED
    in_cache(tmp_path, MLP, SECOND).unlink()
    assert f"cannot fetch {SECOND} of {MLP}: it is not in the cache and offline mode" in said()
    in_cache(tmp_path, MODEL, SHARDS[1]).unlink()
    assert f"cannot fetch {SHARDS[1]} of {MODEL}: " in (message := said())
    assert "not in the cache" in message
    shutil.rmtree(tmp_path / "hub" / "models--google--gemma-2-2b" / "trees", ignore_errors=True)
    assert f"cannot fetch {SHARDS[1]} of {MODEL}: " in said()  # as older clients leave it
    assert len(hub.requests) == n_requests


def test_a_model_can_be_pinned_and_its_commit_named(hub, tmp_path):
    first = hub.commit(MODEL)
    newer = tmp_path / "newer"
    shutil.copytree(hub.repositories[MODEL], newer)
    (newer / "generation_config.json").write_text("{}")
    hub.older[MODEL], hub.repositories[MODEL] = [hub.repositories[MODEL]], newer
    hub.tags[MODEL] = {"v1": hub.older[MODEL][0]}
    assert commit_of(model_folder("gemma-2-2b")) == hub.commit(MODEL) != first
    for revision in (first, "v1", {MODEL: "v1"}):
        folder = model_folder("gemma-2-2b", revision)
        assert commit_of(folder) == commit_of(folder / SHARDS[0]) == first
        assert (folder / "generation_config.json").read_text() != "{}"
    with pytest.raises(UserError, match=r"google/gemma-2-2b: the repository has no such revision"):
        model_folder("gemma-2-2b", "v9")


@pytest.mark.parametrize("name", [SHARDS[2], "model.safetensors.index.json"])
def test_a_repository_whose_own_file_is_damaged(hub, tmp_path, name):
    """It is what the hub has, so that fetching it again cannot help."""
    folder = tmp_path / "damaged"
    shutil.copytree(hub.repositories[MODEL], folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:200])
    hub.repositories[MODEL] = folder
    with pytest.raises(UserError, match=rf"{name} is .*; delete it and load again"):
        download_model(MODEL)


def test_a_hub_out_of_reach_with_a_part_in_the_cache_names_what_is_missing(hub, monkeypatch):
    folder = download_model(MODEL)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert download_model(MODEL) == folder
    (folder / SHARDS[1]).unlink()
    with pytest.raises(UserError, match=rf"cannot fetch {SHARDS[1]} of {MODEL} from .*Connect"):
        download_model(MODEL)


def test_a_repository_that_lacks_a_shard_names_it(hub, tmp_path):
    folder = tmp_path / "lacking"
    shutil.copytree(hub.repositories[MODEL], folder)
    (folder / SHARDS[0]).unlink()
    hub.repositories[MODEL] = folder
    with pytest.raises(UserError, match=f"cannot fetch {SHARDS[0]} of {MODEL}: not in the cache"):
        download_model(MODEL)
