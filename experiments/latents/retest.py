"""The same latents on prompts that had no part in choosing them: what is confirmed there.

A sign-flip test of few prompt pairs has no small p, whatever the effects: of n pairs the least is
2 / 2^n. Where even that is above the level nothing can be confirmed, nor is anything refuted.
"""

from __future__ import annotations

from math import ceil, log2
from typing import Any

import numpy as np

from experiments.level import LEVEL
from experiments.statistics import benjamini_hochberg, cluster_interval, sign_flip_p

Array = np.ndarray


def retest(
    effects: Array,
    found: Array,
    clusters: Array,
    *,
    n_permutations: int,
    n_bootstrap: int,
    seed: int,
) -> tuple[dict[str, Array], list[str]]:
    """The columns `heldout_mean`, `_low`, `_high`, `_p`, `_q` and `confirmed`, each `[k]`.

    Args:
        effects: On the held-out prompts, `[n, k]`.
        found: The means where the latents were found, `[k]`.
        clusters: A number for each held-out prompt, the same for a pair and its reverse.
        n_permutations, n_bootstrap, seed: Of p and the intervals.

    Returns:
        The columns; and where `confirmed` is None for all, a sentence that says why.
    """
    mean = effects.mean(0)
    low, high = cluster_interval(effects, clusters, n_bootstrap=n_bootstrap, seed=seed)
    tested: dict[str, Any] = {"n_permutations": n_permutations, "seed": seed}
    p = sign_flip_p(effects, clusters, **tested)
    q = benjamini_hochberg(p)
    notes = out_of_reach(clusters, **tested)
    confirmed = (np.sign(mean) == np.sign(found)) & (q <= LEVEL)
    return {
        "heldout_mean": mean,
        "heldout_low": low,
        "heldout_high": high,
        "heldout_p": p,
        "heldout_q": q,
        "confirmed": np.full(len(mean), None) if notes else confirmed,
    }, notes


def out_of_reach(clusters: Array, *, n_permutations: int, seed: int) -> list[str]:
    """The sentence that says why no effect on these prompts could be confirmed, if none could."""
    same = np.ones((len(clusters), 1))  # effects as much alike as can be
    least = sign_flip_p(same, clusters, n_permutations=n_permutations, seed=seed).item()
    if least <= LEVEL:
        return []
    n, needed = len(np.unique(clusters)), ceil(log2(2 / LEVEL))
    if n < needed:
        few = f"{n} held-out pairs (one and its reverse count once)"
        advice = f"{needed} or more"
    else:
        few, advice = f"{n_permutations} permutations", "more, such as 10000"
    return [
        f"confirmed is missing: of {few} the smallest sign-flip p is {least:.2g}, above {LEVEL}; "
        f"give {advice}"
    ]
