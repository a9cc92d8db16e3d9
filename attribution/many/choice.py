"""Which nodes and edges of many prompts are reported: the largest by the mean absolute effect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import csr_array
from tqdm import tqdm

from attribution.many.pooling import Keys, Space, site_values
from attribution.many.prompt_store import PromptStore


def choose_latents(
    space: Space, store: PromptStore, names: Sequence[str], max_latents: int
) -> Keys:
    """The latents of all sites with the largest mean absolute effects.

    Of latents with the same effect the first site's come first, then the first code's.
    """
    best = np.zeros((3, 0))  # size, site, code
    for number, site in enumerate(tqdm(space.d_sae, "choice", unit="site", disable=None, delay=1)):
        sizes = np.zeros(space.n_codes(site))
        for name in names:
            codes, values = site_values(space, site, store.read(name, f"{site}/"))
            sizes[codes] += np.abs(values)
        (codes,) = sizes.nonzero()
        found = np.stack([sizes[codes], np.full(len(codes), number), codes])
        best = np.concatenate([best, found], axis=1)
        order = np.argsort(-best[0], kind="stable")  # of equals, those that came first
        best = best[:, order[:max_latents]]
    _, at, codes = best
    chosen = {site: np.sort(codes[at == i]).astype(np.int64) for i, site in enumerate(space.d_sae)}
    return Keys(space, chosen)


def choose_edges(
    store: PromptStore, names: Sequence[str], n_nodes: int, max_edges: int
) -> np.ndarray:
    """Codes of the edges with the largest mean absolute effects, ascending."""
    total = csr_array((n_nodes, n_nodes))
    for arrays in each(store, names, "choice"):
        ends = np.divmod(arrays["code"], n_nodes)
        total = total + csr_array((np.abs(arrays["value"]), ends), shape=total.shape)
    found = total.tocoo()
    codes = found.row.astype(np.int64) * n_nodes + found.col
    return np.sort(codes[np.lexsort((codes, np.negative(found.data)))[:max_edges]])


def each(store: PromptStore, names: Sequence[str], what: str) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of one prompt after the other."""
    for name in tqdm(names, what, unit="prompt", disable=None, delay=1):
        yield store.read(name)
