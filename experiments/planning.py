"""What loading a model with Gemma Scope would take: downloads, disk and memory, before it is done.

Nothing is fetched and the hub is not asked: files come from the catalogue, sizes from shapes, and
what is there already from the Hugging Face cache and the folder of mapped copies.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psutil
import torch

from circuits import KINDS, UserError
from circuits.catalogue import DEFAULT_WIDTH, DictionaryFile, catalogue, choose_files, latents_of
from circuits.loading.gemma_scope import no_scope
from circuits.loading.hub import Revision, check_revision, revision_of
from circuits.loading.mapped import copy_path
from circuits.loading.models import HUB_MODELS, default_device, short_name
from circuits.loading.shapes import Shape, shapes
from circuits.loading.store import passing_bytes
from circuits.memory import SHARE, free_bytes, show_bytes

ON_DISK = torch.float32
"""What Gemma Scope's files are stored in."""


@dataclass(frozen=True)
class PlannedFile:
    """A dictionary that `load` would take.

    Attributes:
        file: Which one.
        d_in: Numbers read at a position.
        d_sae: Latents.
        d_out: Numbers written.
        cached: Where it is in the Hugging Face cache, if it is.
        copy: Its mapped copy, if there is one in the dtype of the plan.
    """

    file: DictionaryFile
    d_in: int
    d_sae: int
    d_out: int
    cached: Path | None
    copy: Path | None

    @property
    def n_bytes(self) -> int:
        """On disk as downloaded, computed from the shape, but for a kilobyte or two of headers."""
        return self.in_memory(ON_DISK)

    def in_memory(self, dtype: torch.dtype) -> int:
        """Matrices in `dtype`; vectors stay float32."""
        matrices = (self.d_in + self.d_out) * self.d_sae
        return matrices * dtype.itemsize + 4 * (2 * self.d_sae + self.d_out)


@dataclass(frozen=True)
class PlannedWeights:
    """The model itself.

    Attributes:
        repository: On the hub.
        n_parameters: From its shape.
        cached: Its weight files that are in the Hugging Face cache.
        n_files: How many it has; `None` while the index is not in the cache.
        stored: The dtype on the hub; `None` while `config.json` is not in the cache.
    """

    repository: str
    n_parameters: int
    cached: tuple[Path, ...]
    n_files: int | None
    stored: torch.dtype | None

    @property
    def complete(self) -> bool:
        """Every weight file is in the cache."""
        return self.n_files is not None and len(self.cached) == self.n_files

    @property
    def n_bytes(self) -> tuple[int, int]:
        """On disk, at least and at most: in bfloat16 and float32 while the dtype is not known."""
        low, high = self.stored or torch.bfloat16, self.stored or torch.float32
        return self.in_memory(low), self.in_memory(high)

    def in_memory(self, dtype: torch.dtype) -> int:
        return self.n_parameters * dtype.itemsize


@dataclass(frozen=True)
class Part:
    """The dictionaries of one kind and width.

    Attributes:
        kind: `attn`, `mlp`, ...
        width: As folders say it: `16k`.
        n_files: How many.
        n_bytes: Of all on disk, computed from shapes.
        n_cached: How many are in the Hugging Face cache.
        n_copies: How many have a mapped copy.
    """

    kind: str
    width: str
    n_files: int
    n_bytes: int
    n_cached: int
    n_copies: int


@dataclass(frozen=True)
class Memory:
    """What a device has, in bytes."""

    device: str
    free: int
    total: int


@dataclass(frozen=True)
class Plan:
    """What `load(model, sites=..., width=..., l0=...)` would take. Made by `plan`.

    Attributes:
        model: `gemma-2-2b`, ...
        weights: The model itself.
        files: The dictionaries, in the order of the forward pass.
        dtype: Of the model and the matrices of dictionaries in memory.
        memory: What this machine has: its own and that of its GPU, if there is one.
        cache: The Hugging Face cache that was looked into.
    """

    model: str
    weights: PlannedWeights
    files: tuple[PlannedFile, ...]
    dtype: torch.dtype
    memory: tuple[Memory, ...]
    cache: Path

    def __str__(self) -> str:
        low, high = map(show_bytes, self.download)
        fetched = "nothing" if high == "0 B" else low if low == high else f"{low} to {high}"
        return (
            f"{self.model} with {len(self.files)} dictionaries: {fetched} to download, "
            f"{show_bytes(self.whole(self.dtype))} of memory; {self.advice}"
        )

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The dictionaries by kind and width."""
        groups: dict[tuple[str, str], list[PlannedFile]] = {}
        for planned in self.files:
            groups.setdefault((planned.file.site.kind, planned.file.width), []).append(planned)
        return tuple(
            Part(
                *key,
                n_files=len(group),
                n_bytes=sum(planned.n_bytes for planned in group),
                n_cached=sum(planned.cached is not None for planned in group),
                n_copies=sum(planned.copy is not None for planned in group),
            )
            for key, group in groups.items()
        )

    @property
    def download(self) -> tuple[int, int]:
        """Bytes not in the cache yet, at least and at most (see `PlannedWeights.n_bytes`)."""
        lacking = sum(planned.n_bytes for planned in self.files if planned.cached is None)
        there = sum(path.stat().st_size for path in self.weights.cached)
        low, high = (max(0, n - there) for n in self.weights.n_bytes)
        return (lacking, lacking) if self.weights.complete else (lacking + low, lacking + high)

    @property
    def copies(self) -> int:
        """Bytes that the mapped copies not made yet will take on disk."""
        return sum(p.in_memory(self.dtype) for p in self.files if p.copy is None)

    def whole(self, dtype: torch.dtype) -> int:
        """Memory for the model and every dictionary."""
        held = sum(planned.in_memory(dtype) for planned in self.files)
        return self.weights.in_memory(dtype) + held

    def least(self, dtype: torch.dtype) -> int:
        """Memory for the model and the largest dictionaries that pass through at a time."""
        passing = passing_bytes(planned.in_memory(dtype) for planned in self.files)
        return self.weights.in_memory(dtype) + passing

    @property
    def advice(self) -> str:
        """Whether it fits, on the device that `load` would take."""
        here = self.memory[-1]
        free = f"the {show_bytes(here.free)} free on {here.device}"
        weights = self.weights.in_memory(self.dtype)
        if self.whole(self.dtype) - weights <= SHARE * (here.free - weights):
            return f"all of it fits into {free}"
        least = show_bytes(self.least(self.dtype))
        if self.least(self.dtype) <= here.free:
            return (
                f"{least} are enough, but not all dictionaries stay in {free} (they take at most "
                f"{SHARE:.0%} of what the model leaves): the others are read whenever they are used"
            )
        return f"{least} are needed at least, more than {free}"


def plan(
    model: str,
    *,
    sites: Iterable[str] = KINDS,
    layers: Iterable[int] | None = None,
    width: str = DEFAULT_WIDTH,
    l0: int | float | str = "canonical",
    revision: Revision = None,
    dtype: torch.dtype | None = None,
    dictionaries: str | None = None,
) -> Plan:
    """What `load` would take with the same arguments; nothing is downloaded.

    Args:
        model: A Gemma 2 on the hub.
        sites: Kinds of site.
        layers: All that Gemma Scope has, by default.
        width: Which width of dictionary.
        l0: Which sparsity: `canonical`, a number, or `nearest:50`.
        revision: What is looked for in the cache: a commit, tag or branch of the model's
            repository, or a mapping from the names of repositories to theirs.
        dtype: Of the model and the dictionaries in memory; bfloat16 by default, as in `load`.
        dictionaries: The model whose Gemma Scope to take; `model` itself by default.

    Raises:
        UserError: no such model or dictionaries in the catalogue, or no such repository to pin.
    """
    from huggingface_hub import constants

    model = short_name(model)
    scope = short_name(dictionaries or model)
    check_planned(model, scope)
    known = catalogue()[scope]
    check_revision(revision, [HUB_MODELS[model], *(file.source for file in known)], model)
    cache = Path(constants.HF_HUB_CACHE)
    chosen = choose_files(known, sites=sites, layers=layers, width=width, l0=l0, owner=scope)
    shape = shapes()[model]
    weights = _weights(model, shape, cache, revision)
    dtype = dtype or torch.bfloat16
    pins = revision if isinstance(revision, Mapping) else None
    files = tuple(_planned(file, shape, cache, pins, dtype) for file in chosen)
    return Plan(model, weights, files, dtype, _memory(), cache)


def check_planned(model: str, scope: str) -> None:
    """Refuse a model that is not on the hub, or the dictionaries of one that has none there.

    Raises:
        UserError: a model of another name.
    """
    if model not in HUB_MODELS:
        raise UserError(f"no model {model!r} on the hub; choose {', '.join(HUB_MODELS)}")
    if scope not in catalogue():
        raise no_scope(scope)


def _planned(
    file: DictionaryFile, shape: Shape, cache: Path, revision: Revision, dtype: torch.dtype
) -> PlannedFile:
    cached = _in_cache(file.source, f"{file.path}/params.npz", cache, revision)
    copy = copy_path(cached, dtype) if cached is not None else None
    d = shape.z_dim if file.site.kind == "attn" else shape.d_model
    there = copy if copy is not None and copy.exists() else None
    return PlannedFile(file, d, n_latents(file.width), d, cached, there)


def n_latents(width: str) -> int:
    """16,384 for `16k`: Gemma Scope's widths are powers of two."""
    number, _ = latents_of(width)
    return 2 ** round(math.log2(number))


def _weights(model: str, shape: Shape, cache: Path, revision: Revision) -> PlannedWeights:
    repository = HUB_MODELS[model]
    config = _json(_in_cache(repository, "config.json", cache, revision))
    index = _json(_in_cache(repository, "model.safetensors.index.json", cache, revision))
    names = sorted(set(index.get("weight_map", {}).values())) or ["model.safetensors"]
    found = [_in_cache(repository, name, cache, revision) for name in names]
    cached = tuple(path for path in found if path is not None)
    stored = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), None)
    stored = stored if isinstance(stored, torch.dtype) else None
    n_files = len(names) if index or cached else None
    return PlannedWeights(repository, shape.n_parameters, cached, n_files, stored)


def _in_cache(repository: str, name: str, cache: Path, revision: Revision) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        repository, name, cache_dir=cache, revision=revision_of(repository, revision)
    )
    return Path(found) if isinstance(found, str) else None  # neither absent nor known not to exist


def _json(path: Path | None) -> dict:
    """What a file of the cache holds; nothing if it is not there or damaged, `load` will say so."""
    try:
        content = json.loads(path.read_text()) if path is not None else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _memory() -> tuple[Memory, ...]:
    """The machine's own first; last that of the device that `load` takes."""
    own = Memory("cpu", free_bytes(torch.device("cpu")), psutil.virtual_memory().total)
    device = default_device()
    if device.type != "cuda":
        return (own,)
    return own, Memory("cuda", free_bytes(device), torch.cuda.mem_get_info(device)[1])
