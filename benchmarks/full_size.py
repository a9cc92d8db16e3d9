"""Gemma 2 at its true size with a dictionary at every site: time and memory of each step.

Weights are random (bfloat16), dictionaries 16k wide with thresholds set so that some 85 latents are
active at a token, all on disk in the true layout. They are made once, below --folder, and kept;
a build that was interrupted continues where it was.

\b
    python benchmarks/full_size.py build     # the 2B model takes 5 GB, its 78 dictionaries 23 GB
    python benchmarks/full_size.py measure   # makes 11 GB of mapped copies on its first run

Multiples are of a bare forward and backward pass of the same Hugging Face model in the same run.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from bare import bare
from random_gemma import draw_and_save, gemma_config, prompt_ids
from tqdm import tqdm

from circuits.sites import KINDS, Site

ROOT = Path.home() / ".cache" / "gemma-circuits-full-size"
REPOSITORY = {"attn": "scope-att", "mlp": "scope-mlp", "resid": "scope-res"}
D_SAE, WIDTH, ACTIVE = 16384, "16k", 85
N_TOKENS = 32


@click.group(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    pass


@main.command()
@click.option("--size", default="gemma-2-2b", show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=ROOT, show_default=True)
def build(size: str, folder: Path) -> None:
    """Make the model and its dictionaries."""
    folder = folder / size
    model_folder = folder / "model"
    if not (model_folder / "tokenizer.json").exists():
        build_model(size, model_folder)
    build_dictionaries(model_folder, folder / "dictionaries")


def build_model(size: str, folder: Path) -> None:
    """A Hugging Face folder of the true shape."""
    from transformers import AutoModelForCausalLM

    from circuits.loading.shapes import shapes

    shape = shapes()[size]
    config = gemma_config(
        shape,
        vocab_size=shape.vocab,
        sliding_window=shape.sliding_window,
        attn_logit_softcapping=shape.attn_softcap,
        final_logit_softcapping=shape.final_softcap,
        query_pre_attn_scalar=shape.query_pre_attn_scalar,
    )
    torch.manual_seed(0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.to_empty(device="cpu")
    model.tie_weights()
    model.model.rotary_emb.__init__(config)  # its buffers are computed, not drawn
    draw_and_save(model, folder)


def build_dictionaries(model_folder: Path, folder: Path) -> None:
    """Tied random dictionaries whose thresholds let `ACTIVE` latents through on the model."""
    from circuits.dictionaries import Dictionary
    from circuits.formats.npz import save_npz
    from circuits.loading.models import load_gemma

    activations = capture(load_gemma(str(model_folder), device="cpu"))
    for number, (site, x) in enumerate(tqdm(sorted(activations.items()), "dictionaries")):
        at = folder / REPOSITORY[site.kind] / f"layer_{site.layer}" / f"width_{WIDTH}"
        path = at / f"average_l0_{ACTIVE}" / "params.npz"
        if path.exists():
            continue
        generator = torch.Generator().manual_seed(number)
        W_enc = torch.randn(x.shape[1], D_SAE, generator=generator) * x.shape[1] ** -0.5
        pre = x @ W_enc
        threshold = pre.flatten().kthvalue(round(pre.numel() * (1 - ACTIVE / D_SAE))).values
        save_npz(
            Dictionary(
                W_enc=W_enc,
                b_enc=torch.randn(D_SAE, generator=generator) * 0.01 * threshold,
                threshold=threshold * (1 + 0.01 * torch.randn(D_SAE, generator=generator)),
                W_dec=W_enc.T * 0.3,
                b_dec=torch.randn(x.shape[1], generator=generator) * 0.01 * x.std(),
            ),
            path,
        )


def capture(bridge: Any) -> dict[Site, torch.Tensor]:
    """What every site has on a few random prompts, `[tokens, d]`, float32, without BOS."""
    prompts = [prompt_ids(bridge.cfg.d_vocab, N_TOKENS, seed) for seed in range(1, 9)]
    kept: dict[Site, torch.Tensor] = {}
    from circuits.families import family_of

    family = family_of(bridge)
    sites = [Site(layer, kind) for layer in range(bridge.cfg.n_layers) for kind in KINDS]

    def keep(site: Site) -> Callable[..., None]:
        def hook(x: torch.Tensor, hook: Any) -> None:
            kept[site] = x[:, 1:].flatten(2).flatten(0, 1).float()

        return hook

    hooks = [(family.hook_point(site), keep(site)) for site in sites]
    with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
        bridge(torch.tensor(prompts))
    return kept


@main.command()
@click.option("--size", default="gemma-2-2b", show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=ROOT, show_default=True)
@click.option("--memory", default="20GB", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--tokens", default=N_TOKENS, show_default=True, help="Of the prompt.")
@click.option("--latents", default=2000, show_default=True, help="Of the graph.")
@click.option("--ablations", default=256, show_default=True, help="Latents zeroed one by one.")
def measure(
    size: str,
    folder: Path,
    memory: str,
    device: str,
    repeats: int,
    tokens: int,
    latents: int,
    ablations: int,
) -> None:
    """Time and memory of loading, total effects, a graph and ablations."""
    own = folder / size
    os.environ["GEMMA_CIRCUITS_CACHE"] = str(own / "copies")
    from circuits import load

    imported = time.perf_counter()
    model = load(
        str(own / "model"), dictionaries=own / "dictionaries", device=device, memory=memory
    )
    loaded = time.perf_counter()
    where = torch.cuda.get_device_name() if device != "cpu" else cpu_name()
    click.echo(f"{model!r}\n{model.dictionaries!r}, memory={memory}")
    click.echo(f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    click.echo(f"load {loaded - imported:.1f} s")
    show_memory("after loading", device)
    text = " ".join(f"w{i}" for i in prompt_ids(model.d_vocab, tokens, seed=0)[1:])
    steps = steps_of(model, text, latents)
    needed, some = ablation_steps(model, text, ablations)
    steps |= some
    times: dict[str, list[float]] = {label: [] for label in steps}
    for turn in range(repeats + 1):
        for label, step in steps.items():
            begun = time.perf_counter()
            step()
            if device != "cpu":
                torch.cuda.synchronize()
            times[label].append(time.perf_counter() - begun)
            if turn == 0:
                show_memory(f"after the first {label} ({times[label][0]:.1f} s)", device)
    base = statistics.median(times["bare forward + backward"][1:])
    click.echo("\n| step | first | median s | multiple of bare |\n| --- | --- | --- | --- |")
    for label, taken in times.items():
        median = statistics.median(taken[1:])
        click.echo(f"| {label} | {taken[0]:.2f} | {median:.2f} | {median / base:.2f} |")
    ours, rows = (statistics.median(times[label][1:]) for label in some)
    click.echo(
        f"\nAblations needed {needed:.2f} of a pass; their throughput per layer and position "
        f"needed is {needed * rows / ours:.2f} of the bare forward's."
    )


def steps_of(model: Any, text: str, latents: int) -> dict[str, Callable[[], object]]:
    from attribution import attribute, logit_diff, total_effects

    ids, metric = model.tokens(text), logit_diff("w1000", "w2000")
    right, wrong = model.token_id("w1000"), model.token_id("w2000")

    def effects() -> None:
        sites = total_effects(model, text, metric).sites.values()
        n_active = sum(len(site.pos) for site in sites)
        l0 = n_active / len(sites) / (ids.shape[1] - 1)
        tqdm.write(f"{n_active} active latents, {l0:.0f} a token and site", file=sys.stderr)

    def graph() -> None:
        made = attribute(model, text, metric, max_latents=latents)
        tqdm.write(repr(made), file=sys.stderr)

    return {
        "bare forward + backward": lambda: bare(model, ids, right, wrong),
        "total effects of every latent": effects,
        f"graph of {latents} latents": graph,
    }


def ablation_steps(model: Any, text: str, n: int) -> tuple[float, dict[str, Callable[[], object]]]:
    """The share of a pass that `n` latents, drawn at random, need; them, and as many bare rows."""
    from ablations import bare_rows, share

    from attribution import logit_diff
    from attribution.metrics import bind
    from circuits import LatentNode, zero
    from experiments.measure import measure as measured

    ids, score = model.tokens(text), bind(logit_diff("w1000", "w2000"), model)
    generator = torch.Generator().manual_seed(0)
    active = {
        site: (here.pos.tolist(), here.latent.tolist())
        for site, here in model.trace(ids).sites.items()
    }
    sites = [model.sites[i] for i in torch.randint(len(active), (n,), generator=generator).tolist()]
    nodes = []
    for site, draw in zip(sites, torch.rand(n, generator=generator).tolist(), strict=True):
        pos, latent = active[site]
        chosen = int(draw * len(pos))
        nodes.append(LatentNode(site, latent[chosen], pos[chosen]))
    rows = [[zero(node)] for node in nodes]
    return statistics.mean(share(model, ids, node, True) for node in nodes), {
        f"ablation of {n} latents": lambda: measured(model, ids, score, rows),
        f"bare forward, {n} rows": lambda: bare_rows(model, ids, n),
    }


def show_memory(when: str, device: str) -> None:
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    now = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    parts = {k: int(now[k].split()[0]) / 1e6 for k in ("VmRSS", "RssAnon", "RssFile")}
    click.echo(
        f"{when}: resident {parts['VmRSS']:.1f} GB ({parts['RssAnon']:.1f} own, "
        f"{parts['RssFile']:.1f} mapped from files), peak {kilobytes / 1e6:.1f} GB"
    )
    if device != "cpu":
        click.echo(f"  on the GPU: peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
