"""What attribution costs, as a multiple of the bare model's forward and backward in the same run.

python benchmarks/cost.py [--model tiny] [--repeats 20]
"""

import platform
import statistics
import time
from collections.abc import Callable

import click
import torch
from bare import bare

from attribution import attribute, integrated_effects, logit_diff, total_effects
from circuits import Prompt, SplicedModel, load
from experiments import ablate_each

PROMPT = Prompt(
    "when Mary and John went to the store , John gave a drink to", target="Mary", foil="John"
)


def seconds(step: Callable[[], object], model: SplicedModel) -> float:
    start = time.perf_counter()
    step()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@click.command(help=__doc__)
@click.option("--model", "name", default="tiny", show_default=True)
@click.option("--repeats", default=20, show_default=True)
def main(name: str, repeats: int) -> None:
    model = load(name)
    metric, ids = logit_diff(PROMPT), model.tokens(PROMPT)
    right, wrong = model.token_id("Mary"), model.token_id("John")
    nodes = total_effects(model, PROMPT, metric).strongest(64)
    steps: dict[str, Callable[[], object]] = {
        "bare forward + backward": lambda: bare(model, ids, right, wrong),
        "spliced forward": lambda: model(PROMPT),
        "total effects of every latent": lambda: total_effects(model, PROMPT, metric),
        "joint integrated gradients, n=10": lambda: integrated_effects(model, PROMPT, metric),
        "graph of 100 latents": lambda: attribute(model, PROMPT, metric, max_latents=100),
        "graph of 400 latents": lambda: attribute(model, PROMPT, metric, max_latents=400),
        "ablation of 64 latents": lambda: ablate_each(model, PROMPT, metric, nodes),
    }
    times: dict[str, list[float]] = {label: [] for label in steps}
    for _ in range(repeats + 1):  # in turn, so that a change of the machine's speed hits all alike
        for label, step in steps.items():
            times[label].append(seconds(step, model))
    base = statistics.median(times["bare forward + backward"][1:])
    where = torch.cuda.get_device_name() if model.device.type == "cuda" else platform.processor()
    click.echo(f"{model!r} on {where or platform.machine()}, {torch.get_num_threads()} threads\n")
    click.echo("| step | median ms | multiple of bare forward + backward |\n| --- | --- | --- |")
    for label, taken in times.items():
        median = statistics.median(taken[1:])  # the first round warms up
        click.echo(f"| {label} | {median * 1e3:.1f} | {median / base:.2f} |")


if __name__ == "__main__":
    main()
