"""The dictionary files there are, and which of them a choice of sites, width and L0 means."""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources

from circuits.errors import UserError
from circuits.sites import KINDS, Site, check_kinds

CANONICAL_L0 = 100
"""Of a layer and width, the file whose average L0 is nearest to this is the canonical one."""

DEFAULT_WIDTH = "16k"
"""What is taken where no width is asked for."""

KIND_OF_SUFFIX = {"att": "attn", "mlp": "mlp", "res": "resid", "transcoders": "transcoder"}
"""Our kind of site for the last word of a Gemma Scope repository's name."""

FOLDER = re.compile(
    r"(?:layer_(?P<layer>\d+)|embedding)/width_(?P<width>\w+)/average_l0_(?P<l0>\d+(?:\.\d+)?)"
)
"""The folder of a `params.npz` within its repository."""


class NoDictionaryError(UserError):
    """Files there are, but none as asked for.

    Attributes:
        sites: Where one is missing.
    """

    def __init__(self, message: str, sites: Iterable[Site]) -> None:
        super().__init__(message)
        self.sites = frozenset(sites)


@dataclass(frozen=True)
class DictionaryFile:
    """Where one `params.npz` is.

    Attributes:
        source: A repository's name, or a folder.
        site: The site that the dictionary reads and writes.
        width: Number of latents as its folder says it: `16k`.
        average_l0: Active latents a token, as its folder says.
        path: The file's folder within `source`: `layer_3/width_16k/average_l0_59`.
        canonical: Whether the catalogue marks it as the canonical one of its layer and width.
        neuronpedia: The source set on Neuronpedia that has its dashboards, if the catalogue knows.
    """

    source: str
    site: Site
    width: str
    average_l0: float
    path: str
    canonical: bool = False
    neuronpedia: str | None = field(default=None, compare=False)


def file_at(source: str, path: str, *, canonical: bool = False) -> DictionaryFile | None:
    """The file in the folder `path` of `source`, by their names; `None` if they name no such file.

    The last word of `source` says the kind: `-att`, `-mlp`, `-res` (which has the embedding's too)
    or `-transcoders`.
    """
    match = FOLDER.fullmatch(path)
    kind = KIND_OF_SUFFIX.get(source.rpartition("-")[2])
    if match is None or kind is None or (match["layer"] is None and kind != "resid"):
        return None
    site = Site(0, "embed") if match["layer"] is None else Site(int(match["layer"]), kind)
    return DictionaryFile(source, site, match["width"], float(match["l0"]), path, canonical)


@cache
def catalogue() -> Mapping[str, tuple[DictionaryFile, ...]]:
    """Every dictionary of Gemma Scope, by model: `gemma-2-2b`, ..."""
    models: dict[str, list[DictionaryFile]] = {}
    table = resources.files("circuits") / "data" / "gemma_scope.csv"
    with table.open(encoding="utf-8") as rows:
        for row in csv.DictReader(rows):
            file = file_at(row["repo"], row["path"], canonical=row["canonical"] == "1")
            assert file is not None, f"{row['repo']}/{row['path']} is not in Gemma Scope's layout"
            told, prefix = row["neuronpedia"], f"{row['model']}/{row['layer']}-"
            if told.startswith(prefix):  # one id in the list is of another layer
                file = replace(file, neuronpedia=told.removeprefix(prefix))
            models.setdefault(row["model"], []).append(file)
    return {model: tuple(files) for model, files in sorted(models.items())}


def choose_files(
    files: Iterable[DictionaryFile],
    *,
    sites: Iterable[str] = KINDS,
    layers: Iterable[int] | None = None,
    width: str = DEFAULT_WIDTH,
    l0: int | float | str = "canonical",
    take_only: bool = False,
    owner: str,
) -> tuple[DictionaryFile, ...]:
    """One file a site, in the order of the sites.

    Of a site's files those of `width` are kept (the embedding's have a width of their own, which
    is taken beside any other kind's), and of these

    - `l0="canonical"` takes the one marked canonical; where none is, the nearest to 100,
    - `l0=71` takes the one whose average L0 is 71,
    - `l0="nearest:50"` takes the one whose average L0 is nearest to 50, the sparser of two.

    Args:
        sites: The kinds of site wanted.
        layers: The layers wanted; `None` takes all that a kind has. The embedding is before them.
        take_only: Where a site has one file only, take it if no width is asked for.
        owner: Who has the files, for error messages.

    Raises:
        NoDictionaryError: a site without a file, or without one of this width or L0; the message
            names those that exist.
        UserError: no such kind of site, none of a kind at all, or an `l0` of another form.
    """
    kinds = check_kinds(sites)
    rule, number = _parse_l0(l0)
    by_site = _by_site(files, kinds, layers, owner)
    take_only = take_only and width == DEFAULT_WIDTH
    only = {site: found for site, found in by_site.items() if take_only and len(found) == 1}
    others = {site: found for site, found in by_site.items() if site not in only}
    chosen = _of_l0(only | _of_width(others, width, kinds, owner), rule, number)
    return tuple(chosen[site][0] for site in sorted(chosen))


def _by_site(
    files: Iterable[DictionaryFile], kinds: Sequence[str], layers: Iterable[int] | None, owner: str
) -> dict[Site, list[DictionaryFile]]:
    by_site: dict[Site, list[DictionaryFile]] = {}
    for file in files:
        by_site.setdefault(file.site, []).append(file)
    having = {kind: sorted(site.layer for site in by_site if site.kind == kind) for kind in kinds}
    bare = [kind for kind in kinds if not having[kind]]
    if bare:
        there = "; ".join(f"{kind} at {_layers(kind, n)}" for kind, n in having.items() if n)
        raise UserError(
            f"{owner} has no dictionaries of kind {', '.join(bare)}"
            + (f", only {there}; leave out those it lacks" if there else "; choose other sites")
        )
    wanted = None if layers is None else sorted(set(layers))
    if wanted == []:
        raise UserError("layers is empty; name some, or leave it out for all")
    missing = [
        Site(layer, kind)
        for layer in wanted or ()
        for kind in kinds
        if kind != "embed" and layer not in having[kind]
    ]
    if missing:
        there = "; ".join(f"{kind} at {_layers(kind, n)}" for kind, n in having.items())
        raise NoDictionaryError(
            f"no dictionary at {', '.join(map(str, missing))}; {owner} has {there}", missing
        )
    return {
        site: files
        for site, files in by_site.items()
        if site.kind in kinds and (wanted is None or site.layer in wanted or site.kind == "embed")
    }


def _parse_l0(l0: int | float | str) -> tuple[str, float]:
    """The rule of a choice (`canonical`, `exactly` or `nearest`) and its number."""
    if l0 == "canonical":
        return "canonical", CANONICAL_L0
    match = re.fullmatch(r"(nearest:)?(\d+(?:\.\d+)?)", str(l0))
    if match is not None:
        return "nearest" if match[1] else "exactly", float(match[2])
    raise UserError(f"l0 is 'canonical', a number such as 71, or 'nearest:50'; got {l0!r}")


def _of_width(
    by_site: Mapping[Site, Sequence[DictionaryFile]], width: str, kinds: Sequence[str], owner: str
) -> dict[Site, list[DictionaryFile]]:
    """Each site's files of `width`; a width that a site lacks is refused."""
    kept = {
        site: [file for file in files if file.width == width] for site, files in by_site.items()
    }
    for site, files in by_site.items():
        own_width = site.kind == "embed" and len({file.width for file in files}) == 1
        if own_width and (len(kinds) > 1 or width == DEFAULT_WIDTH):
            kept[site] = list(files)
    lacking = sorted(site for site in kept if not kept[site])
    if lacking:
        raise NoDictionaryError(_no_width(by_site, width, lacking, owner), lacking)
    return kept


def _no_width(
    by_site: Mapping[Site, Sequence[DictionaryFile]], width: str, lacking: list[Site], owner: str
) -> str:
    """The sentence for the kind of the first site that lacks `width`."""
    kind = lacking[0].kind
    layers = [site.layer for site in lacking if site.kind == kind]
    widths: dict[tuple[str, ...], list[int]] = {}
    for layer in layers:
        there = {file.width for file in by_site[Site(layer, kind)]}
        widths.setdefault(tuple(sorted(there, key=latents_of)), []).append(layer)
    there = "; ".join(
        ", ".join(names) + (f" at layers {ranges(at)}" if len(widths) > 1 else "")
        for names, at in widths.items()
    )
    having = [site.layer for site in by_site if site.kind == kind and site.layer not in layers]
    elsewhere = f"; layers {ranges(having)} have it" if having else ""
    return (
        f"no dictionary {width} wide at {kind}.{ranges(layers)} of {owner}: "
        f"there are {there}{elsewhere}"
    )


def _of_l0(
    by_site: Mapping[Site, Sequence[DictionaryFile]], rule: str, l0: float
) -> dict[Site, list[DictionaryFile]]:
    """Each site's one file for a rule and its number."""
    chosen = {}
    for site, files in by_site.items():
        marked = [file for file in files if file.canonical]
        if rule == "canonical" and marked:
            chosen[site] = marked[:1]  # two of the catalogue's are ties that no distance can break
        else:
            chosen[site] = sorted(files, key=lambda f: (abs(f.average_l0 - l0), f.average_l0))[:1]
    lacking = sorted(site for site, (file,) in chosen.items() if file.average_l0 != l0)
    if rule == "exactly" and lacking:
        (nearest,) = chosen[lacking[0]]
        there = ", ".join(f"{n:g}" for n in sorted(file.average_l0 for file in by_site[lacking[0]]))
        others = f" (and at {len(lacking) - 1} other sites)" if len(lacking) > 1 else ""
        raise NoDictionaryError(
            f"no dictionary with average L0 {l0:g} at {nearest.site}{others}, {nearest.width} "
            f"wide, in {nearest.source}: there are {there}; or ask for l0='nearest:{l0:g}'",
            lacking,
        )
    return chosen


def latents_of(width: str) -> tuple[float, str]:
    """Sorts `16k` before `131k` before `1m`."""
    number, unit = width[:-1], width[-1:]
    factor = {"k": 1e3, "m": 1e6}.get(unit)
    return (float(number) * factor if factor and number.isdecimal() else float("inf"), width)


def ranges(layers: Iterable[int]) -> str:
    """`0-3, 7` for 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _layers(kind: str, layers: Iterable[int]) -> str:
    return "the embedding" if kind == "embed" else f"layers {ranges(layers)}"
