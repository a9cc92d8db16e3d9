"""Random circuits with as many nodes of each group as another circuit: what size alone explains."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def matched_circuits(
    circuits: NDArray[np.bool_], groups: ArrayLike, n_random: int, *, seed: int
) -> NDArray[np.bool_]:
    """`n_random` circuits for each of `circuits`, `[n_circuits, n_random, n]`.

    Each holds as many nodes of every group as its circuit, drawn without replacement from all nodes
    of the group, the circuit's own included. Of one draw, a circuit with at least as many nodes of
    every group holds the smaller one.

    Args:
        circuits: Which of the `n` nodes each circuit holds, `[n_circuits, n]`.
        groups: The group of each node, `[n]`.
        n_random: Circuits for each.
        seed: Of the draws.
    """
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    n_groups = int(group.max(initial=-1)) + 1
    counts = np.array([np.bincount(group[held], minlength=n_groups) for held in circuits])
    starts = np.concatenate([[0], np.bincount(group, minlength=n_groups).cumsum()[:-1]])
    rng = np.random.default_rng(seed)
    found = np.zeros((len(circuits), n_random, circuits.shape[1]), dtype=bool)
    for draw in range(n_random):
        order = np.lexsort((rng.random(len(group)), group))  # by group, at random within it
        place = np.empty(len(group), dtype=np.int64)
        place[order] = np.arange(len(group)) - starts[group[order]]
        found[:, draw] = place < counts[:, group]
    return found
