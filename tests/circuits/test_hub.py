"""The public call fetches from a hub what it needs, once; what goes wrong there is one sentence."""

import errno
import os
import shutil
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
from circuits.formats.npz import load_npz, save_npz
from circuits.loading.gemma_scope import gemma_scope, locator, scope_files
from circuits.loading.hub import commit_of, download, list_files, verify
from circuits.loading.models import load_gemma
from circuits.sites import KINDS, Site
from circuits.splice import splice
from tests.circuits.hub import Hub
from tests.circuits.small_dictionaries import D_IN, dictionary, put
from tests.random_gemma import TEXT, random_transcoders

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
from circuits.loading.gemma_scope import gemma_scope

for site, dictionary in gemma_scope("gemma-2-2b", layers=[0, 1], sites=("mlp",)).items():
    print(site, dictionary.name, dictionary.average_l0, dictionary.b_dec[0].item())
"""


def test_the_unchanged_call_runs_cold_and_warm(repositories, tmp_path):
    expected = [
        "mlp.0 layer_0/width_16k/average_l0_119 119.0 119.0",
        "mlp.1 layer_1/width_16k/average_l0_105 105.0 105.0",
    ]
    with Hub(repositories) as hub:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", SCRIPT * 2],
            env=hub.environment(tmp_path / "home"),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == expected * 2
        assert len(hub.downloads()) == 2  # the second time found them in the cache


def test_every_kind_comes_from_its_repository_in_the_order_of_the_sites(hub):
    found = gemma_scope("google/gemma-2-2b", layers=[1, 0], dtype=torch.bfloat16)
    assert list(found) == [Site(n, kind) for n in (0, 1) for kind in KINDS]
    assert all(d.W_enc.dtype == torch.bfloat16 for d in found.values())
    assert len({path.split("/")[2] for path in hub.downloads()}) == 3


FIRST = "layer_0/width_16k/average_l0_119/params.npz"
SECOND = "layer_1/width_16k/average_l0_105/params.npz"


def hub_says(filename: str = FIRST, **choice) -> str:
    with pytest.raises(UserError) as error:
        load_two(**choice)
    message = str(error.value)
    assert "\n" not in message
    assert f"cannot fetch {filename} of {MLP}" in message
    return message


def cached(filename: str = FIRST) -> Path:
    (path,) = Path(constants.HF_HUB_CACHE).glob(f"models--*-mlp/snapshots/*/{filename}")
    return path


def go_offline(monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()


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


def test_offline_with_nothing_or_a_part_in_the_cache(hub, monkeypatch):
    gemma_scope("gemma-2-2b", layers=[0], sites=("mlp",))
    go_offline(monkeypatch)
    says = "not in the cache and offline mode is on; unset HF_HUB_OFFLINE"
    assert says in hub_says(SECOND)
    cached().unlink()
    assert says in hub_says(FIRST)


def test_nothing_listens(hub, monkeypatch):
    turn_to("http://127.0.0.1:9", monkeypatch)
    assert "from http://127.0.0.1:9: ConnectError" in (message := hub_says())
    assert "check the connection" in message


def test_a_hub_that_never_answers(hub, monkeypatch):
    load_two()
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.05)
    monkeypatch.setattr("huggingface_hub.file_download._ETAG_RETRY_TIMEOUT", 0.05)
    hub.delay = 60
    assert len(load_two()) == 2
    cached(SECOND).unlink()
    assert "ReadTimeout" in (message := hub_says(SECOND))
    assert "check the connection" in message


def test_a_warm_load_asks_once_for_each_repository(hub):
    first = gemma_scope("gemma-2-2b", layers=[0, 1])
    n_requests = len(hub.requests)
    assert list(gemma_scope("gemma-2-2b", layers=[0, 1])) == list(first)
    assert [method for method, _ in hub.requests[n_requests:]] == ["HEAD"] * 3


def test_one_load_takes_one_commit_of_a_repository(hub, repositories, tmp_path):
    newer = tmp_path / "newer"
    shutil.copytree(repositories[MLP], newer)
    (newer / "README.md").write_text("another commit")
    files = scope_files("gemma-2-2b", sites=("mlp",), layers=[0, 1])
    locate = locator()
    commits = [commit_of(locate(files[0]))]
    hub.older[MLP], hub.repositories[MLP] = [repositories[MLP]], newer
    commits += [commit_of(locate(files[1])), commit_of(locator()(files[1]))]
    assert commits == [hub.commit(MLP, commits[0]), commits[0], hub.commit(MLP)]
    assert commits[0] != commits[2]


def test_what_is_cached_needs_no_hub(hub, monkeypatch):
    load_two()
    turn_to("http://127.0.0.1:9", monkeypatch)
    assert len(load_two()) == 2


def test_a_connection_that_breaks_now_and_then_is_taken_up_where_it_broke(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)  # less than one chunk is dropped
    hub.cut = 400
    assert [d.b_dec[0] for d in load_two().values()] == [119, 105]
    size = cached().stat().st_size
    starts = range(400, size, 400)
    assert [span for path, span in hub.ranges if FIRST in path] == [f"bytes={n}-" for n in starts]


def test_a_connection_that_breaks_for_good_leaves_what_arrived_whole(hub):
    small = gemma_scope("gemma-2-2b", layers=[0], sites=("mlp",))
    hub.broken_at = 200
    n_downloads = len(hub.downloads())
    assert "files that arrived whole are kept" in hub_says(SECOND)
    assert all(SECOND in path for path in hub.downloads()[n_downloads:])
    assert not list(Path(constants.HF_HUB_CACHE).glob(f"models--*/snapshots/*/{SECOND}"))
    hub.broken_at = None
    assert [d.b_dec[0] for d in load_two().values()] == [119, 105]
    assert cached(SECOND).read_bytes() == (hub.repositories[MLP] / SECOND).read_bytes()
    assert len(small) == 1


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_file_damaged_in_the_cache_is_named_and_fetched_again(hub, damage):
    load_two()
    path, whole = cached(), cached().read_bytes()
    middle = len(whole) // 2
    path.resolve().write_bytes(
        whole[:-100]
        if damage == "truncated"
        else whole[:middle] + bytes([whole[middle] ^ 16]) + whole[middle + 1 :]
    )
    with pytest.raises(UserError) as error:
        load_two()
    assert f"{path} was not what the hub has" in str(error.value)
    assert "removed from the cache, load again to fetch it" in str(error.value)
    n_downloads = len(hub.downloads())
    assert len(load_two()) == 2
    assert len(hub.downloads()) == n_downloads + 1
    assert cached().read_bytes() == whole


def test_one_flipped_bit_anywhere_is_found(hub):
    """Also where the file still reads: the zip archive's own sums do not cover its headers."""
    rng = np.random.default_rng(0)
    whole = download(MLP, FIRST).read_bytes()
    for place in rng.integers(len(whole), size=20):
        path = download(MLP, FIRST)
        verify(path)
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.resolve().write_bytes(damaged)
        with pytest.raises(UserError, match="was not what the hub has"):
            verify(path)
        assert not path.is_symlink()


def test_a_damaged_file_that_cannot_be_removed_is_named(hub, monkeypatch):
    path = download(MLP, FIRST)
    path.resolve().write_bytes(b"damaged")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(UserError, match=r"cannot be removed \(Permission denied\); delete it"):
        verify(path)


def test_only_what_the_cache_names_by_its_hash_is_verified(hub, tmp_path):
    path = download(MLP, FIRST)
    verify(hub.repositories[MLP] / FIRST)  # no link: a folder of the user's own
    elsewhere = tmp_path / ("0" * 64)
    elsewhere.write_bytes(b"a link of the user's own")
    (tmp_path / "link").symlink_to(elsewhere)
    verify(tmp_path / "link")
    small = path.parent / "config.json"  # git's blobs have names of 40 digits
    (path.resolve().parent / ("1" * 40)).write_bytes(b"{}")
    small.symlink_to(path.resolve().parent / ("1" * 40))
    verify(small)
    # newer clients keep blobs in a store that names them by another hash
    blob, shared = path.resolve(), tmp_path / "blobs" / ("2" * 64)
    shared.parent.mkdir()
    blob.rename(shared)
    blob.symlink_to(shared)
    verify(path)
    shared.rename(tmp_path / "away")
    verify(path)  # dangling: whoever opens it says so
    shared.write_bytes(b"damaged")
    with pytest.raises(UserError, match="removed from the cache"):
        verify(path)
    assert not any(p.exists() or p.is_symlink() for p in (path, blob, shared))


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "no space left on the disk"),
        (errno.EDQUOT, "no space left on the disk"),
        (errno.EACCES, "cannot be written (Permission denied); set HF_HOME to a folder that can"),
    ],
)
def test_a_disk_that_takes_no_more_is_named(hub, monkeypatch, number, says):
    def write(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", write)
    assert says in hub_says()


@pytest.fixture
def changed(hub, repositories, tmp_path):
    """The hub after a first load, and a second commit in which a file has another `b_dec`."""
    load_two()
    first = hub.commit(MLP)
    newer = tmp_path / "newer"
    shutil.copytree(repositories[MLP], newer)
    remade = load_npz(newer / FIRST)
    remade.b_dec[0] = -1
    save_npz(remade, newer / FIRST, overwrite=True)
    hub.older[MLP] = [hub.repositories[MLP]]
    hub.tags[MLP] = {"v1": hub.repositories[MLP]}
    hub.repositories[MLP] = newer
    assert hub.commit(MLP) != first
    return hub, first


def b_dec_of_two(**choice) -> list[float]:
    return [d.b_dec[0].item() for d in load_two(**choice).values()]


def test_a_file_that_changed_on_the_hub_is_fetched_and_the_same_ones_are_not(changed):
    hub, _ = changed
    n_downloads = len(hub.downloads())
    assert b_dec_of_two() == [-1, 105]
    assert len(hub.downloads()) == n_downloads + 1


@pytest.mark.parametrize("is_cached", [True, False])
def test_a_pinned_revision_stays_what_it_was(changed, is_cached):
    hub, first = changed
    if not is_cached:
        shutil.rmtree(constants.HF_HUB_CACHE)
    for revision in ("v1", first, {MLP: first}, {MLP: "v1", "google/gemma-2-2b": "main"}):
        assert b_dec_of_two(revision=revision) == [119, 105]
    n_requests = len(hub.requests)
    assert b_dec_of_two(revision=first) == [119, 105]
    assert len(hub.requests) == n_requests  # a commit cannot change: nothing to ask
    assert b_dec_of_two(revision="main") == [-1, 105]
    assert b_dec_of_two(revision={}) == [-1, 105]


def test_the_commit_that_was_used_can_be_named(changed):
    hub, first = changed
    assert commit_of(download(MLP, FIRST)) == hub.commit(MLP) != first
    assert commit_of(download(MLP, FIRST, revision="v1")) == first
    assert commit_of(download(MLP, FIRST, revision={MLP: first})) == first
    assert commit_of(hub.repositories[MLP] / FIRST) is None


def test_a_revision_that_does_not_exist(hub):
    assert "the repository has no such revision; give a commit, tag" in hub_says(revision="v9")
    with pytest.raises(UserError) as error:
        load_two(revision={"google/gemma-scope-2b-mlp": "main"})
    assert str(error.value).startswith(
        "revision pins google/gemma-scope-2b-mlp; the repositories of gemma-2-2b are "
        "google/gemma-2-2b, google/gemma-scope-2b-pt-att, google/gemma-scope-2b-pt-mlp, "
    )
    with pytest.raises(UserError, match="tiny is not fetched from the hub"):
        load_gemma("tiny", revision="main")


@pytest.fixture
def more(hub, tmp_path):
    """The hub with files that the catalogue does not have."""
    folder = tmp_path / "more"
    shutil.copytree(hub.repositories[MLP], folder)
    put(folder, "layer_0/width_33k/average_l0_50", "layer_0/width_33k/average_l0_120",
        "layer_0/width_16k/average_l0_71", "layer_30/width_16k/average_l0_72")  # fmt: skip
    (folder / "layer_0" / "width_33k" / "README.md").write_text("not a dictionary")
    hub.repositories[MLP] = folder
    return hub


def first_layer(**choice) -> float:
    choice = {"layers": [0], "sites": ("mlp",)} | choice
    (found,) = gemma_scope("gemma-2-2b", **choice).values()
    return found.b_dec[0].item()


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"width": "33k"}, 120),
        ({"width": "33k", "l0": 50}, 50),
        ({"width": "33k", "l0": "nearest:80"}, 50),
        ({"l0": 71}, 71),
        ({"layers": iter([30])}, 72),
    ],
)
def test_a_file_the_catalogue_lacks_is_looked_up_on_the_hub_once(more, choice, expected):
    assert first_layer(**choice) == expected
    asked = [path for _, path in more.requests if "/api/" in path]
    assert asked == [f"/api/models/{MLP}"]
    assert len(more.downloads()) == 1


def test_the_hub_is_not_asked_for_what_the_catalogue_has(more):
    assert [first_layer(l0=l0) for l0 in ("canonical", 119, "nearest:9999")] == [119] * 3
    assert not any("/api/" in path for _, path in more.requests)


def test_what_the_hub_lacks_too_is_answered_with_what_there_is(more, monkeypatch):
    def says(**choice) -> str:
        with pytest.raises(UserError) as error:
            first_layer(**choice)
        return str(error.value)

    catalogue_only = "no dictionary 32k wide at mlp.0 of gemma-2-2b: there are 16k, 65k"
    assert says(width="32k") == catalogue_only.replace("16k, 65k", "16k, 33k, 65k")
    assert "there are 50, 120; or ask for l0='nearest:80'" in says(width="33k", l0=80)
    more.failures[MLP] = 500
    assert says(width="32k") == catalogue_only
    go_offline(monkeypatch)
    assert says(width="33k") == catalogue_only.replace("32k", "33k")


def test_the_embedding_and_transcoders_come_from_their_repositories(hub, tmp_path):
    embed = "embedding/width_4k/average_l0_111"
    transcoder = "layer_3/width_16k/average_l0_54"
    hub.repositories["google/gemma-scope-2b-pt-res"] = put(tmp_path / "res", embed)
    hub.repositories["google/gemma-scope-2b-pt-transcoders"] = folder = tmp_path / "transcoders"
    made = dictionary(0, d_out=D_IN + 1)
    save_npz(made, folder / transcoder / "params.npz")
    found = gemma_scope("gemma-2-2b", sites=("transcoder", "embed"), layers=[3])
    assert list(found) == [Site(0, "embed"), Site(3, "transcoder")]
    assert [d.name for d in found.values()] == [embed, transcoder]
    assert [d.average_l0 for d in found.values()] == [111, 54]
    assert found[Site(3, "transcoder")].d_out == D_IN + 1


def test_transcoders_by_name_are_spliced_in(hub, tmp_path, bridge):
    made = random_transcoders()
    hub.repositories["google/gemma-scope-2b-pt-transcoders"] = folder = tmp_path / "transcoders"
    for file in scope_files("gemma-2-2b", sites="transcoder", layers=[0, 1, 2]):
        save_npz(made[file.site], folder / file.path / "params.npz")
    found = gemma_scope("gemma-2-2b", sites=("transcoder",), layers=[0, 1, 2])
    one, other = splice(bridge, found), splice(bridge, made)
    assert one.sites == other.sites
    for site in made:
        for key, array in made[site].arrays.items():
            assert torch.equal(found[site].arrays[key], array), (site, key)
    # not bit for bit: a file's encoder lies column by column, and sums go in another order
    torch.testing.assert_close(one(TEXT, downstream="drop"), other(TEXT, downstream="drop"))


def test_the_loopback_hub_serves_ranges_and_listings(hub):
    api = huggingface_hub.HfApi(endpoint=hub.url)
    names = api.list_repo_files(MLP)
    assert len(names) == 2
    assert list_files(MLP) == names
    assert api.repo_info(MLP).sha == hub.commit(MLP)
    folder = huggingface_hub.snapshot_download(MLP)
    assert sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*.npz")) == names
    np.testing.assert_array_equal(
        np.load(Path(folder) / names[0], allow_pickle=False)["b_dec"],
        np.load(hub.repositories[MLP] / names[0], allow_pickle=False)["b_dec"],
    )
