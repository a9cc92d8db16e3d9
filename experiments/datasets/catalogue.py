"""The data sets that ship with the project, by name."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from circuits import UserError
from experiments.datasets.halves import halves
from experiments.datasets.made import Made, cities, coloured_objects, indirect_objects
from experiments.datasets.pairs import Pairs
from experiments.datasets.readers import read_pairs
from experiments.datasets.years import by_digits

DATA = Path(__file__).parent / "data"
SPLITS = ("train", "test")
FEATURE_CIRCUITS = "saprmarks/feature-circuits 1d87366, MIT"
EAP_IG = "hannamw/EAP-IG 795f560, MIT"
MIB = "aaronmueller/MIB cc2a160, Apache-2.0"


@dataclass(frozen=True)
class Dataset:
    """One named set.

    Attributes:
        summary: What is asked, in one line.
        source: Repository, commit, licence.
        files: By split, where the publisher splits; else the whole as `all`.
        make: From a seed to prompts and what was left out, of sets made from lists.
        asks: From the pairs that are in the files to those that are asked.
    """

    summary: str
    source: str
    files: dict[str, str] | None = None
    make: Callable[[int], Made] | None = None
    asks: Callable[[Pairs], Pairs] = lambda pairs: pairs


def _read(name: str) -> Any:
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


def _split(name: str, *splits: str) -> dict[str, str]:
    return {split: f"agreement/{name}_{split}.jsonl.gz" for split in splits}


def _ioi(seed: int) -> Made:
    names, objects, places, templates = (
        _read(f"ioi/{part}") for part in ("names", "objects", "places", "templates")
    )
    return indirect_objects(names, objects, places, templates, seed=seed)


def _cities(attribute: str) -> Callable[[int], Made]:
    return lambda seed: cities(_read("ravel/ravel_city_entity"), attribute, seed=seed)


def _colours(seed: int) -> Made:
    return coloured_objects(_read("mcqa/object_color_pairs"), seed=seed)


DATASETS: dict[str, Dataset] = {
    "agreement/simple": Dataset(
        "'The uncles' -> ' do', not ' does'", FEATURE_CIRCUITS, _split("simple", *SPLITS)
    ),
    "agreement/nounpp": Dataset(
        "'The uncles behind the dog' -> ' do'", FEATURE_CIRCUITS, _split("nounpp", *SPLITS)
    ),
    "agreement/within_rc": Dataset(
        "'The athlete that the chefs' -> ' do'", FEATURE_CIRCUITS, _split("within_rc", *SPLITS)
    ),
    "agreement/rc": Dataset(
        "'The women that the dancer visits' -> ' do'",
        "made from word lists of mattf1n/lm-intervention a35af3d, MIT",
        _split("rc", "train"),
    ),
    "greater_than/years": Dataset(
        "'The war lasted from the year 1732 to the year 17' -> '33' to '99'",
        EAP_IG,
        {"all": "greater_than/greater_than.csv.gz"},
    ),
    "greater_than/digits": Dataset(
        "the same for tokens of one digit, as Gemma's -> '4' to '9'",
        EAP_IG,
        {"all": "greater_than/greater_than.csv.gz"},
        asks=by_digits,
    ),
    "ioi/eap_ig": Dataset(
        "'..., Aaron and Amber ... Aaron gave a drink to' -> ' Amber'",
        EAP_IG,
        {"all": "ioi/ioi_llama.csv.gz"},
    ),
    "ioi/templates": Dataset("the same, from templates and 99 names", MIB, make=_ioi),
    "cities/country": Dataset(
        "'Aarau is a city in the country of' -> ' Switzerland'", MIB, make=_cities("Country")
    ),
    "cities/continent": Dataset("the continent of a city", MIB, make=_cities("Continent")),
    "cities/language": Dataset("the language of a city", MIB, make=_cities("Language")),
    "coloured_objects": Dataset(
        "'The lemon is yellow. What color is ...? A. ... B. ...' -> ' A'", MIB, make=_colours
    ),
}
"""What `load_pairs` knows."""


def load_pairs(name: str, split: str = "train", *, seed: int = 0) -> Pairs:
    """A bundled data set by name.

    Args:
        name: A key of `DATASETS`.
        split: `train` or `test`, as published; sets without splits are divided by `halves`.
        seed: Of sets that are made from lists.

    Raises:
        UserError: no such set or split.
    """
    if name not in DATASETS:
        close = get_close_matches(name, DATASETS, n=3, cutoff=0.4) or list(DATASETS)
        raise UserError(f"no data set {name!r}; there is {', '.join(close)}")
    dataset = DATASETS[name]
    published = dataset.files is not None and "all" not in dataset.files
    known = tuple(dataset.files or {}) if published else SPLITS
    if split not in known:
        raise UserError(f"{name} has no split {split!r}; it has {', '.join(known)}")
    full, source = f"{name} {split}", dataset.source
    if dataset.make:
        prompts, left_out = dataset.make(seed)
        return _half(Pairs(tuple(prompts), full, source, left_out=left_out), split)
    assert dataset.files is not None
    file = dataset.files[split if published else "all"]
    pairs = dataset.asks(read_pairs(DATA / file, name=full, source=source))
    return pairs if published else _half(pairs, split)


def _half(pairs: Pairs, split: str) -> Pairs:
    """One of the halves; what is left out is of the whole."""
    return replace(pairs, prompts=halves(pairs)[SPLITS.index(split)])


@cache
def _word_lists() -> dict[str, list[Any]]:
    return _read("words")


def word_list(name: str) -> list[Any]:
    """A list of words (pairs are `[singular, plural]`), such as `agreement/noun`.

    Raises:
        UserError: no such list.
    """
    lists = _word_lists()
    if name not in lists:
        raise UserError(f"no word list {name!r}; there is {', '.join(lists)}")
    return list(lists[name])
