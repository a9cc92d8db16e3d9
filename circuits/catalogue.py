"""The dictionary files there are, and which of them a choice of sites, width and L0 means."""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from circuits.errors import UserError
from circuits.sites import KINDS, Site, check_kinds

CANONICAL_L0 = 100
"""Of a layer and width, the file whose average L0 is nearest to this is the canonical one."""

KIND_OF_SUFFIX = {"att": "attn", "mlp": "mlp", "res": "resid"}
"""Our kind of site for the last word of a Gemma Scope repository's name."""


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
    """

    source: str
    site: Site
    width: str
    average_l0: float
    path: str
    canonical: bool = False


@cache
def catalogue() -> Mapping[str, tuple[DictionaryFile, ...]]:
    """Every sparse autoencoder of Gemma Scope at a site, by model: `gemma-2-2b`, ...

    Left out are the transcoders and the dictionaries of the embedding, which splice in elsewhere.
    """
    models: dict[str, list[DictionaryFile]] = {}
    table = resources.files("circuits") / "data" / "gemma_scope.csv"
    with table.open(encoding="utf-8") as rows:
        for row in csv.DictReader(rows):
            if row["site"] in KIND_OF_SUFFIX and row["layer"].isdecimal():
                file = DictionaryFile(
                    source=row["repo"],
                    site=Site(int(row["layer"]), KIND_OF_SUFFIX[row["site"]]),
                    width=row["width"],
                    average_l0=float(row["average_l0"]),
                    path=row["path"],
                    canonical=row["canonical"] == "1",
                )
                models.setdefault(row["model"], []).append(file)
    return {model: tuple(files) for model, files in sorted(models.items())}


def choose_files(
    files: Iterable[DictionaryFile],
    *,
    sites: Iterable[str] = KINDS,
    layers: Iterable[int] | None = None,
    width: str = "16k",
    l0: int | float | str = "canonical",
    owner: str,
) -> tuple[DictionaryFile, ...]:
    """One file a site, in the order of the sites.

    Where a site has one file only, it is taken. Of several, those of `width` are kept, and of these

    - `l0="canonical"` takes the one marked canonical; where none is, the nearest to 100,
    - `l0=71` takes the one whose average L0 is 71,
    - `l0="nearest:50"` takes the one whose average L0 is nearest to 50, the sparser of two.

    Args:
        sites: The kinds of site wanted.
        layers: The layers wanted; `None` takes all that a kind has.
        owner: Who has the files, for error messages.

    Raises:
        UserError: a site without a file, or without one of this width or L0; the message names
            those that exist.
    """
    target = _parse_l0(l0)
    by_site = _by_site(files, check_kinds(sites), layers, owner)
    _check_width(by_site, width, owner)
    return tuple(_choose_file(by_site[site], width, target) for site in sorted(by_site))


def _by_site(
    files: Iterable[DictionaryFile], kinds: Sequence[str], layers: Iterable[int] | None, owner: str
) -> dict[Site, list[DictionaryFile]]:
    by_site: dict[Site, list[DictionaryFile]] = {}
    for file in files:
        by_site.setdefault(file.site, []).append(file)
    having = {kind: sorted(site.layer for site in by_site if site.kind == kind) for kind in kinds}
    bare = [kind for kind in kinds if not having[kind]]
    if bare:
        there = "; ".join(f"{kind} at layers {ranges(n)}" for kind, n in having.items() if n)
        raise UserError(
            f"{owner} has no dictionaries of kind {', '.join(bare)}"
            + (f", only {there}; leave out those it lacks" if there else "; choose other sites")
        )
    wanted = None if layers is None else sorted(set(layers))
    missing = [
        f"{kind}.{layer}" for layer in wanted or () for kind in kinds if layer not in having[kind]
    ]
    if missing:
        there = "; ".join(f"{kind} at layers {ranges(n)}" for kind, n in having.items())
        raise UserError(f"no dictionary at {', '.join(missing)}; {owner} has {there}")
    return {
        site: files
        for site, files in by_site.items()
        if site.kind in kinds and (wanted is None or site.layer in wanted)
    }


def _parse_l0(l0: int | float | str) -> tuple[str, float]:
    """The rule of a choice (`canonical`, `exactly` or `nearest`) and its number."""
    if l0 == "canonical":
        return "canonical", CANONICAL_L0
    match = re.fullmatch(r"(nearest:)?(\d+(?:\.\d+)?)", str(l0))
    if match is not None:
        return "nearest" if match[1] else "exactly", float(match[2])
    raise UserError(f"l0 is 'canonical', a number such as 71, or 'nearest:50'; got {l0!r}")


def _check_width(by_site: Mapping[Site, Sequence[DictionaryFile]], width: str, owner: str) -> None:
    """Refuse a width that a site with several files lacks."""
    lacking = [
        site
        for site, files in by_site.items()
        if len(files) > 1 and all(file.width != width for file in files)
    ]
    if not lacking:
        return
    site = min(lacking)
    there = sorted({file.width for file in by_site[site]}, key=latents_of)
    elsewhere = {
        other.layer
        for other, files in by_site.items()
        if other.kind == site.kind and any(file.width == width for file in files)
    }
    layers = f"; layers {ranges(elsewhere)} have it" if elsewhere else ""
    raise UserError(
        f"no dictionary {width} wide at {site} of {owner}: there are {', '.join(there)}{layers}"
    )


def _choose_file(
    files: Sequence[DictionaryFile], width: str, target: tuple[str, float]
) -> DictionaryFile:
    if len(files) == 1:
        return files[0]
    files = [file for file in files if file.width == width]
    rule, l0 = target
    marked = [file for file in files if file.canonical]
    if rule == "canonical" and marked:
        return marked[0]  # two of the catalogue's are ties that the distance cannot break
    nearest = min(files, key=lambda file: (abs(file.average_l0 - l0), file.average_l0))
    if rule == "exactly" and nearest.average_l0 != l0:
        there = ", ".join(f"{n:g}" for n in sorted(file.average_l0 for file in files))
        raise UserError(
            f"no dictionary with average L0 {l0:g} at {nearest.site}, {width} wide, in "
            f"{nearest.source}: there are {there}; or ask for l0='nearest:{l0:g}'"
        )
    return nearest


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
