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
        first: Of the graph that is ours and that only warms the process.
        clock: `wall` or `cpu`: which seconds count.
        difference: Of edges: the largest, relative to the strongest into the same target.
    """

    case: Case
    latents: int
    batch_size: int
    first: dict[str, float]
    peer: list[dict[str, float]]
    ours: list[dict[str, float]]
    clock: str
    difference: float

    def seconds(self, turns: list[dict[str, float]], *parts: str) -> list[float]:
        return [sum(turn[f"{part}_{self.clock}"] for part in parts) for turn in turns]

    def shown(self, turns: list[dict[str, float]]) -> str:
        graph, prune = (statistics.median(self.seconds(turns, part)) for part in ("graph", "prune"))
        return f"{graph:.2f} + {prune:.2f}"

    @property
    def totals(self) -> tuple[float, float]:
        """Median seconds of graph and pruning together: circuit-tracer's, ours."""
        peer, ours = (
            statistics.median(self.seconds(turns, "graph", "prune"))
            for turns in (self.peer, self.ours)
        )
        return peer, ours

    @property
    def ratios(self) -> list[float]:
        """How many times faster ours were, round by round."""
        peer, ours = (self.seconds(turns, "graph", "prune") for turns in (self.peer, self.ours))
        return [a / b for a, b in zip(peer, ours, strict=True)]


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
    click.echo(f"Seconds ({outcomes[0].clock}) of graph + pruning, medians:\n")
    click.echo(
        "| case | latents | circuit-tracer (batch) | here | first here | times faster | "
        "range, repeats |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for o in outcomes:
        theirs, own = o.totals
        click.echo(
            f"| {o.case.name} | {o.latents:,} | {o.shown(o.peer)} ({o.batch_size}) | "
            f"{o.shown(o.ours)} | {o.shown([o.first])} | {theirs / own:.1f} | "
            f"{min(o.ratios):.1f}-{max(o.ratios):.1f}, {len(o.ratios)} |"
        )
    click.echo(
        "\nPeak memory above the loaded model, GB, of the graph, and of both steps:\n\n"
        "| case | circuit-tracer | here | share | latents kept | edges differ by |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for o in outcomes:
        peaks = [
            [max(turn[f"{part}_bytes"] for turn in turns) / 1e9 for part in ("graph", "both")]
            for turns in (o.peer, [o.first, *o.ours])
        ]
        (graph, both), (own_graph, own_both) = peaks
        click.echo(
            f"| {o.case.name} | {graph:.2f}, {both:.2f} | {own_graph:.2f}, {own_both:.2f} | "
            f"{own_both / both:.2f} | {o.peer[0]['kept']:,.0f}, {o.ours[0]['kept']:,.0f} | "
            f"{o.difference:.0e} |"
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
        "| d_model | tokens | circuit-tracer | here |\n| ---: | ---: | ---: | ---: |"
    )
    for (d_model, tokens), several in series.items():
        log_n = np.log([o.latents for o in several])
        powers = [np.polyfit(log_n, np.log([o.totals[i] for o in several]), 1)[0] for i in (0, 1)]
        click.echo(f"| {d_model} | {tokens} | {powers[0]:.2f} | {powers[1]:.2f} |")
