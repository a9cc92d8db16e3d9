"""How well attributed effects agree with measured ones, on the bundled model's tasks.

1. For each held-out prompt: the 50 latents with the largest attributed effect, ablated one by one.
2. Pearson's r of attributed and measured, prompt by prompt and over all prompts of a task together.
3. For zeroing and for patching from the corrupted prompt, by three estimators: gradient x
   activation, joint integrated gradients (which estimate what a whole site does, not one latent)
   and per-latent integrated gradients.
4. The same with every latent moved only a tenth of the way: what gradient x activation gets wrong
   on the whole way and right there is curvature.
5. Where the agreement is lost: the share of the squared differences by kind of site, layer,
   position and size of the effect, for gradient x activation.

All estimators are judged on the same latents: those that gradient x activation ranks first.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from attribution import Metric, integrated_each, integrated_effects, total_effects
from circuits import (
    Prompt,
    Reference,
    SiteTrace,
    SplicedModel,
    Trace,
    UserError,
    corrupted_reference,
    load,
    zero_reference,
)
from circuits.files import check_writable, write_atomically
from experiments.ablation import ablate_each, pearson
from experiments.tasks import TASKS, Task

STRONGEST = 50
REFERENCES = {"corrupted": corrupted_reference, "zero": zero_reference}
GRADIENT, JOINT, EACH = (
    "gradient x activation",
    "joint integrated gradients",
    "per-latent integrated gradients",
)


@dataclass(frozen=True)
class Sample:
    """One latent of one prompt.

    Attributes:
        last: Whether it is at the answer's position.
        share: Its attributed effect as a share of the metric, in size.
        estimates: Attributed effect by estimator; per-latent integrated gradients may be missing.
        measured: What the metric lost.
        tenth: Ten times what it lost when the latent went a tenth of the way.
    """

    task: str
    prompt: int
    reference: str
    layer: int
    kind: str
    last: bool
    share: float
    estimates: dict[str, float]
    measured: float
    tenth: float


@click.command()
@click.option("--prompts", default=50, show_default=True, help="Held-out prompts of each task.")
@click.option(
    "--prompts-each", default=10, show_default=True,
    help="Of these, how many with per-latent integrated gradients (10 passes a latent).",
)  # fmt: skip
@click.option("--tasks", default=",".join(TASKS), help="Which tasks, separated by commas.")
@click.option("--downstream", default="recompute", show_default=True, help="Or freeze.")
@click.option("--threads", default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="A Markdown file for the tables.")
@click.option("--force", is_flag=True, help="Replace it if it exists.")
def main(
    prompts: int,
    prompts_each: int,
    tasks: str,
    downstream: str,
    threads: int,
    out: Path | None,
    force: bool,
) -> None:
    """Correlate attributed with measured effects over the tasks of the bundled model."""
    torch.set_num_threads(threads)
    try:
        if out is not None:
            check_writable(out, overwrite=force)
        chosen = [_task(name) for name in tasks.split(",")]
        model = load("tiny", device="cpu")
        started = time.perf_counter()
        samples: list[Sample] = []
        for task in tqdm(chosen, desc="tasks", disable=None):
            samples += collect(model, task, prompts, prompts_each, downstream)
        minutes = (time.perf_counter() - started) / 60
        text = report(samples, prompts, prompts_each, downstream, minutes)
        click.echo(text)
        if out is not None:
            write_atomically(out, text, overwrite=force)
    except UserError as error:
        raise click.UsageError(str(error)) from None


def collect(model: SplicedModel, task: Task, n: int, n_each: int, downstream: str) -> list[Sample]:
    """All latents of `n` prompts of one task, with both references."""
    samples = []
    for i, prompt in enumerate(tqdm(task.prompts("heldout", n), desc=task.name, disable=None)):
        for name in REFERENCES:
            samples += collect_prompt(
                model, task, i, prompt, name, downstream=downstream, each=i < n_each
            )
    return samples


def collect_prompt(
    model: SplicedModel,
    task: Task,
    i: int,
    prompt: Prompt,
    name: str,
    *,
    downstream: str,
    each: bool,
) -> list[Sample]:
    """The strongest latents of one prompt: every estimate, and the measurement."""
    metric: Metric = task.metric(prompt)
    reference = REFERENCES[name](model, prompt)
    how: dict[str, Any] = {"reference": reference, "downstream": downstream}
    nodes = total_effects(model, prompt, metric, **how).strongest(STRONGEST)
    rows = ablate_each(model, prompt, metric, nodes, **how)
    near = on_the_way(model, prompt, reference, 0.1)
    small = ablate_each(model, prompt, metric, nodes, reference=near, downstream=downstream)
    joint = integrated_effects(model, prompt, metric, **how)
    per_latent = integrated_each(model, prompt, metric, nodes, **how).tolist() if each else []
    end = model.tokens(prompt).shape[1] - 1
    samples = []
    for j, row in enumerate(rows):
        estimates = {GRADIENT: row.attributed, JOINT: joint.of(row.node)}
        if each:
            estimates[EACH] = per_latent[j]
        sample = Sample(
            task=task.name,
            prompt=i,
            reference=name,
            layer=row.node.site.layer,
            kind=row.node.site.kind,
            last=row.node.pos == end,
            share=abs(row.attributed / rows.clean),
            estimates=estimates,
            measured=row.measured,
            tenth=10 * small[j].measured,
        )
        samples.append(sample)
    return samples


def on_the_way(
    model: SplicedModel, prompt: Prompt, reference: Reference, share: float
) -> Reference:
    """The reference that lies `share` of the way from the prompt's own values to `reference`."""
    clean = model.trace(prompt)
    sites = {}
    for site, trace in clean.sites.items():
        acts = torch.lerp(trace.dense(), reference.acts(site), share)
        error = torch.lerp(trace.error, reference.error(site), share)
        sites[site] = SiteTrace.from_dense(acts, error)
    embedding = torch.lerp(clean.embedding, reference.trace.embedding, share)
    return Reference(f"{share:.0%} of {reference.name}", Trace(clean.ids, embedding, sites))


def report(
    samples: list[Sample], prompts: int, prompts_each: int, downstream: str, minutes: float
) -> str:
    """The Markdown tables."""
    lines = [
        "# Attributed against measured effects",
        "",
        f"Pearson's r over the {STRONGEST} strongest latents of a prompt, downstream {downstream}: "
        f"mean over up to {prompts} held-out prompts of a task, then over all its latents "
        f"together. Per-latent integrated gradients on the first {prompts_each} prompts only. "
        "Joint integrated gradients estimate what a whole site does and are shown for contrast. "
        "A tenth of the way: gradient x activation against ten times what moving each latent a "
        "tenth of the way does. "
        f"{minutes:.0f} minutes.",
    ]
    for name in REFERENCES:
        here = [s for s in samples if s.reference == name]
        verb = "Patching from the corrupted prompt" if name == "corrupted" else "Zeroing"
        lines += ["", f"## {verb}", "", *accuracy_table(here)]
        lines += ["", "Where gradient x activation and measurement differ:", "", *loss_table(here)]
    return "\n".join(lines) + "\n"


def accuracy_table(samples: list[Sample]) -> list[str]:
    """A row a task: mean over prompts and pooled r, for each estimator; then all tasks."""
    estimators = (GRADIENT, JOINT, EACH)
    head = ["task", *estimators, "a tenth of the way", "worst prompt, gradient x activation"]
    lines = ["| " + " | ".join(head) + " |", "| --- " + "| ---: " * (len(head) - 1) + "|"]
    by_task = group(samples, lambda s: s.task)
    for task, members in [*by_task.items(), ("all", samples)]:
        cells = []
        for estimator in estimators:
            having = [s for s in members if estimator in s.estimates]
            each = correlations(having, estimator)
            cells.append(f"{mean(each):.3f}, {correlation(having, estimator):.3f}")
        near = [replace(s, measured=s.tenth) for s in members]
        cells.append(f"{mean(correlations(near, GRADIENT)):.3f}, {correlation(near, GRADIENT):.3f}")
        worst = min(correlations(members, GRADIENT), default=float("nan"))
        lines.append(f"| {task} | " + " | ".join(cells) + f" | {worst:.3f} |")
    return lines


def loss_table(samples: list[Sample]) -> list[str]:
    """By kind, layer, position and size: r, slope, and share of all squared differences."""
    total = sum((s.estimates[GRADIENT] - s.measured) ** 2 for s in samples) or 1.0
    lines = [
        "| latents | share of latents | pooled r | slope | share of squared difference |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    groups = [
        *sorted(group(samples, lambda s: f"at {s.kind}").items()),
        *sorted(group(samples, lambda s: f"in layer {s.layer}").items()),
        *group(samples, lambda s: "at the answer" if s.last else "at earlier positions").items(),
        *sorted(group(samples, size).items()),
    ]
    for name, members in groups:
        loss = sum((s.estimates[GRADIENT] - s.measured) ** 2 for s in members)
        lines.append(
            f"| {name} | {len(members) / len(samples):.0%} | {correlation(members, GRADIENT):.3f} "
            f"| {slope(members):.2f} | {loss / total:.0%} |"
        )
    return lines


def size(sample: Sample) -> str:
    """Steps of the attributed effect as a share of the metric."""
    steps = ((0.03, "below 3 % of the metric"), (0.1, "from 3 to 10 %"), (0.3, "from 10 to 30 %"))
    for i, (limit, name) in enumerate(steps):
        if sample.share < limit:
            return f"effect {i + 1}: {name}"
    return f"effect {len(steps) + 1}: above 30 %"


def correlations(samples: Iterable[Sample], estimator: str) -> list[float]:
    """r of each prompt, where it is defined."""
    prompts = group(samples, lambda s: (s.task, s.prompt)).values()
    return [r for members in prompts if not isnan(r := correlation(members, estimator))]


def correlation(samples: Iterable[Sample], estimator: str) -> float:
    pairs = [(s.estimates[estimator], s.measured) for s in samples]
    return pearson([a for a, _ in pairs], [m for _, m in pairs])


def slope(samples: Iterable[Sample]) -> float:
    """Of measured on attributed, through zero; below 1 attribution promises too much."""
    pairs = [(s.estimates[GRADIENT], s.measured) for s in samples]
    size = sum(a * a for a, _ in pairs)
    return sum(a * m for a, m in pairs) / size if size else float("nan")


def group(samples: Iterable[Sample], key) -> dict:
    """Samples by `key`, in the order in which keys first appear."""
    groups = defaultdict(list)
    for sample in samples:
        groups[key(sample)].append(sample)
    return dict(groups)


def mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else float("nan")


def _task(name: str) -> Task:
    if name not in TASKS:
        raise UserError(f"no task {name!r}; choose {', '.join(TASKS)}")
    return TASKS[name]


if __name__ == "__main__":
    main()
