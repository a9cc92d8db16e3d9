"""All edges of many latents, and of long prompts, beside the bare model's forward and backward.

\b
python benchmarks/edges.py                    # every case, some minutes
python benchmarks/edges.py --only 24k         # 24,000 latents at 12 sites
python benchmarks/edges.py --only 1024 --only 2300

Random weights. `24k`: 4 layers, d_model 256, autoencoders at all 12 sites, 24 tokens, every latent.
`1024` and `2300`: the bundled model's shape with a longer context, a window of 16 in every other
layer, autoencoders at all 12 sites and transcoders, 2,000 latents. Memory is the peak resident
above that with the model loaded (Linux); each case runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psutil
import torch
from bare import bare
from random_gemma import Shape, save_random_gemma

from attribution import attribute, logit_diff
from attribution.edges.direct import Stretches
from attribution.edges.local_pass import local_pass
from attribution.edges.node_table import NodeTable
from attribution.effects import total_effects
from attribution.metrics import bind
from circuits import KINDS, Dictionary, Site, SplicedModel, load_gemma, splice
from circuits.active import Active
from circuits.freeze import Freeze

VOCAB = 512
METRIC = logit_diff("w7", "w8")


@dataclass(frozen=True)
class Case(Shape):
    """A model, a prompt and how many latents become nodes (`None`: all)."""

    d_sae: int
    tokens: int
    on: float
    kinds: tuple[str, ...]
    latents: int | None


SMALL = {"n_layers": 4, "n_heads": 4, "n_kv_heads": 2}
BUNDLED: dict[str, Any] = SMALL | {
    "d_model": 128, "head_dim": 32, "d_mlp": 512, "d_sae": 1024, "on": 20 / 1024, "latents": 2000
}  # fmt: skip
CASES = {
    "24k": Case(
        **SMALL, d_model=256, head_dim=64, d_mlp=1024, d_sae=4096, tokens=24, on=83 / 4096,
        kinds=KINDS, latents=None,
    ),
    "1024": Case(**BUNDLED, tokens=1024, kinds=KINDS),
    "1024 transcoders": Case(**BUNDLED, tokens=1024, kinds=("transcoder",)),
    "2300": Case(**BUNDLED, tokens=2300, kinds=KINDS),
    "2300 transcoders": Case(**BUNDLED, tokens=2300, kinds=("transcoder",)),
}  # fmt: skip


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", multiple=True, type=click.Choice(list(CASES)), help="Repeatable.")
@click.option("--repeats", default=5, show_default=True)
def main(only: tuple[str, ...], repeats: int) -> None:
    click.echo(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, load before {os.getloadavg()[0]:.1f}, "
        f"torch {torch.__version__}\n\n"
        "| case | latents | edges | bare forward + backward, s | edges alone, s | x bare | "
        "attribute(), s | peak GB |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for name in only or CASES:
        command = [sys.executable, __file__, "--measure", name, str(repeats)]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        row = json.loads(out.splitlines()[-1])
        click.echo(
            f"| {name} | {row['latents']:,} | {row['edges']:,} | {row['bare']:.3f} | "
            f"{row['alone']:.2f} | {row['alone'] / row['bare']:.1f} | {row['whole']:.2f} | "
            f"{row['bytes'] / 1e9:.2f} |"
        )


def measure(case: Case, repeats: int) -> dict[str, float]:
    """Medians of seconds, and the peak of memory."""
    with tempfile.TemporaryDirectory() as folder:
        model = build(case, Path(folder))
    text = " ".join(f"w{i}" for i in torch.randint(9, VOCAB, (case.tokens - 1,)).tolist())
    ids = model.tokens(text)
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    taken: dict[str, list[float]] = {"bare": [], "alone": [], "whole": []}
    latents = edges = 0
    for _ in range(repeats):
        taken["bare"].append(seconds(lambda: bare(model, ids, 7, 8)))
        start = time.perf_counter()
        made = attribute(model, text, METRIC, max_latents=case.latents)
        taken["whole"].append(time.perf_counter() - start)
        latents, edges = made.provenance["settings"]["latents_chosen"], made.edges.nnz
        table = table_of(model, text, case.latents)
        cut = local_pass(model, ids, [bind(METRIC, model)], Freeze(attention=True, norms=True))
        taken["alone"].append(
            seconds(lambda table=table, cut=cut: Stretches.of(model, table, cut).edges())
        )
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    medians = {name: statistics.median(times) for name, times in taken.items()}
    return medians | {"latents": latents, "edges": edges, "bytes": peak - before}


def table_of(model: SplicedModel, text: str, n: int | None) -> NodeTable:
    """The nodes that `attribute` takes."""
    effects = total_effects(model, text, METRIC)
    strongest = effects.strongest(n)
    wanted = {(node.site, node.latent, node.pos) for node in strongest}
    latents = {}
    for site, e in effects.sites.items():
        pairs = zip(e.latent.tolist(), e.pos.tolist(), strict=True)
        kept = torch.tensor([(site, *pair) in wanted for pair in pairs], dtype=torch.bool)
        latents[site] = Active(e.pos[kept], e.latent[kept], e.acts[kept])
    return NodeTable.of(len(effects.token_effect), latents, ("metric",))


def seconds(step: Any) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def build(case: Case, folder: Path) -> SplicedModel:
    """A random Gemma 2 with random dictionaries, of whose latents a share is on."""
    save_random_gemma(folder, case, VOCAB, n_ctx=max(64, case.tokens))
    bridge = load_gemma(str(folder), device="cpu")
    widths = {"attn": case.n_heads * case.head_dim}
    sites = [Site(layer, kind) for layer in range(case.n_layers) for kind in case.kinds]
    blank = {site: dictionary(widths.get(site.kind, case.d_model), case.d_sae) for site in sites}
    model = splice(bridge, blank)
    sample = model.tokens(" ".join(f"w{i}" for i in range(9, 8 + min(case.tokens, 200))))
    inputs = model.activations(sample)[1]
    tuned = {}
    for site, d in blank.items():
        pre = d.pre_acts(inputs[site][0, 1:])
        at = pre.flatten().kthvalue(int(pre.numel() * (1 - case.on))).values
        tuned[site] = Dictionary(d.W_enc, d.b_enc, torch.zeros_like(d.b_enc) + at, d.W_dec, d.b_dec)
    return splice(bridge, tuned, name="random")


def dictionary(width: int, d_sae: int) -> Dictionary:
    encoder = torch.randn(width, d_sae) * width**-0.5
    return Dictionary(
        encoder, torch.zeros(d_sae), torch.zeros(d_sae), encoder.T * 0.1, torch.randn(width) * 0.1
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(CASES[sys.argv[2]], int(sys.argv[3]))))
    else:
        main()
