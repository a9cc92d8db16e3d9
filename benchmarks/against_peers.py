"""Time and memory of a graph with transcoders and of its pruning, beside circuit-tracer 0.5.0.

python benchmarks/against_peers.py              # all cases, some 25 minutes on two idle cores
python benchmarks/against_peers.py --quick      # the smallest
python benchmarks/against_peers.py --only d256-10k-24 --only d2304-1k-24

Both get the same random Gemma 2 and transcoders, the same prompt and thresholds, float32 and the
same number of threads; each has every active latent in its graph and prunes with shares 0.8 and
0.98. They run in turn, one process each; loading is not timed. Before times count, the two must
have the same latents and the same edges. Both draw the graph once before: what a process' first
graph takes here is told aside. circuit-tracer (TransformerLens back end) runs in an environment of
its own, made below --env on the first run (1 GB and more with torch: pip's configuration says where
it comes from), with several batch sizes, of which the fastest counts. Linux only: peaks of memory
are read from /proc.
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
import venv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from peer_circuit_tracer import N_ROWS, serve
from torch import Tensor

HERE = Path(__file__).parent
PEER = "circuit-tracer==0.5.0"
VOCAB, D_SAE, WINDOW, BOS = 1024, 4096, 16, 2
TOKENS = (8, 24, 48)
TOLERANCE = 1e-3
"""The largest difference of two edges, relative to the strongest into the same target."""


@dataclass(frozen=True)
class Shape:
    """A small Gemma 2."""

    n_layers: int
    n_heads: int
    head_dim: int
    n_kv_heads: int
    d_mlp: int
    batch_sizes: dict[int, tuple[int, ...]]
    """That circuit-tracer is tried with, by the number of latents; its default is 512."""


SHAPES = {
    256: Shape(
        6, 4, 64, 2, 1024, {1000: (512, 128, 64, 32), 4000: (512, 128, 64), 10000: (512, 64)}
    ),
    2304: Shape(3, 8, 256, 4, 9216, {1000: (128, 32, 16), 4000: (64, 32), 10000: (32,)}),
}


@dataclass(frozen=True)
class Case:
    d_model: int
    latents: int
    tokens: int

    @property
    def name(self) -> str:
        return f"d{self.d_model}-{self.latents // 1000}k-{self.tokens}"


CASES = [
    *(Case(256, latents, tokens) for tokens in TOKENS for latents in (1000, 4000, 10000)),
    *(Case(2304, latents, 24) for latents in (1000, 4000, 10000)),
]


@dataclass(frozen=True)
class Outcome:
    """What was measured of one case: each side's answers, round by round.

    Attributes:
        batch_size: circuit-tracer's fastest.
        first: Of the graph that is ours and that only warms the process.
        clock: `wall` or `cpu`: which seconds count.
        difference: Of the edges; see `TOLERANCE`.
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
            build(d_model, Path(folder))
            for case in group:
                told = describe(case, Path(folder), threads)
                outcomes.append(measure_case(case, told, python, repeats, enough, clock or "wall"))
                theirs, own = outcomes[-1].totals
                click.echo(f"{case.name}: {theirs:.2f} s against {own:.2f} s", err=True)
    show(outcomes)
    show_growth(outcomes)


def choose(names: Sequence[str]) -> list[Case]:
    known = {case.name: case for case in CASES}
    if unknown := set(names) - known.keys():
        raise click.UsageError(f"no case {', '.join(unknown)}; there are {', '.join(known)}")
    return [case for name, case in known.items() if name in names or not names]


# --- the peer's environment


def peer_environment(folder: Path) -> Path:
    """The Python of an environment with the peer and this environment's torch, made if need be."""
    python = folder / "bin" / "python"
    torch_version = version("torch").partition("+")[0]
    if python.exists() and installed(python, "torch", "circuit-tracer") == [
        torch_version,
        PEER.partition("==")[2],
    ]:
        return python
    click.echo(f"making {folder} with {PEER}", err=True)
    venv.create(folder, with_pip=True)
    # torch by itself first: the one wanted, before anything else can ask for another
    for packages in ([f"torch=={torch_version}"], [f"torch=={torch_version}", PEER]):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def installed(python: Path, *names: str) -> list[str]:
    """Versions in an environment, without the build's label; empty where one is missing."""
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    answer = subprocess.run([python, "-c", code, *names], capture_output=True, text=True)
    return [word.partition("+")[0] for word in answer.stdout.split()]


# --- model, transcoders and prompt


def build(d_model: int, folder: Path) -> None:
    """A random Gemma 2 with its tokenizer."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    shape = SHAPES[d_model]
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=VOCAB,
            hidden_size=d_model,
            intermediate_size=shape.d_mlp,
            num_hidden_layers=shape.n_layers,
            num_attention_heads=shape.n_heads,
            num_key_value_heads=shape.n_kv_heads,
            head_dim=shape.head_dim,
            query_pre_attn_scalar=shape.head_dim,
            sliding_window=WINDOW,
            max_position_embeddings=64,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=BOS,
        )
    )
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data.normal_(0, 1.5 * weight.shape[-1] ** -0.5)  # keeps attention from flat
        else:
            weight.data.normal_(0, 0.1)
    model.save_pretrained(folder)
    save_words(folder)


def save_words(folder: Path) -> None:
    """A tokenizer whose words are w4, w5, ..., each with its own number as id."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"w{i}" for i in range(4, VOCAB))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="right", **special
    ).save_pretrained(folder)


def prompt_ids(tokens: int) -> list[int]:
    """BOS, where neither side has latents, and random words."""
    generator = torch.Generator().manual_seed(1)
    return [BOS, *torch.randint(4, VOCAB, (max(TOKENS) - 1,), generator=generator).tolist()][
        :tokens
    ]


@torch.no_grad()
def describe(case: Case, folder: Path, threads: int) -> dict[str, Any]:
    """What both sides are told; writes a transcoder for each layer of the model in `folder`."""
    from safetensors.torch import save_file
    from transformers import Gemma2ForCausalLM

    model: Any = Gemma2ForCausalLM.from_pretrained(folder, attn_implementation="eager")
    ids = prompt_ids(case.tokens)
    read, written = [], []

    def keep_read(module: Any, args: tuple[Tensor], out: Tensor) -> None:
        x = args[0][0, 1:]  # what the norm reads, without BOS
        read.append(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.eps))

    def keep_written(module: Any, args: tuple[Tensor], out: Tensor) -> None:
        written.append(out[0, 1:])

    for layer in model.model.layers:
        layer.pre_feedforward_layernorm.register_forward_hook(keep_read)
        layer.post_feedforward_layernorm.register_forward_hook(keep_written)
    assert model(torch.tensor([ids])).logits.isfinite().all()
    torch.manual_seed(2)
    files = []
    for layer, (x_in, x_out) in enumerate(zip(read, written, strict=True)):
        files.append(str(folder / f"{case.name}.transcoder.{layer}.safetensors"))
        save_file(transcoder(x_in, x_out, case.latents // len(read)), files[-1])
    return {"folder": str(folder), "transcoders": files, "ids": ids, "threads": threads}


def transcoder(x_in: Tensor, x_out: Tensor, active: int) -> dict[str, Tensor]:
    """A random encoder, of which about `active` latents are on at the positions of `x_in [n, d]`.

    The decoder is random too, then moved by the least that takes away nine tenths of what it misses
    of `x_out [n, d]`: were errors all there is, pruning would have no latents to keep.
    """
    d_model = x_in.shape[1]
    W_enc = torch.randn(d_model, D_SAE) * d_model**-0.5
    b_enc, b_dec = torch.randn(D_SAE) * 0.1, torch.randn(d_model) * 0.1
    pre = x_in @ W_enc + b_enc
    at = threshold(pre, active)
    acts = pre * (pre > at)
    W_dec = torch.randn(D_SAE, d_model) * 0.01
    W_dec += 0.9 * torch.linalg.pinv(acts) @ (x_out - acts @ W_dec - b_dec)
    thresholds = torch.full((D_SAE,), at)
    return {"W_enc": W_enc, "b_enc": b_enc, "threshold": thresholds, "W_dec": W_dec, "b_dec": b_dec}


def threshold(pre: Tensor, wanted: int) -> float:
    """What about `wanted` of `pre` exceed: the middle of the widest gap within 1 %.

    In the middle of a gap, rounding cannot put a latent on the other side for one of the two.
    """
    falling = pre.flatten().sort(descending=True).values
    spread = max(wanted // 100, 2)
    near = falling[wanted - spread : wanted + spread]
    at = int((near[:-1] - near[1:]).argmax())
    return float(near[at : at + 2].mean())


# --- our side


class Ours:
    """This project, with everything of a case loaded."""

    def __init__(self, case: dict[str, Any]) -> None:
        from safetensors.torch import load_file

        from circuits import Dictionary, Site, load_gemma, splice

        dictionaries = {}
        for layer, path in enumerate(case["transcoders"]):
            arrays: Any = load_file(path)
            dictionaries[Site(layer, "transcoder")] = Dictionary(**arrays)
        bridge = load_gemma(case["folder"], device="cpu")
        self.model = splice(bridge, dictionaries, name="random")
        self.text = " ".join(f"w{token}" for token in case["ids"][1:])
        assert self.model.tokens(self.text).tolist() == [case["ids"]]

    def graph(self, batch_size: int | None, max_latents: int | None = None) -> Any:
        from attribution import attribute, top_logits

        targets = top_logits(self.model, self.text)
        return attribute(self.model, self.text, targets, max_latents=max_latents)

    def prune(self, graph: Any) -> int:
        from circuits import LatentNode
        from graphs.adjacency import adjacency
        from graphs.prune import prune_adjacency

        part = prune_adjacency(adjacency(graph), 0.8, 0.98)
        return sum(isinstance(graph.nodes[i], LatentNode) for i in part.kept)

    def sample(self, graph: Any) -> dict[str, np.ndarray]:
        from circuits import ErrorNode, LatentNode, LogitNode, TokenNode

        def places(kind: type, key: Any) -> dict[Any, int]:
            """Where the nodes of one kind stand, in the order of `key`."""
            found = {key(node): i for i, node in enumerate(graph.nodes) if isinstance(node, kind)}
            return dict(sorted(found.items()))

        latents = places(LatentNode, lambda node: (node.site.layer, node.pos, node.latent))
        errors = places(ErrorNode, lambda node: (node.site.layer, node.pos))
        tokens = places(TokenNode, lambda node: node.pos)
        logits = places(LogitNode, lambda node: int(node.name.split()[1].removeprefix("w")))
        chosen = np.linspace(0, len(latents) - 1, N_ROWS).round().astype(int)
        into = [*np.array(list(latents.values()))[chosen], *logits.values()]
        sources = [*latents.values(), *errors.values(), *tokens.values()]
        rows = graph.edges[into].toarray()[:, sources]
        return {"latents": np.array(list(latents)), "logits": np.array(list(logits)), "rows": rows}


# --- measuring


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
        yield lambda batch_size, sample: ask({"batch_size": batch_size, "sample": sample})
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
        ours = stack.enter_context(worker([sys.executable, __file__, "--serve"], told))
        tried: dict[int, dict[str, float]] = {}
        for size in SHAPES[case.d_model].batch_sizes[case.latents]:
            tried[size] = peer(size, samples["peer"])
        best = min(tried, key=lambda size: tried[size][f"graph_{clock}"])
        first = ours(None, samples["ours"])
        latents, difference = compare(*(np.load(path) for path in samples.values()))
        peers, own = [], []
        while not own or (len(own) < repeats and time.perf_counter() - begun < enough):
            peers.append(peer(best, None))
            own.append(ours(None, None))
    return Outcome(case, latents, best, first, peers, own, clock, difference)


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


# --- the report


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


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve(Ours)
    else:
        main()
