"""How well an edge, by each linearisation, foretells what removing its source does to its target.

1. For each held-out prompt the latents with the largest total effects are nodes. Each of them, and
   each token, is removed alone (its vector taken from what its site writes) while the embedding
   and every other spliced site keep their clean values: norms, attention and MLPs between are
   real. One pass measures what every target's pre-activation, and the metric, loses by it.
2. Beside it the edges between the same nodes by every linearisation (`attribute` with `mlp`,
   `attention`, `norms`): of each kind the strongest pairs, by the size of their edges in units of
   each linearisation's mean, averaged over all so that none is favoured, and others at random.
3. The same with the source moved a tenth of the way, times ten: where the plain derivative is right
   there and wrong on the whole way, the difference is curvature.
4. What the incoming edges of a latent sum to, against its pre-activation, both less `b_enc`.
5. Total effects by gradient x activation under five ways to take gradients, against ablation in the
   whole model (downstream recompute): of latents that any of the ways ranks among its 50 first.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from attribution import Attribution, Metric, attribute, total_effects
from attribution.metrics import bind
from circuits import (
    LatentNode,
    Prompt,
    Reference,
    SplicedModel,
    TokenNode,
    UserError,
    corrupted_reference,
    load,
    zero_reference,
)
from circuits.files import check_writable, write_atomically
from circuits.freeze import LIVE, Freeze
from circuits.gated import RULES
from experiments.ablation import ablate_each, pearson
from experiments.edges.held import Held, Source, shifts, value_in
from experiments.tasks import TASKS

SITES = {
    "all three kinds": ("attn", "mlp", "resid"),
    "attn and mlp": ("attn", "mlp"),
    "attn and transcoder": ("attn", "transcoder"),
    "resid alone": ("resid",),
}
"""Which sites are spliced: what lies between two of them differs."""

KINDS = ("token", "attn", "mlp", "transcoder", "resid", "metric")

MODES = tuple(
    (rule, attention, norms)
    for rule in RULES
    for attention in ("frozen", "live")
    for norms in ("frozen", "live")
)
"""Every linearisation: how MLPs become linear, attention patterns, norm scales."""

COMPARED = {
    "default": ("jacobian", "frozen", "frozen"),
    "RelP": ("relp", "frozen", "frozen"),
    "integrated": ("integrated", "frozen", "frozen"),
    "attention live": ("jacobian", "live", "frozen"),
    "norms live": ("jacobian", "frozen", "live"),
    "both live": ("jacobian", "live", "live"),
    "both live, RelP": ("relp", "live", "live"),
}
"""Columns of the short tables; the default is the Jacobian with all frozen."""

N_LATENTS = 150
"""Latents that are nodes, of each prompt."""

N_EACH = 60
"""Pairs of each kind and prompt: so many of the strongest, and so many of the others."""

BATCH = 64

WAYS = {
    "all live": LIVE,
    "norms frozen": Freeze(norms=True),
    "all frozen": Freeze(attention=True, norms=True),
    "RelP": Freeze(attention=True, norms=True, mlp="relp"),
    "RelP, attention live": Freeze(norms=True, mlp="relp"),
}
"""How gradients of total effects take the model."""

N_TOTAL = 50
"""Latents that each way ranks first."""

REFERENCES = {"patching": corrupted_reference, "zeroing": zero_reference}


@dataclass(frozen=True, eq=False)
class Pair:
    """A source and a target.

    Attributes:
        kinds: Of the source and of the target.
        strong: Whether it is one of the strongest of its kind and prompt.
        edges: By linearisation, in the order of `MODES`.
        measured: What the target lost when the source was removed.
        tenth: Ten times what it lost when a tenth of the source was.
    """

    kinds: tuple[str, str]
    strong: bool
    edges: np.ndarray
    measured: float
    tenth: float


@dataclass(frozen=True, eq=False)
class Sum:
    """A latent's pre-activation, and its incoming edges' sum by each of `MODES`; less `b_enc`."""

    kind: str
    pre: float
    edges: np.ndarray


@dataclass(frozen=True)
class Total:
    """A latent's total effect by each of `WAYS`, and as measured."""

    task: str
    prompt: int
    verb: str
    kind: str
    effects: dict[str, float]
    measured: float


@click.command()
@click.option("--prompts", default=2, show_default=True, help="Held-out prompts a task: edges.")
@click.option("--prompts-total", default=6, show_default=True, help="The same: total effects.")
@click.option("--tasks", default=",".join(TASKS), help="Which tasks, separated by commas.")
@click.option("--threads", default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="A Markdown file for the tables.")
@click.option("--force", is_flag=True, help="Replace it if it exists.")
def main(
    prompts: int, prompts_total: int, tasks: str, threads: int, out: Path | None, force: bool
) -> None:
    """Set edges and total effects by every linearisation beside interventions."""
    torch.set_num_threads(threads)
    try:
        if out is not None:
            check_writable(out, overwrite=force)
        chosen = tasks.split(",")
        if unknown := set(chosen) - set(TASKS):
            raise UserError(f"no task {min(unknown)!r}; choose {', '.join(TASKS)}")
        started = time.perf_counter()
        found = {name: collect_all(name, chosen, prompts) for name in SITES}
        totals = list(collect_totals(chosen, prompts_total))
        minutes = (time.perf_counter() - started) / 60
        text = report(found, totals, minutes)
        click.echo(text)
        if out is not None:
            write_atomically(out, text, overwrite=force)
    except UserError as error:
        raise click.UsageError(str(error)) from None


def collect_all(name: str, tasks: Sequence[str], n: int) -> tuple[list[Pair], list[Sum]]:
    """The pairs and the sums of `n` prompts of each task, with one choice of sites."""
    model = load("tiny", device="cpu", sites=SITES[name])
    pairs: list[Pair] = []
    sums: list[Sum] = []
    for task in tqdm(tasks, desc=name, disable=None):
        for i, prompt in enumerate(TASKS[task].prompts("heldout", n)):
            more = collect(model, prompt, TASKS[task].metric(prompt), seed=i)
            pairs += more[0]
            sums += more[1]
    return pairs, sums


def collect(
    model: SplicedModel, prompt: Prompt, metric: Metric, seed: int
) -> tuple[list[Pair], list[Sum]]:
    """One prompt's."""
    found = [edges_by(model, prompt, metric, mode) for mode in MODES]
    nodes = found[0].nodes
    source_at = [i for i, node in enumerate(nodes) if isinstance(node, LatentNode | TokenNode)]
    target_at = [i for i, node in enumerate(nodes) if isinstance(node, LatentNode)]
    sources = [node for node in nodes if isinstance(node, LatentNode | TokenNode)]
    targets = [node for node in nodes if isinstance(node, LatentNode)]
    rows = [*target_at, len(nodes) - 1]
    edges = np.stack([a.edges[rows][:, source_at].toarray() for a in found], -1)
    held = Held.of(model, model.tokens(prompt))
    clean = Reference("clean", model.trace(prompt))
    values = [value_in(clean, node) for node in sources]
    measured = losses(held, metric, sources, values, targets)
    tenth = losses(held, metric, sources, [value / 10 for value in values], targets) * 10
    starts = np.array([kind_of(node) for node in sources])
    ends = np.array([*map(kind_of, targets), "metric"])
    pairs = [
        Pair((starts[s], ends[t]), strong, edges[t, s], measured[t, s], tenth[t, s])
        for t, s, strong in choose(edges, starts, ends, np.random.default_rng(seed))
    ]
    every = np.stack([np.asarray(a.edges[target_at].sum(axis=1)) for a in found], -1)
    sums = []
    for node, row in zip(targets, every, strict=True):
        dictionary = model.dictionaries[node.site]
        pre = held.reads[node.site][0, node.pos] @ dictionary.W_enc[:, node.latent]
        sums.append(Sum(node.site.kind, pre.item(), row - dictionary.b_enc[node.latent].item()))
    return pairs, sums


def edges_by(
    model: SplicedModel, prompt: Prompt, metric: Metric, mode: tuple[str, str, str]
) -> Attribution:
    """The same nodes whatever the mode: total effects choose them, with everything live."""
    rule, attention, norms = mode
    return attribute(
        model,
        prompt,
        metric,
        max_latents=N_LATENTS,
        mlp=rule,
        attention=attention,
        norms=norms,
    )


def kind_of(node: LatentNode | TokenNode) -> str:
    return node.site.kind if isinstance(node, LatentNode) else "token"


def choose(
    edges: np.ndarray, starts: np.ndarray, ends: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[int, int, bool]]:
    """Target and source of pairs that some mode joins, and whether they are strong.

    Args:
        edges: `[n_targets, n_sources, n_modes]`.
        starts: The kind of each source.
        ends: The kind of each target.
        rng: Draws the others.
    """
    for end in np.unique(ends):
        for start in np.unique(starts):
            t, s = (
                (edges != 0).any(-1) & (ends == end)[:, None] & (starts == start)[None]
            ).nonzero()
            if not len(t):
                continue
            sizes = np.abs(edges[t, s])
            means = sizes.mean(0)
            order = (-(sizes / np.where(means > 0, means, 1)).mean(-1)).argsort(kind="stable")
            others = rng.permutation(order[N_EACH:])[:N_EACH]
            for which, strong in ((order[:N_EACH], True), (others, False)):
                yield from ((int(t[i]), int(s[i]), strong) for i in which)


def losses(
    held: Held,
    metric: Metric,
    sources: Sequence[Source],
    values: Sequence[Tensor],
    targets: Sequence[LatentNode],
) -> np.ndarray:
    """What each target, and last the metric, loses when a source alone loses a value.

    `[n_targets + 1, n_sources]`.
    """
    score = bind(metric, held.model)
    rows = [shifts(held.model, s, -value) for s, value in zip(sources, values, strict=True)]
    lost = [held.losses(rows[i : i + BATCH], targets, score) for i in range(0, len(rows), BATCH)]
    return torch.cat(lost).T.double().numpy()


def collect_totals(tasks: Sequence[str], n: int) -> Iterator[Total]:
    """Attributed and measured total effects of `n` prompts of each task."""
    model = load("tiny", device="cpu")
    for task in tqdm(tasks, desc="total effects", disable=None):
        for i, prompt in enumerate(TASKS[task].prompts("heldout", n)):
            metric = TASKS[task].metric(prompt)
            for verb, make in REFERENCES.items():
                reference = make(model, prompt)
                found = {
                    way: total_effects(model, prompt, metric, reference=reference, freeze=freeze)
                    for way, freeze in WAYS.items()
                }
                nodes = sorted({n for e in found.values() for n in e.strongest(N_TOTAL)}, key=str)
                for row in ablate_each(model, prompt, metric, nodes, reference=reference):
                    effects = {way: e.of(row.node) for way, e in found.items()}
                    yield Total(task, i, verb, row.node.site.kind, effects, row.measured)


def report(
    found: dict[str, tuple[list[Pair], list[Sum]]], totals: list[Total], minutes: float
) -> str:
    """The Markdown tables."""
    lines = ["# Edges against interventions", "", f"{minutes:.1f} minutes."]
    for name, (pairs, _) in found.items():
        lines += ["", f"## Sites: {name}", "", *short_table(pairs)]
    lines += ["", "## Incoming edges against the pre-activation, less the encoder's bias", ""]
    lines += sums_table({name: sums for name, (_, sums) in found.items()})
    for verb in REFERENCES:
        lines += ["", f"## Total effects: {verb}", ""]
        lines += total_table([one for one in totals if one.verb == verb])
    name, (pairs, _) = next(iter(found.items()))
    return "\n".join([*lines, "", f"## Sites: {name}, in full", "", *full_table(pairs)]) + "\n"


def short_table(pairs: Iterable[Pair]) -> list[str]:
    """By kind of edge and linearisation: r and relative L1 of the strongest pairs."""
    lines = table_head("edge", "pairs", *COMPARED)
    for kinds, members in by_kinds(p for p in pairs if p.strong):
        edges, measured = stack(members)
        default = edges[:, MODES.index(COMPARED["default"])]
        cells = []
        for name, mode in COMPARED.items():
            column = edges[:, MODES.index(mode)]
            r, _, _, apart = agreement(column, measured)
            same = name != "default" and alike(column, default)
            cells.append("=" if same else f"{r:.2f}, {show(apart)}")
        lines.append(table_row(" → ".join(kinds), len(members), *cells))
    return lines


def full_table(pairs: Iterable[Pair]) -> list[str]:
    """Every measure by kind of edge and linearisation; modes that agree on a kind share a row."""
    lines = table_head(
        "edge, linearisation", "r", "slope", "sign", "L1", "r, others", "L1, others", "L1, a tenth"
    )
    for kinds, members in by_kinds(pairs):
        strong = [p for p in members if p.strong]
        others = [p for p in members if not p.strong]
        edges, measured = stack(strong)
        tenth = np.array([p.tenth for p in strong])
        rest, rest_measured = stack(others) if others else (edges[:0], measured[:0])
        for name, mode in distinct(np.concatenate([edges, rest])):
            r, _, _, apart = agreement(rest[:, mode], rest_measured)
            near = agreement(edges[:, mode], tenth)[3]
            values = (*agreement(edges[:, mode], measured), r, apart, near)
            lines.append(table_row(f"{' → '.join(kinds)}, {name}", *map(show, values)))
    return lines


def sums_table(found: dict[str, list[Sum]]) -> list[str]:
    """Slope of the edges' sum on the pre-activation, and relative L1, by sites and target."""
    lines = table_head("sites: target", "latents", *COMPARED)
    for name, sums in found.items():
        for kind, members in group(sums, lambda one: one.kind).items():
            edges = np.stack([one.edges for one in members])
            pre = np.array([one.pre for one in members])
            modes = [MODES.index(mode) for mode in COMPARED.values()]
            slopes = pre @ edges[:, modes] / (pre @ pre)
            apart = [agreement(edges[:, mode], pre)[3] for mode in modes]
            cells = [f"{slope:.2f}, {l1:.1g}" for slope, l1 in zip(slopes, apart, strict=True)]
            lines.append(table_row(f"{name}: {kind}", len(members), *cells))
    return lines


def total_table(totals: list[Total]) -> list[str]:
    """Mean of r over prompts, and r over all latents together, for each way; relative L1 last."""
    lines = table_head("latents", *WAYS)
    groups = [*group(totals, lambda one: one.task).items(), ("all tasks", totals)]
    groups += sorted(group(totals, lambda one: f"at {one.kind}").items())
    for name, members in groups:
        prompts = group(members, lambda one: (one.task, one.prompt)).values()
        cells = []
        for way in WAYS:
            each = [of_way(some, way)[0] for some in prompts]
            mean = statistics.fmean(r for r in each if not isnan(r))
            cells.append(f"{mean:.3f}, {of_way(members, way)[0]:.3f}")
        lines.append(table_row(name, *cells))
    cells = [f"{of_way(totals, way)[3]:.3f}" for way in WAYS]
    return [*lines, table_row("all tasks, relative L1", *cells)]


def of_way(totals: list[Total], way: str) -> tuple[float, float, float, float]:
    measured = np.array([one.measured for one in totals])
    return agreement(np.array([one.effects[way] for one in totals]), measured)


def agreement(attributed: np.ndarray, measured: np.ndarray) -> tuple[float, float, float, float]:
    """Pearson's r, slope of measured on attributed through zero, signs alike, relative L1.

    Relative L1: `sum |attributed - measured| / sum |measured|`. NaN where there are no numbers.
    """
    if not len(measured):
        return float("nan"), float("nan"), float("nan"), float("nan")
    slope = (attributed * measured).sum() / np.square(attributed).sum()
    signs = (np.sign(attributed) == np.sign(measured)).mean()
    apart = np.abs(attributed - measured).sum() / np.abs(measured).sum()
    return pearson(attributed.tolist(), measured.tolist()), slope, signs, apart


def distinct(edges: np.ndarray) -> Iterator[tuple[str, int]]:
    """Modes that differ on `edges [n, n_modes]`: what they have in common, and one of them."""
    left = list(range(len(MODES)))
    while left:
        same = [m for m in left if alike(edges[:, m], edges[:, left[0]])]
        words = [{MODES[m][i] for m in same} for i in range(3)]
        parts = ("{}", "attention {}", "norms {}")
        shared = [p.format(*word) for p, word in zip(parts, words, strict=True) if len(word) == 1]
        yield ", ".join(shared) or "any", left[0]
        left = [m for m in left if m not in same]


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one - other).max() <= 1e-4 * np.abs(other).max())


def stack(pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """Edges `[n, n_modes]` and what was measured `[n]`."""
    return np.stack([p.edges for p in pairs]), np.array([p.measured for p in pairs])


def by_kinds(pairs: Iterable[Pair]) -> list[tuple[tuple[str, str], list[Pair]]]:
    """The pairs of each kind of edge, in the order of the forward pass."""
    groups = group(pairs, lambda pair: pair.kinds)
    return sorted(groups.items(), key=lambda item: [KINDS.index(kind) for kind in item[0]])


def group(items: Iterable, key: Callable) -> dict:
    """Items by `key`, in the order in which keys first appear."""
    groups = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)


def show(value: float) -> str:
    """Two digits; nothing for NaN. Beyond 100 the divisor is zero but for rounding."""
    return "" if isnan(value) else f"{value:.2f}" if abs(value) < 100 else "> 100"


def table_head(first: str, *columns: str) -> list[str]:
    return [table_row(first, *columns), "| --- |" + " ---: |" * len(columns)]


def table_row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
