"""What a thousand ablations cost, beside a plain loop of hooked passes and the bare model.

\b
    python benchmarks/ablations.py [--latents 1000] [--model tiny] [--model random]

Zeroing (random model: d_model 512, 8 layers, 32 tokens) or patching (bundled model) single latents,
downstream recompute, alternating in one run:

\b
- *loop*: one pass for each latent, with a plain hook on the Hugging Face model (a sample of them);
- *measure*: `experiments.measure`, batches along the batch dimension;
- *bare*: the Hugging Face model's own passes of as many rows, in batches of `ROWS`.

An ablation needs the layers from its own up, and the positions from its own on: that share of a
whole pass is `needed`, and `needed * bare / measure` the throughput per layer and position needed,
as a multiple of the bare model's. Strictly, the layer of an `mlp` or `resid` latent itself is not
needed; that share is shown too.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from edges import Case, build

from attribution import logit_diff
from attribution.metrics import bind
from circuits import (
    KINDS,
    LatentNode,
    Reference,
    SplicedModel,
    corrupted_reference,
    load,
    set_to,
    zero_reference,
)
from experiments.measure import measure
from experiments.rows import ROWS
from experiments.tasks import TASKS

MODELS = ("tiny", "random")
RANDOM = Case(
    n_layers=8, d_model=512, n_heads=8, n_kv_heads=4, head_dim=64, d_mlp=2048, d_sae=4096,
    tokens=32, on=20 / 4096, kinds=KINDS, latents=None,
)  # fmt: skip


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--latents", "n", default=1000, show_default=True, help="How many are ablated.")
@click.option("--sample", default=60, show_default=True, help="Of them in the loop.")
@click.option("--repeats", default=5, show_default=True, help="The median is shown.")
@click.option("--model", "names", multiple=True, type=click.Choice(MODELS))
def main(n: int, sample: int, repeats: int, names: tuple[str, ...]) -> None:
    click.echo(
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, load "
        f"before {os.getloadavg()[0]:.1f}, torch {torch.__version__}"
    )
    for name in names or MODELS:
        compare(name, n, sample, repeats)


def compare(name: str, n: int, sample: int, repeats: int) -> None:
    """Print a Markdown table of one model."""
    model, ids, score, values = bundled() if name == "tiny" else random()
    clean = Reference("clean", model.trace(ids))
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

    times: dict[str, list[float]] = {"loop": [], "measure": [], "bare": []}
    for _ in range(repeats):
        times["loop"].append(timed(loop) * len(chosen) / len(few))
        times["measure"].append(timed(lambda: measure(model, ids, score, rows)))
        times["bare"].append(timed(lambda: bare_rows(model, ids, len(chosen))))
    measured = measure(model, ids, score, rows[: len(few)])[1]
    apart = (torch.tensor(loop()) - measured).abs().max().item()
    loop_time, ours, bare_time = (statistics.median(times[one]) for one in times)
    needed, strictly = (
        statistics.mean(share(model, ids, node, own) for node in chosen) for own in (True, False)
    )
    print(
        f"\n{model.name}, {len(chosen)} latents, {ids.shape[1]} tokens; loop and measure differ "
        f"by {apart:.1e}\n\n| | seconds | times the bare model |\n| --- | ---: | ---: |"
    )
    for label, value in (("loop", loop_time), ("measure", ours), ("bare", bare_time)):
        print(f"| {label} | {value:.2f} | {value / bare_time:.2f} |")
    print(
        f"\nmeasure is {loop_time / ours:.1f} times as fast as the loop. Needed were {needed:.2f} "
        f"of a pass (strictly {strictly:.2f});\nthroughput per layer and position needed: "
        f"{needed * bare_time / ours:.2f} of the bare model's (strictly "
        f"{strictly * bare_time / ours:.2f})."
    )


def bundled() -> tuple[SplicedModel, torch.Tensor, Any, Reference]:
    """The bundled model on indirect objects, patched from the corrupted prompt."""
    model, task = load("tiny"), TASKS["ioi"]
    prompt = task.prompts("heldout", n=1)[0]
    score = bind(task.metric(prompt), model)
    return model, model.tokens(prompt), score, corrupted_reference(model, prompt)


def random() -> tuple[SplicedModel, torch.Tensor, Any, Reference]:
    """A larger random model, its latents zeroed."""
    with tempfile.TemporaryDirectory() as folder:
        model = build(RANDOM, Path(folder))
    text = " ".join(f"w{9 + 7 * i}" for i in range(RANDOM.tokens - 1))
    score = bind(logit_diff("w7", "w8"), model)
    return model, model.tokens(text), score, zero_reference(model, text)


def share(model: SplicedModel, ids: torch.Tensor, node: LatentNode, own: bool) -> float:
    """Of a whole pass: layers from the latent's up, with its own or not, and positions from its.

    An `attn` latent needs its own layer in any case.
    """
    n_pos, n_layers = ids.shape[1], model.n_layers
    layers = n_layers - node.site.layer - (not own and node.site.kind != "attn")
    return layers / n_layers * (n_pos - node.pos) / n_pos


def timed(run: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@torch.no_grad()
def bare_rows(model: SplicedModel, ids: torch.Tensor, n: int) -> None:
    """As many rows through the Hugging Face model, the last position's logits.

    With `logits_to_keep=1` it multiplies a slice of the batch, which torch does row by row on a
    CPU: that would make it many times slower.
    """
    huggingface: Any = model.bridge.original_model
    for start in range(0, n, ROWS):
        batch = ids.expand(min(ROWS, n - start), -1)
        hidden = huggingface.model(batch, use_cache=False).last_hidden_state
        huggingface.lm_head(hidden[:, -1].contiguous())


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
