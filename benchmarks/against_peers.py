"""Time and memory of a graph with transcoders and of its pruning, beside circuit-tracer 0.5.0.

\b
python benchmarks/against_peers.py              # all cases, some 25 minutes on two idle cores
python benchmarks/against_peers.py --quick      # the smallest
python benchmarks/against_peers.py --only d256-10k-24 --only d2304-1k-24

Both get the same random Gemma 2 and transcoders, the same prompt and thresholds, float32 and the
same number of threads; each has every active latent in its graph and prunes with shares 0.8 and
0.98: ours once with all edges stored, once with those alone between the nodes that pruning keeps
(`keep_influence`), which gives the same pruned graph. They run in turn, one process each; loading
is not timed. Before times count, the two must have the same latents and the same edges. Both draw
the graph once before: what a process' first graph takes here is told aside. circuit-tracer
(TransformerLens back end) runs in an environment of its own, made below --env on the first run
(1 GB and more with torch: pip's configuration says where it comes from), with several batch sizes,
of which the fastest counts. Linux only: peaks of memory are read from /proc.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from peer_cases import BATCH_SIZES, CASES, SHAPES, VOCAB, Case, describe
from peer_environment import peer_environment
from peer_report import Outcome, show, show_growth, show_machine
from peer_side import KEEP_INFLUENCE
from random_gemma import save_random_gemma

HERE = Path(__file__).parent
TOLERANCE = 1e-3
"""The largest difference of two edges, relative to the strongest into the same target."""


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="The smallest case alone.")
@click.option("--only", multiple=True, metavar="CASE", help="Such as d256-10k-24; repeatable.")
@click.option("--env", type=click.Path(path_type=Path), default=HERE.parent / ".peer-env")
@click.option("--repeats", default=3, show_default=True)
@click.option("--enough", default=60.0, show_default=True, help="Seconds; no further repeat then.")
@click.option("--threads", default=torch.get_num_threads(), show_default=True)
@click.option("--cpu", "clock", flag_value="cpu", help="Count CPU seconds (with --threads 1).")
def main(
    quick: bool,
    only: Sequence[str],
    env: Path,
    repeats: int,
    enough: float,
    threads: int,
    clock: str | None,
) -> None:
    cases = choose(["d256-1k-8"] if quick else only)
    python = peer_environment(env.absolute())
    show_machine(threads, python)
    outcomes: list[Outcome] = []
    for d_model, group in groupby(cases, lambda case: case.d_model):
        with tempfile.TemporaryDirectory() as folder:
            save_random_gemma(Path(folder), SHAPES[d_model], VOCAB)
            for case in group:
                told = describe(case, Path(folder), threads)
                outcomes.append(measure_case(case, told, python, repeats, enough, clock or "wall"))
                told_of = ", ".join(f"{total:.2f}" for total in outcomes[-1].totals)
                click.echo(f"{case.name}: {told_of} s", err=True)
    show(outcomes)
    show_growth(outcomes)


def choose(names: Sequence[str]) -> list[Case]:
    known = {case.name: case for case in CASES}
    if unknown := set(names) - known.keys():
        raise click.UsageError(f"no case {', '.join(unknown)}; there are {', '.join(known)}")
    return [case for name, case in known.items() if name in names or not names]


@contextmanager
def worker(command: list[Any], case: dict[str, Any]) -> Iterator[Any]:
    """A process with one side loaded; calling what this yields measures once."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, str(case["threads"]))
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(question: dict[str, Any]) -> Any:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        if not (answer := process.stdout.readline()):
            raise click.ClickException(f"{command[1]} ended without an answer; see above")
        return json.loads(answer)

    try:
        assert ask(case)["threads"] == case["threads"]
        yield lambda setting, sample=None: ask({"setting": setting, "sample": sample})
    finally:
        process.stdin.close()
        process.wait()


def measure_case(
    case: Case, told: dict[str, Any], python: Path, repeats: int, enough: float, clock: str
) -> Outcome:
    """Both sides in turn, once warm: ours by one graph, circuit-tracer by one with each batch size.

    Of these the fastest is used.
    """
    begun = time.perf_counter()
    samples = {side: f"{told['folder']}/{case.name}.{side}.npz" for side in ("peer", "ours")}
    with ExitStack() as stack:
        peer = stack.enter_context(worker([python, HERE / "peer_circuit_tracer.py"], told))
        ours = stack.enter_context(worker([sys.executable, HERE / "peer_ours.py"], told))
        tried: dict[int, dict[str, float]] = {}
        for size in BATCH_SIZES[case.d_model][case.latents]:
            tried[size] = peer(size, samples["peer"])
        best = min(tried, key=lambda size: tried[size][f"graph_{clock}"])
        first = ours(KEEP_INFLUENCE)
        ours(None, samples["ours"])
        latents, difference = compare(*(np.load(path) for path in samples.values()))
        sides: tuple[list[Any], ...] = ([], [], [])
        while not sides[0] or (len(sides[0]) < repeats and time.perf_counter() - begun < enough):
            for turns, answer in zip(
                sides, (peer(best), ours(None), ours(KEEP_INFLUENCE)), strict=True
            ):
                turns.append(answer)
        assert sides[1][0]["kept"] == sides[2][0]["kept"], "pruning keeps other latents"
    return Outcome(case, latents, best, first, *sides, clock, difference)


def compare(peer: Any, ours: Any) -> tuple[int, float]:
    """How many latents both have, and by how much edges differ; fails where they are not the same.

    Left out: errors at BOS, which circuit-tracer does not have and ours carry the MLP's output.
    """
    for name in ("latents", "logits"):
        assert np.array_equal(peer[name], ours[name]), f"the two have other {name}"
    n, n_layers = len(peer["latents"]), int(peer["latents"][:, 0].max()) + 1
    theirs, own = peer["rows"].astype(float), ours["rows"].astype(float)
    assert theirs.shape == own.shape
    n_pos = (theirs.shape[1] - n) // (n_layers + 1)
    at_bos = n + n_pos * np.arange(n_layers)
    assert not theirs[:, at_bos].any()
    own[:, at_bos] = 0
    difference = float((np.abs(theirs - own).max(1) / np.abs(theirs).max(1)).max())
    assert difference < TOLERANCE, f"edges differ by {difference:.1e}"
    return n, difference


if __name__ == "__main__":
    main()
