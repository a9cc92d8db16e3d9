"""What `against_peers.py` measured of a case, and its tables."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
from peer_cases import Case
from peer_environment import installed


@dataclass(frozen=True)
class Outcome:
    """What was measured of one case: each side's answers, round by round.

    Attributes:
        batch_size: circuit-tracer's fastest.
        first: Of the first graph of our process, with the edges alone that pruning keeps.
        peer: circuit-tracer's.
        every: Ours with all edges stored.
        kept: Ours with the edges alone that pruning keeps.
        clock: `wall` or `cpu`: which seconds count.
        difference: Of edges: the largest, relative to the strongest into the same target.
    """

    case: Case
    latents: int
    batch_size: int
    first: dict[str, float]
    peer: list[dict[str, float]]
    every: list[dict[str, float]]
    kept: list[dict[str, float]]
    clock: str
    difference: float

    def seconds(self, turns: list[dict[str, float]], *parts: str) -> list[float]:
        return [sum(turn[f"{part}_{self.clock}"] for part in parts) for turn in turns]

    def shown(self, turns: list[dict[str, float]]) -> str:
        graph, prune = (statistics.median(self.seconds(turns, part)) for part in ("graph", "prune"))
        return f"{graph:.2f} + {prune:.2f}"

    @property
    def totals(self) -> list[float]:
        """Median seconds of graph and pruning together: `peer`, `every`, `kept`."""
        return [
            statistics.median(self.seconds(turns, "graph", "prune"))
            for turns in (self.peer, self.every, self.kept)
        ]

    def faster(self, turns: list[dict[str, float]]) -> str:
        """How many times faster than circuit-tracer, by medians and from round to round."""
        theirs, own = (self.seconds(some, "graph", "prune") for some in (self.peer, turns))
        ratios = [a / b for a, b in zip(theirs, own, strict=True)]
        by_median = statistics.median(theirs) / statistics.median(own)
        return f"{by_median:.1f} ({min(ratios):.1f}-{max(ratios):.1f})"

    def peaks(self, *turns: dict[str, float]) -> list[float]:
        """The highest peaks in GB, of graphs and of both steps."""
        return [max(turn[f"{part}_bytes"] for turn in turns) / 1e9 for part in ("graph", "both")]


def show_machine(threads: int, python: Path) -> None:
    cpu = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    names = ("torch", "transformer-lens", "transformers")
    versions = [
        f"{name} {version(name)} here and {theirs} there"
        for name, theirs in zip(names, installed(python, *names), strict=True)
    ]
    click.echo(
        f"{cpu}, {os.cpu_count()} cores, {threads} threads on each side, load before "
        f"{os.getloadavg()[0]:.1f}; Python {platform.python_version()}, {', '.join(versions)}\n"
    )


def show(outcomes: Sequence[Outcome]) -> None:
    """Times, memory and what was compared, a row a case."""
    click.echo(
        f"Seconds ({outcomes[0].clock}) of graph + pruning, medians; here with all edges stored, "
        "and with those that pruning keeps:\n\n"
        "| case | latents | rounds | circuit-tracer (batch) | here, all | times faster (range) | "
        "here, kept | times faster (range) | first here, kept |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for o in outcomes:
        click.echo(
            f"| {o.case.name} | {o.latents:,} | {len(o.peer)} | {o.shown(o.peer)} ({o.batch_size}) "
            f"| {o.shown(o.every)} | {o.faster(o.every)} | {o.shown(o.kept)} | {o.faster(o.kept)} "
            f"| {o.shown([o.first])} |"
        )
    click.echo(
        "\nPeak memory above the loaded model, GB, of the graph, and of both steps:\n\n"
        "| case | circuit-tracer | here, all | share | here, kept | share | latents kept | "
        "edges differ by |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for o in outcomes:
        (graph, both), *own = o.peaks(*o.peer), o.peaks(*o.every), o.peaks(o.first, *o.kept)
        ours = " | ".join(f"{g:.2f}, {b:.2f} | {b / both:.2f}" for g, b in own)
        click.echo(
            f"| {o.case.name} | {graph:.2f}, {both:.2f} | {ours} | "
            f"{o.peer[0]['kept']:,.0f}, {o.kept[0]['kept']:,.0f} | {o.difference:.0e} |"
        )


def show_growth(outcomes: Sequence[Outcome]) -> None:
    """The exponent of each side's seconds in the number of targets, a row a model and length."""
    series: dict[tuple[int, int], list[Outcome]] = {}
    for o in outcomes:
        series.setdefault((o.case.d_model, o.case.tokens), []).append(o)
    series = {key: several for key, several in series.items() if len(several) > 1}
    if not series:
        return
    click.echo(
        "\nSeconds grow with the number of latents to the power of:\n\n"
        "| d_model | tokens | circuit-tracer | here, all | here, kept |\n"
        "| ---: | ---: | ---: | ---: | ---: |"
    )
    for (d_model, tokens), several in series.items():
        log_n = np.log([o.latents for o in several])
        log_s = np.log([o.totals for o in several])
        powers = " | ".join(f"{np.polyfit(log_n, side, 1)[0]:.2f}" for side in log_s.T)
        click.echo(f"| {d_model} | {tokens} | {powers} |")
