"""The dictionaries of a model: Gemma Scope from the hub, or a folder that mirrors the hub."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch

from circuits.catalogue import (
    DEFAULT_WIDTH,
    KIND_OF_SUFFIX,
    DictionaryFile,
    NoDictionaryError,
    catalogue,
    choose_files,
    file_at,
    ranges,
)
from circuits.errors import UserError
from circuits.formats.recognise import find_dictionaries
from circuits.loading.hub import (
    Revision,
    check_revision,
    commit_of,
    download,
    list_files,
    revision_of,
)
from circuits.loading.models import short_name
from circuits.loading.sources import gather
from circuits.loading.store import DictionaryStore
from circuits.sites import KINDS, Site, check_kinds


def gemma_scope(
    model: str,
    *,
    sites: Iterable[str] = KINDS,
    layers: Iterable[int] | None = None,
    width: str = DEFAULT_WIDTH,
    l0: int | float | str = "canonical",
    revision: Revision = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    memory: str | int | None = None,
) -> DictionaryStore:
    """Gemma Scope's dictionaries for `model`, in the order of the sites, from the Hugging Face hub.

    Nothing is downloaded before every site has its file chosen.

    Args:
        model: `gemma-2-2b`, `gemma-2-9b`, `gemma-2-27b` or `gemma-2-9b-it`.
        sites: Kinds of site: any of `attn`, `mlp`, `resid`, `embed`, `transcoder`.
        layers: The layers wanted; by default all that Gemma Scope has of each kind.
        width: Number of latents: `16k`, `65k`, `131k`, ...
        l0: Of several sparsities, `canonical` (average L0 nearest 100), a number, or `nearest:50`.
        revision: A commit, tag or branch of the repositories, or a mapping from their names to
            theirs: `{"google/gemma-scope-2b-pt-res": commit}`; `main` by default.
        device: The CPU by default.
        dtype: Of the matrices; float32 by default.
        memory: What dictionaries may take on `device`, such as `"12GB"`; the others are read from
            the disk whenever they are needed. By default three quarters of what is free.

    Raises:
        UserError: Gemma Scope has no such dictionary (the message names those it has), or the hub
            refuses or cannot be reached.
    """
    model = short_name(model)
    own = f"google/{model}"  # is not fetched here, but one mapping may serve `load` too
    check_revision(revision, [own, *(file.source for file in known_files(model))], model)
    files = scope_files(model, sites=sites, layers=layers, width=width, l0=l0, revision=revision)
    return fetch(files, revision=revision, device=device, dtype=dtype, memory=memory)


def scope_files(
    model: str,
    *,
    sites: Iterable[str] = KINDS,
    layers: Iterable[int] | None = None,
    width: str = DEFAULT_WIDTH,
    l0: int | float | str = "canonical",
    revision: Revision = None,
) -> tuple[DictionaryFile, ...]:
    """The files that `gemma_scope` would load.

    A file that the catalogue lacks is looked for on the hub, if it can be reached.

    Raises:
        UserError: Gemma Scope has no such dictionary.
    """
    known = known_files(model)
    kinds = check_kinds(sites)
    layers = None if layers is None else tuple(layers)

    def choose(files: Iterable[DictionaryFile]) -> tuple[DictionaryFile, ...]:
        return choose_files(files, sites=kinds, layers=layers, width=width, l0=l0, owner=model)

    try:
        return choose(known)
    except NoDictionaryError as error:
        more = _on_the_hub(known, error.sites, revision)
        if not more:
            raise
    return choose([*known, *more])


def known_files(model: str) -> tuple[DictionaryFile, ...]:
    """All that the catalogue has for `model`.

    Raises:
        UserError: it has nothing.
    """
    if model not in catalogue():
        raise no_scope(model)
    return catalogue()[model]


def no_scope(model: str) -> UserError:
    """Gemma Scope has nothing for `model`."""
    base = model.removesuffix("-it")
    message = f"Gemma Scope has no dictionaries for {model!r}, only for {', '.join(catalogue())}"
    if base in catalogue():
        message += f"; load those of {base}: dictionaries={base!r} (--dictionaries {base})"
    return UserError(message)


def _on_the_hub(
    known: Sequence[DictionaryFile], sites: Iterable[Site], revision: Revision
) -> list[DictionaryFile]:
    """What the hub has at `sites` beyond the `known` files; nothing if it does not answer."""
    kinds = {site.kind for site in sites}
    more = []
    for source in dict.fromkeys(file.source for file in known if file.site.kind in kinds):
        try:
            paths = list_files(source, revision=revision)
        except UserError:
            continue
        found = (file_at(source, path.removesuffix("/params.npz")) for path in paths)
        more += [file for file in found if file is not None and file.site in sites]
    there = {(file.source, file.path) for file in known}
    return [file for file in more if (file.source, file.path) not in there]


def fetch(
    files: Sequence[DictionaryFile],
    *,
    revision: Revision = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    memory: str | int | None = None,
) -> DictionaryStore:
    """The dictionaries in `files` of the hub, downloaded if they are not in its cache.

    Raises:
        UserError: the hub refuses or cannot be reached, or a file is damaged.
    """
    locate = locator(revision)
    places = {file.site: partial(locate, file) for file in files}
    return gather(places, device=device, dtype=dtype, memory=memory)


def locator(revision: Revision = None) -> Callable[[DictionaryFile], Path]:
    """Says where a file of the hub is in its cache, after downloading it if need be.

    All files of a repository come from the commit that the first one came from
    (`commit_of(path)`), and those of that commit that are in the cache need no hub.
    """
    commits: dict[str, str | None] = {}

    def locate(file: DictionaryFile) -> Path:
        pin = commits.get(file.source) or revision_of(file.source, revision)
        path = download(file.source, f"{file.path}/params.npz", revision=pin)
        commits[file.source] = commit_of(path)
        return path

    return locate


def dictionaries_from_folder(
    folder: str | Path,
    *,
    sites: Iterable[str] = KINDS,
    layers: Iterable[int] | None = None,
    width: str = DEFAULT_WIDTH,
    l0: int | float | str = "canonical",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    memory: str | int | None = None,
) -> DictionaryStore:
    """The dictionaries in a folder: a mirror of the hub, or what other libraries saved.

    In a mirror lies one folder a kind, its name ending in `-res`, `-att`, `-mlp` or
    `-transcoders`, below it `layer_L/width_W/average_l0_X/params.npz`; the embedding's are in
    `embedding/` of the one ending in `-res`. Where a layer has one file only, it is taken unless
    another `width` (than the default) or `l0` is asked for; the other arguments are those of
    `gemma_scope`.

    A folder without such folders is searched for dictionaries that SAELens, dictionary_learning,
    circuit-tracer or safetensors saved (`circuits.formats.recognise`), each at the site that it
    says it belongs to; those at `sites` and `layers` are taken.

    Raises:
        UserError: no such folder, two folders of one kind, a site, width or L0 asked for that is
            not there, or a file that cannot be read.
    """
    folder = Path(folder)
    kinds = check_kinds(sites)
    layers = None if layers is None else tuple(layers)
    homes = _kind_folders(folder, kinds)
    if not homes:
        places = _other_formats(folder, kinds, layers)
        if width != DEFAULT_WIDTH or l0 != "canonical":
            raise UserError(
                f"the dictionaries in {folder} are chosen by their sites alone; "
                "leave out width and l0"
            )
        return gather(places, device=device, dtype=dtype, memory=memory)
    if "mlp" in kinds and "mlp" not in homes and "transcoder" in homes:
        raise UserError(
            f"{homes['transcoder']} holds transcoders; ask for them with sites=('transcoder',), "
            "or give sparse autoencoders in a folder ending in -mlp, or leave out mlp"
        )
    files = [
        file
        for kind in dict.fromkeys(map(_home_of, kinds))
        if kind in homes
        for file in _files_of(homes[kind], layers if kind in kinds else ())
    ]
    chosen = choose_files(
        files,
        sites=kinds,
        layers=layers,
        width=width,
        l0=l0,
        take_only=True,
        owner=str(folder),
    )
    places = {file.site: Path(file.source, file.path, "params.npz") for file in chosen}
    return gather(places, device=device, dtype=dtype, memory=memory)


def _home_of(kind: str) -> str:
    """The kind in whose folder the dictionaries of `kind` lie."""
    return "resid" if kind == "embed" else kind


def _kind_folders(folder: Path, kinds: Sequence[str]) -> dict[str, Path]:
    """The folder of each kind in `folder`, if any; of those for `kinds` there must not be two."""
    if not folder.is_dir():
        raise UserError(
            f"no folder {folder}; name one that holds folders ending in -res, -att, -mlp"
        )
    needed = set(map(_home_of, kinds))
    homes: dict[str, Path] = {}
    for child in sorted(child for child in folder.iterdir() if child.is_dir()):
        is_home = "-" in child.name and _layer_folders(child)
        kind = KIND_OF_SUFFIX.get(child.name.rpartition("-")[2]) if is_home else None
        if kind in homes and kind in needed:
            raise UserError(
                f"{homes[kind]} and {child} are both for {kind}; keep one, or move the other away"
            )
        if kind is not None:
            homes[kind] = child
    return homes


def _layer_folders(home: Path) -> list[Path]:
    """The folders of Gemma Scope's layout just below `home`."""
    return sorted([*home.glob("layer_*"), *home.glob("embedding")])


def _other_formats(
    folder: Path, kinds: Sequence[str], layers: Sequence[int] | None
) -> dict[Site, Path]:
    """The dictionaries below `folder`, by the sites that they say they belong to."""
    try:
        found = find_dictionaries(folder)
    except UserError as error:
        mirror = f"{folder} holds no folder whose name ends in -res, -att or -mlp with layers in it"
        raise UserError(f"{mirror}; and {error}") from error
    wanted = {
        site: path
        for site, path in found.items()
        if site.kind in kinds and (layers is None or site.layer in layers)
    }
    if not wanted:
        raise UserError(
            f"{folder} has dictionaries at {', '.join(map(str, found))}, none of kind "
            f"{', '.join(kinds)}" + ("" if layers is None else f" at layers {ranges(layers)}")
        )
    return wanted


def _files_of(home: Path, layers: Iterable[int] | None) -> Iterator[DictionaryFile]:
    """Gemma Scope's layout below `home`; of `layers`, `None` for all, none may be empty."""
    for layer in _layer_folders(home):
        number = layer.name.removeprefix("layer_")
        found = [
            file
            for path in sorted(layer.glob("width_*/average_l0_*"))
            if (file := file_at(str(home), path.relative_to(home).as_posix()))
        ]
        if not found and number.isdecimal() and (layers is None or int(number) in layers):
            raise UserError(
                f"{layer} holds no width_W/average_l0_X/params.npz; add it, or fetch it again"
            )
        for file in found:
            yield replace(file, canonical=(home.name, file.path) in _canonical_paths())


@cache
def _canonical_paths() -> frozenset[tuple[str, str]]:
    """Repository (without its owner) and path: a mirror of the hub answers as the hub does."""
    return frozenset(
        (file.source.rpartition("/")[2], file.path)
        for files in catalogue().values()
        for file in files
        if file.canonical
    )
