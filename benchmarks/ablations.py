"""What a thousand ablations cost, beside a plain loop of hooked passes and the bare model.

    python benchmarks/ablations.py [--latents 1000]

On the bundled model, patching, downstream recompute, alternating in one run:

- *loop*: one pass for each latent, with a plain hook on the Hugging Face model (a sample of them);
- *measure*: `experiments.measure`, batches along the batch dimension;
- *bare*: the Hugging Face model's own passes of as many rows, in batches of the same size.

An ablation needs the layers from its own up, and the positions from its own on; `needed` is that
share of a whole pass. Whole passes are run here, so that the throughput per layer and position
really needed is that share of the throughput of whole passes.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import torch

from attribution.metrics import bind
from circuits import LatentNode, Reference, SplicedModel, corrupted_reference, load, set_to
from experiments.measure import measure
from experiments.rows import ROWS
from experiments.tasks import TASKS


@click.command()
@click.option("--latents", "n", default=1000, show_default=True, help="How many are ablated.")
@click.option("--sample", default=60, show_default=True, help="Of them in the loop.")
@click.option("--repeats", default=3, show_default=True, help="The median is shown.")
def main(n: int, sample: int, repeats: int) -> None:
    """Print one Markdown table."""
    model, task = load("tiny"), TASKS["ioi"]
    prompt = task.prompts("heldout", n=1)[0]
    ids, score = model.tokens(prompt), bind(task.metric(prompt), model)
    values, clean = corrupted_reference(model, prompt), Reference("clean", model.trace(prompt))
    nodes = [
        LatentNode(site, latent, pos)
        for site, here in clean.trace.sites.items()
        for latent, pos in zip(here.latent.tolist(), here.pos.tolist(), strict=True)
    ]
    generator = torch.Generator().manual_seed(0)
    chosen = [nodes[i] for i in torch.randperm(len(nodes), generator=generator)[:n].tolist()]
    rows = [[set_to(node, values.value(node))] for node in chosen]
    few = chosen[:sample]

    def loop() -> list[float]:
        return [by_hook(model, ids, score, node, clean, values) for node in few]

    times = {"loop": [], "measure": [], "bare": []}
    for _ in range(repeats):
        times["loop"].append(timed(loop) * len(chosen) / len(few))
        times["measure"].append(timed(lambda: measure(model, ids, score, rows)))
        times["bare"].append(timed(lambda: bare(model, ids, len(chosen))))
    looped, batched = loop(), measure(model, ids, score, rows[: len(few)])[1]
    apart = (torch.tensor(looped) - batched).abs().max().item()
    n_pos, n_layers = ids.shape[1], model.n_layers
    needed = statistics.mean(
        (n_layers - node.site.layer) / n_layers * (n_pos - node.pos) / n_pos for node in chosen
    )
    loop_time, ours, bare_time = (statistics.median(times[name]) for name in times)
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(f"{len(chosen)} latents, {n_pos} tokens; loop and measure differ by {apart:.1e}\n")
    print("| | seconds | times the bare model |\n| --- | ---: | ---: |")
    for name, value in (("loop", loop_time), ("measure", ours), ("bare", bare_time)):
        print(f"| {name} | {value:.2f} | {value / bare_time:.2f} |")
    print(f"\nmeasure is {loop_time / ours:.1f} times as fast as the loop.")
    print(f"Throughput of whole passes: {bare_time / ours:.2f} of the bare model's; needed were")
    print(f"{needed:.2f} of a pass, per layer and position needed {needed * bare_time / ours:.2f}.")


def timed(run: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@torch.no_grad()
def bare(model: SplicedModel, ids: torch.Tensor, n: int) -> None:
    """As many rows through the Hugging Face model, the last position's logits."""
    for start in range(0, n, ROWS):
        batch = ids.expand(min(ROWS, n - start), -1)
        model.bridge.original_model(batch, use_cache=False, logits_to_keep=1)


@torch.no_grad()
def by_hook(
    model: SplicedModel,
    ids: torch.Tensor,
    score: Callable[[torch.Tensor], torch.Tensor],
    node: LatentNode,
    clean: Reference,
    values: Reference,
) -> float:
    """One ablation with one hook: what the site writes moves along the latent's decoder row."""
    row = model.dictionaries[node.site].W_dec[node.latent]
    change = (values.value(node) - clean.value(node)) * row

    def move(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, node.pos] += change
        return x

    huggingface: Any = model.bridge.original_model
    layer = huggingface.model.layers[node.site.layer]
    if node.site.kind == "attn":
        handle = layer.self_attn.o_proj.register_forward_pre_hook(
            lambda module, args: (move(args[0]), *args[1:])
        )
    else:
        module = layer.post_feedforward_layernorm if node.site.kind == "mlp" else layer
        handle = module.register_forward_hook(
            lambda module, args, out: (
                (move(out[0]), *out[1:]) if isinstance(out, tuple) else move(out)
            )
        )
    with handle:
        logits = huggingface(ids, use_cache=False).logits
    return score(logits).item()


if __name__ == "__main__":
    main()
