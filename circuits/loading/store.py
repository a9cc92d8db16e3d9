"""A model's dictionaries, of which only some are in memory.

1. Dictionaries *stay*, the first sites of the forward pass first, until the budget is full.
2. The others *pass through*: one is read when it is asked for, and goes after the next one came.
3. While one computes, the next is *read ahead*: a pass goes through sites in order, down in a
   forward pass and up in a backward one.

On a CPU, dictionaries are mapped from their files (`circuits.loading.mapped`), and reading ahead
fills the operating system's cache. On a GPU they are copied there through pinned memory, on a
stream of their own, so that copies overlap computation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from circuits.dictionaries import Dictionary, check_finite
from circuits.errors import UserError
from circuits.loading.mapped import open_mapped, will_need
from circuits.memory import show_bytes
from circuits.sites import Site

PASSING = 3
"""Dictionaries that pass through are in memory so many at a time: one is used, the one before it
may still be in somebody's hands, and the next is read ahead."""


@dataclass(frozen=True)
class Summary:
    """What is known of a dictionary without having it in memory; names as in `Dictionary`.

    `has_skip`: whether it has a skip connection.
    """

    name: str
    average_l0: float | None
    d_in: int
    d_sae: int
    d_out: int
    n_bytes: int
    has_skip: bool
    n_later: int
    reads_residual: bool

    @classmethod
    def of(cls, d: Dictionary) -> Summary:
        return cls(
            name=d.name,
            average_l0=d.average_l0,
            d_in=d.d_in,
            d_sae=d.d_sae,
            d_out=d.d_out,
            n_bytes=d.n_bytes,
            has_skip=d.W_skip is not None,
            n_later=d.n_later,
            reads_residual=d.reads_residual,
        )


class DictionaryStore(Mapping[Site, Dictionary]):
    """Dictionaries by site, in the order of the forward pass. For one thread at a time.

    Args:
        sources: A dictionary in memory, or the path of a mapped copy, by site. Those in memory
            stay there and count.
        device: Where mapped copies are moved to.
        budget: Bytes that dictionaries may take; `None` for no bound.

    Raises:
        UserError: a budget below what passing through takes, or a damaged copy.
    """

    def __init__(
        self,
        sources: Mapping[Site, Dictionary | Path],
        *,
        device: torch.device | str = "cpu",
        budget: int | None = None,
    ) -> None:
        self._sources = {site: sources[site] for site in sorted(sources)}
        self.device = torch.empty(0, device=device).device  # `cuda` is `cuda:0`
        for site, source in self._sources.items():
            if isinstance(source, Dictionary):
                _check(site, source, self.device)
        opened = {site: _open(source) for site, source in self._sources.items()}
        self._summaries = {site: Summary.of(dictionary) for site, dictionary in opened.items()}
        self.staying = _choose_staying(self._sources, self._summaries, budget)
        self._passing = tuple(site for site in self._sources if site not in self.staying)
        self._held = {s: d for s, d in self._sources.items() if isinstance(d, Dictionary)}
        self._current: tuple[Site, Dictionary] | None = None
        self._ahead: tuple[Site, Future[Dictionary]] | None = None
        self._reader = ThreadPoolExecutor(1, "dictionaries") if self._passing else None

    @classmethod
    def of(cls, dictionaries: Mapping[Site, Dictionary], device: torch.device) -> DictionaryStore:
        """`dictionaries` as a store on `device`; a store stays itself.

        Raises:
            UserError: dictionaries on another device.
        """
        if not isinstance(dictionaries, cls):
            return cls(dictionaries, device=device)
        if dictionaries.device != device:
            raise UserError(
                f"the dictionaries are for {dictionaries.device} and the model is on {device}; "
                f"load them with device={str(device)!r}"
            )
        return dictionaries

    def __getitem__(self, site: Site) -> Dictionary:
        if site in self._held:
            return self._held[site]
        if self._current is not None and self._current[0] == site:
            return self._current[1]
        if site in self.staying:
            self._held[site] = self._arrived(self._read(site))
            return self._held[site]
        source = self._sources[site]  # KeyError: no such site
        assert isinstance(source, Path)
        before = self._current
        self._current = None  # let go before the next one comes
        dictionary = self._take(site)
        self._current = (site, dictionary)
        self._read_ahead(site, before[0] if before else None)
        return dictionary

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def __contains__(self, site: object) -> bool:
        return site in self._sources  # Mapping's own would read the dictionary

    def __repr__(self) -> str:
        total = show_bytes(sum(summary.n_bytes for summary in self._summaries.values()))
        return f"DictionaryStore({len(self)} sites, {total}, {len(self.staying)} stay in memory)"

    def summary(self, site: Site) -> Summary:
        """Name and sizes of the dictionary at `site`; nothing is read."""
        return self._summaries[site]

    def _take(self, site: Site) -> Dictionary:
        """The dictionary that was read ahead, or one read now."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == site:
            return self._arrived(ahead[1].result())
        return self._arrived(self._read(site))

    def _read_ahead(self, site: Site, before: Site | None) -> None:
        """Begin to read the passing dictionary that is likely to be asked for after `site`."""
        assert self._reader is not None
        step = -1 if before is not None and before > site else 1
        following = self._passing[(self._passing.index(site) + step) % len(self._passing)]
        if following not in (site, before):  # else `before` might be in memory twice
            self._ahead = (following, self._reader.submit(self._read, following))

    def _read(self, site: Site) -> Dictionary:
        path = self._sources[site]
        assert isinstance(path, Path)
        will_need(path)
        dictionary = open_mapped(path)
        if self.device.type != "cuda":
            return dictionary.to(device=self.device)
        with torch.cuda.stream(self._copying):
            moved = {
                key: array.pin_memory().to(self.device, non_blocking=True)
                for key, array in dictionary.arrays.items()
            }
        return replace(dictionary, **moved)

    @cached_property
    def _copying(self) -> torch.cuda.Stream:
        """The stream on which dictionaries are copied to the GPU."""
        return torch.cuda.Stream(self.device)

    def _arrived(self, dictionary: Dictionary) -> Dictionary:
        """Have the computation wait for the copy, and the copy's memory for the computation."""
        if self.device.type == "cuda":
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(self._copying)
            for array in dictionary.arrays.values():
                array.record_stream(computing)
        return dictionary


def passing_bytes(sizes: Iterable[int]) -> int:
    """What dictionaries of `sizes` bytes take at most while all of them pass through."""
    return sum(sorted(sizes)[-PASSING:])


def _open(source: Dictionary | Path) -> Dictionary:
    return source if isinstance(source, Dictionary) else open_mapped(source)


def _check(site: Site, dictionary: Dictionary, device: torch.device) -> None:
    """Refuse a dictionary made in memory that is elsewhere or not finite; files were checked."""
    if dictionary.W_enc.device != device:
        raise UserError(
            f"the dictionary at {site} is on {dictionary.W_enc.device}, the model on {device}; "
            "move it with dictionary.to(device=...)"
        )
    for key, array in dictionary.arrays.items():
        check_finite(key, array, f"{dictionary.name} at {site}")


def _choose_staying(
    sources: Mapping[Site, Dictionary | Path],
    summaries: Mapping[Site, Summary],
    budget: int | None,
) -> frozenset[Site]:
    """The sites whose dictionaries stay in memory."""
    in_memory = {site for site, source in sources.items() if isinstance(source, Dictionary)}
    mapped = [site for site in sources if site not in in_memory]
    sizes = {site: summaries[site].n_bytes for site in sources}
    left = None if budget is None else budget - sum(sizes[site] for site in in_memory)
    if left is None or sum(sizes[site] for site in mapped) <= left:
        return frozenset(sources)
    left -= passing_bytes(sizes[site] for site in mapped)
    if left < 0:
        assert budget is not None
        raise UserError(
            f"{show_bytes(max(0, budget))} of memory are left for dictionaries; they need at least "
            f"{show_bytes(budget - left)}: up to three at a time of those in large files, and all "
            "small ones"
        )
    staying = set(in_memory)
    for site in mapped:
        if sizes[site] > left:
            break
        left -= sizes[site]
        staying.add(site)
    return frozenset(staying)
