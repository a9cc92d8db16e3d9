"""A plan says what loading would take, from what is there, and never asks the hub."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from circuits import Dictionary, Site, UserError
from circuits.catalogue import catalogue
from circuits.formats.npz import save_npz
from circuits.loading.mapped import copy_path, save_mapped
from circuits.loading.shapes import shapes
from experiments import Plan, plan
from experiments.planning import Memory, n_latents
from tests.circuits.hub import Hub
from tests.circuits.small_dictionaries import put

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "google/gemma-2-2b"
MLP = "google/gemma-scope-2b-pt-mlp"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty Hugging Face cache."""
    folder = tmp_path / "hf" / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.delenv("GEMMA_CIRCUITS_CACHE", raising=False)
    return folder


def into_cache(cache: Path, repository: str, name: str, data: bytes) -> Path:
    """A file as the hub's client keeps it: refs, snapshots, blobs."""
    home = cache / f"models--{repository.replace('/', '--')}"
    blob = home / "blobs" / hashlib.sha256(data).hexdigest()
    link = home / "snapshots" / COMMIT / name
    ref = home / "refs" / "main"
    for path in (blob, link, ref):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    ref.write_text(COMMIT)
    link.symlink_to(blob)
    return link


def planned_mlp(planned: Plan, layer: int):
    (found,) = [p for p in planned.files if p.file.site == Site(layer, "mlp")]
    return found


def test_an_empty_cache():
    planned = plan("gemma-2-2b")
    assert [(p.kind, p.width, p.n_files) for p in planned.parts] == [
        ("attn", "16k", 26), ("mlp", "16k", 26), ("resid", "16k", 26),
    ]  # fmt: skip
    assert all((p.n_cached, p.n_copies) == (0, 0) for p in planned.parts)
    assert sum(p.n_bytes for p in planned.parts) == pytest.approx(22.7e9, rel=0.005)
    weights = planned.weights
    assert (weights.cached, weights.n_files, weights.stored) == ((), None, None)
    low, high = planned.download
    assert high - low == 2 * shapes()["gemma-2-2b"].n_parameters  # two bytes or four each
    assert "27.9 GB to 33.2 GB to download, 16.6 GB of memory; " in str(planned)


def test_the_hub_s_own_names_are_the_same_models():
    planned = plan("gemma-2-2b")  # what memory is free changes from one moment to the next
    assert replace(plan(MODEL, dictionaries=MODEL), memory=planned.memory) == planned
    with pytest.raises(UserError, match="the name of a model is empty"):
        plan("")


def test_sizes_in_memory():
    planned = plan("gemma-2-2b")
    model = shapes()["gemma-2-2b"]
    assert planned.whole(torch.bfloat16) == pytest.approx(11.4e9 + model.n_bytes(2), rel=0.01)
    assert planned.whole(torch.float32) == pytest.approx(22.7e9 + model.n_bytes(4), rel=0.01)
    three = 3 * planned_mlp(planned, 0).in_memory(torch.bfloat16)
    assert planned.least(torch.bfloat16) == model.n_bytes(2) + three
    assert planned.copies == planned.whole(torch.bfloat16) - model.n_bytes(2)


def test_one_dictionary_is_held_once():
    planned = plan("gemma-2-2b", sites=["mlp"], layers=[3])
    assert planned.least(torch.bfloat16) == planned.whole(torch.bfloat16)


@pytest.mark.parametrize(("d_in", "d_sae"), [(5, 7), (24, 512)])
def test_computed_sizes_are_those_of_saved_files(tmp_path, d_in, d_sae):
    zeros = torch.zeros
    made = Dictionary(
        zeros(d_in, d_sae), zeros(d_sae), zeros(d_sae), zeros(d_sae, d_in), zeros(d_in)
    )
    saved = save_npz(made, tmp_path / "params.npz").stat().st_size
    small = replace(plan("gemma-2-2b").files[0], d_in=d_in, d_sae=d_sae, d_out=d_in)
    assert 0 < saved - small.n_bytes < 2000  # the headers of five arrays and of the archive
    assert small.in_memory(torch.bfloat16) == made.to(dtype=torch.bfloat16).n_bytes
    assert small.in_memory(torch.float32) == made.n_bytes


def test_every_width_of_the_catalogue_is_a_power_of_two():
    widths = {file.width for files in catalogue().values() for file in files}
    counts = {width: n_latents(width) for width in widths}
    assert counts["16k"] == 16384
    assert counts["1m"] == 2**20
    for width, n in counts.items():
        number = float(width[:-1]) * {"k": 1000, "m": 1_000_000}[width[-1]]
        assert n == pytest.approx(number, rel=0.05)


def test_files_and_copies_that_are_there_are_seen(cache):
    path = f"{planned_mlp(plan('gemma-2-2b'), 3).file.path}/params.npz"
    link = into_cache(cache, MLP, path, b"a dictionary")
    into_cache(cache, MLP, "layer_4/width_16k/average_l0_1/params.npz", b"not chosen")
    planned = plan("gemma-2-2b")
    assert [p.n_cached for p in planned.parts] == [0, 1, 0]
    assert planned_mlp(planned, 3).cached == link
    assert planned.download[0] == plan("gemma-2-2b", sites=["attn"]).download[0] + sum(
        p.n_bytes for p in planned.files if p.file.site.kind != "attn" and p.cached is None
    )
    copy = copy_path(link, torch.bfloat16)
    copy.parent.mkdir(parents=True)
    zeros = torch.zeros(2, 2), torch.zeros(2), torch.zeros(2), torch.zeros(2, 2), torch.zeros(2)
    save_mapped(Dictionary(*zeros), copy)
    again = plan("gemma-2-2b")
    assert [p.n_copies for p in again.parts] == [0, 1, 0]
    assert planned_mlp(again, 3).copy == copy
    assert again.copies < planned.copies
    assert plan("gemma-2-2b", dtype=torch.float32).parts[1].n_copies == 0


def test_weights_by_their_index(cache):
    shards = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    index = {"weight_map": {f"layer{n}": shard for n, shard in enumerate(shards)}}
    into_cache(cache, MODEL, "model.safetensors.index.json", json.dumps(index).encode())
    into_cache(cache, MODEL, "config.json", b'{"torch_dtype": "float32"}')
    for shard in shards[:2]:
        into_cache(cache, MODEL, shard, shard.encode())
    weights = plan("gemma-2-2b").weights
    assert (len(weights.cached), weights.n_files, weights.complete) == (2, 3, False)
    assert weights.n_bytes == (weights.in_memory(torch.float32),) * 2
    assert plan("gemma-2-2b").dtype == torch.bfloat16  # as `load` takes it, however it is stored
    into_cache(cache, MODEL, shards[2], b"the last")
    planned = plan("gemma-2-2b")
    assert planned.weights.complete
    assert planned.download == (sum(p.n_bytes for p in planned.files),) * 2


def test_weights_in_one_file(cache):
    into_cache(cache, MODEL, "model.safetensors", b"all")
    assert plan("gemma-2-2b").weights.complete


@pytest.mark.parametrize("damage", [b"{", b"[]", b"\xff"])
def test_a_damaged_configuration_is_for_load_to_report(cache, damage):
    into_cache(cache, MODEL, "config.json", damage)
    into_cache(cache, MODEL, "model.safetensors.index.json", damage)
    assert plan("gemma-2-2b").weights.stored is None


def test_another_revision_is_looked_for_by_its_name(cache):
    path = f"{planned_mlp(plan('gemma-2-2b'), 3).file.path}/params.npz"
    into_cache(cache, MLP, path, b"a dictionary")
    assert plan("gemma-2-2b", revision={MLP: COMMIT}).parts[1].n_cached == 1
    assert plan("gemma-2-2b", revision={MLP: "f" * 40}).parts[1].n_cached == 0
    assert plan("gemma-2-2b", revision="f" * 40).parts[1].n_cached == 1  # the model's alone


@pytest.mark.parametrize(
    ("free", "advice"),
    [
        (21e9, "all of it fits into the 21.0 GB free on cpu"),  # 11.4 of the 15.8 that are left
        (20e9, "5.7 GB are enough, but not all dictionaries stay in the 20.0 GB free on cpu"),
        (6e9, "5.7 GB are enough"),
        (4e9, "5.7 GB are needed at least, more than the 4.0 GB free on cpu"),
    ],
)
def test_advice_is_about_the_memory_there_is(free, advice):
    planned = replace(plan("gemma-2-2b"), memory=(Memory("cpu", int(free), int(2 * free)),))
    assert advice in planned.advice


@pytest.mark.parametrize(
    ("model", "choice", "message"),
    [
        ("tiny", {}, "no model .tiny. on the hub"),
        ("gemma-2-2b-it", {}, "no dictionaries for .gemma-2-2b-it."),
        ("gemma-2-2b", {"width": "17k"}, "no dictionary 17k wide"),
        ("gemma-2-2b", {"sites": ["neuron"]}, "no kind of site 'neuron'"),
        ("gemma-2-2b", {"l0": "some"}, "l0 is 'canonical'"),
        ("gemma-2-2b", {"revision": {"google/gemma": COMMIT}}, "revision pins google/gemma;"),
        ("gemma-2-27b", {}, "has no dictionaries of kind attn, mlp"),
    ],
)
def test_what_does_not_exist(model, choice, message):
    with pytest.raises(UserError, match=message):
        plan(model, **choice)


SCRIPT = """
from circuits.loading.hub import download
from experiments import plan
from experiments.cli import main

file = plan("gemma-2-2b").files[0].file
download(file.source, f"{file.path}/params.npz")
print("asked", flush=True)
assert input() == "go on"
assert [p.n_cached for p in plan("gemma-2-2b").parts] == [1, 0, 0]
try:
    plan("gemma-2-2b", width="17k")
except ValueError as error:
    print(error)
main(["info", "gemma-2-2b"], standalone_mode=False)
"""


def test_a_file_from_a_hub_is_seen_and_the_hub_is_not_asked_again(tmp_path):
    chosen = plan("gemma-2-2b").files[0].file
    folder = put(tmp_path / "att", chosen.path)
    with (
        Hub({chosen.source: folder}) as hub,
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env=hub.environment(tmp_path / "home"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as running,
    ):
        assert running.stdout is not None
        assert running.stdout.readline() == "asked\n"
        n_requests = len(hub.requests)
        assert n_requests > 0
        printed, _ = running.communicate("go on\n")
        assert len(hub.requests) == n_requests
    assert running.returncode == 0
    assert "no dictionary 17k wide" in printed
    assert "attn              16k     26" in printed
