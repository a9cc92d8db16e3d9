"""The public call fetches from a hub what it needs, once; what goes wrong there is one sentence."""

import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants

from circuits.catalogue import catalogue, choose_files
from circuits.errors import UserError
from circuits.gemma_scope import gemma_scope
from circuits.sites import KINDS, Site
from tests.circuits.hub import Hub
from tests.circuits.small_dictionaries import put

MLP = "google/gemma-scope-2b-pt-mlp"


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> dict[str, Path]:
    """The canonical 16k files of two layers under their real names, small inside."""
    root = tmp_path_factory.mktemp("repositories")
    files = choose_files(catalogue()["gemma-2-2b"], layers=[0, 1], owner="2b")
    folders = {file.source: root / file.source.replace("/", "--") for file in files}
    for file in files:
        put(folders[file.source], file.path)
    return folders


@pytest.fixture
def hub(repositories, tmp_path, monkeypatch):
    """The loopback hub, with this process' client turned to it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between attempts
    with Hub(repositories) as hub:
        turn_to(hub.url, monkeypatch)
        yield hub
        huggingface_hub.close_session()


def turn_to(url: str, monkeypatch) -> None:
    """What `HF_ENDPOINT` does for a process that has not imported the client yet."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def load_two(**choice):
    return gemma_scope("gemma-2-2b", layers=[0, 1], sites=("mlp",), **choice)


SCRIPT = """
from circuits.gemma_scope import gemma_scope

for site, dictionary in gemma_scope("gemma-2-2b", layers=[0, 1], sites=("mlp",)).items():
    print(site, dictionary.name, dictionary.average_l0, dictionary.b_dec[0].item())
"""


def test_the_unchanged_call_runs_cold_warm_and_offline(repositories, tmp_path):
    def run(script: str, *, offline: bool) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", script],
            env=hub.environment(tmp_path / "home", offline=offline),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    expected = [
        "mlp.0 layer_0/width_16k/average_l0_119 119.0 119.0",
        "mlp.1 layer_1/width_16k/average_l0_105 105.0 105.0",
    ]
    with Hub(repositories) as hub:
        assert run(SCRIPT * 2, offline=False) == expected * 2
        assert len(hub.downloads()) == 2  # the second time found them in the cache
        n_requests = len(hub.requests)
        assert run(SCRIPT, offline=True) == expected
        assert len(hub.requests) == n_requests


def test_every_kind_comes_from_its_repository_in_the_order_of_the_sites(hub):
    found = gemma_scope("google/gemma-2-2b", layers=[1, 0], dtype=torch.bfloat16)
    assert list(found) == [Site(n, kind) for n in (0, 1) for kind in KINDS]
    assert all(d.W_enc.dtype == torch.bfloat16 for d in found.values())
    assert len({path.split("/")[2] for path in hub.downloads()}) == 3


def hub_says(**choice) -> str:
    with pytest.raises(UserError) as error:
        load_two(**choice)
    message = str(error.value)
    assert "\n" not in message
    assert f"cannot fetch layer_0/width_16k/average_l0_119/params.npz of {MLP}" in message
    return message


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "the hub wants a valid token (401); log in"),
        (403, "the repository is gated; accept its licence at http://127.0.0.1"),
        (404, "has no such repository or does not show it to you"),
        (429, "too many requests (429)"),
        (500, "the hub answered 500; try again later"),
    ],
)
def test_what_the_hub_refuses_becomes_one_sentence(hub, status, says):
    hub.failures[MLP] = status
    assert says in hub_says()


def test_tokens(hub, monkeypatch):
    hub.token = "hf_right"
    assert "set HF_TOKEN" in hub_says()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the hub wants a valid token (401)" in hub_says()
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert len(load_two()) == 2


def test_a_file_the_repository_lacks(hub, tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "README.md").write_text("nothing else")
    hub.repositories[MLP] = tmp_path / "bare"
    assert "the repository has no such file (404)" in hub_says()


def test_offline_without_a_cache(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    assert "not in the cache and offline mode is on; unset HF_HUB_OFFLINE" in hub_says()


def test_nothing_listens(hub, monkeypatch):
    turn_to("http://127.0.0.1:9", monkeypatch)
    assert "from http://127.0.0.1:9: ConnectError" in (message := hub_says())
    assert "check the connection" in message


def test_what_is_cached_needs_no_hub(hub, monkeypatch):
    load_two()
    turn_to("http://127.0.0.1:9", monkeypatch)
    assert len(load_two()) == 2


def test_a_connection_cut_half_way_resumes_on_the_next_call(hub):
    hub.cut = 200
    try:
        load_two()
    except UserError as error:
        assert "check the connection" in str(error)  # noqa: PT017 - it may also have resumed
    hub.cut = None
    assert len(load_two()) == 2


def test_a_file_damaged_in_the_cache_is_named(hub):
    load_two()
    (path,) = Path(constants.HF_HUB_CACHE).glob("models--*-mlp/snapshots/*/layer_0/*/*/params.npz")
    path.resolve().write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="truncated or corrupt; delete it and fetch"):
        load_two()


def test_a_full_disk_is_named(monkeypatch):
    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    assert "no space left on the disk" in hub_says()


def test_the_loopback_hub_serves_ranges_and_listings(hub):
    api = huggingface_hub.HfApi(endpoint=hub.url)
    names = api.list_repo_files(MLP)
    assert len(names) == 2
    assert api.repo_info(MLP).sha == hub.commit(MLP)
    folder = huggingface_hub.snapshot_download(MLP)
    assert sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*.npz")) == names
    np.testing.assert_array_equal(
        np.load(Path(folder) / names[0], allow_pickle=False)["b_dec"],
        np.load(hub.repositories[MLP] / names[0], allow_pickle=False)["b_dec"],
    )
