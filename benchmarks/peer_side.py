"""How the two halves of `against_peers.py` are asked and measured.

Runs in circuit-tracer's environment too: imports nothing of this project.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

N_ROWS = 50
"""Targets whose edges the two sides compare."""

KEEP_INFLUENCE, KEEP_EDGES = 0.8, 0.98
"""What pruning keeps."""


class Side(Protocol):
    """One library with the model and the transcoders of a case, loaded."""

    def graph(self, setting: float | None, max_latents: int | None = None) -> Any:
        """The graph of the case's prompt, unpruned.

        `setting` is circuit-tracer's batch size; of ours the influence that is kept, None for all.
        """
        ...

    def prune(self, graph: Any) -> int:
        """Prunes to `KEEP_INFLUENCE` and `KEEP_EDGES`; how many latents are kept."""
        ...

    def sample(self, graph: Any) -> dict[str, np.ndarray]:
        """`latents [n, 3]`: layer, position, latent, in order; `logits`: token ids, in order.
        `rows [k, m]`: edges into `N_ROWS` latents evenly spaced among them and into each logit,
        from latents, from errors `(layer, pos)` and from tokens.
        """
        ...


def serve(load: Callable[[dict[str, Any]], Side]) -> None:
    """Load the case that the first line of stdin describes, then measure once a line.

    Lines are JSON both ways; what libraries print goes to stderr.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    case = json.loads(sys.stdin.readline())
    torch.set_num_threads(case["threads"])
    side = load(case)
    side.prune(side.graph(None, max_latents=16))  # imports, thread pools, first touches of weights
    answers.write(json.dumps({"threads": torch.get_num_threads()}) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(measure(side, **json.loads(line))) + "\n")


def measure(side: Side, setting: float | None, sample: str | None) -> dict[str, float]:
    """Seconds and peak memory (bytes above what was resident before) of a graph and its pruning.

    The peak is the kernel's own high-water mark of resident memory (VmHWM), reset before. Seconds
    of the clock, and of CPU by all threads of the process, which other work disturbs less.
    """
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory goes back, or it would hide the next use
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is resident
    before = resident("VmRSS")
    begun = clocks()
    graph = side.graph(setting)
    built = clocks()
    peak = resident("VmHWM")
    kept = side.prune(graph)
    pruned = clocks()
    result: dict[str, float] = {
        "kept": kept,
        "graph_bytes": peak - before,
        "both_bytes": resident("VmHWM") - before,
    }
    for i, clock in enumerate(("wall", "cpu")):
        result |= {f"graph_{clock}": built[i] - begun[i], f"prune_{clock}": pruned[i] - built[i]}
    if sample is not None:
        np.savez(sample, **side.sample(graph))  # pyright: ignore[reportArgumentType]
    return result


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def resident(field: str) -> int:
    """A number of `/proc/self/status`, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)
