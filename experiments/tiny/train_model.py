"""Train the bundled model: a small Gemma 2 on the small language.

1. Build: every part of Gemma 2 at work, weights from the seed.
2. Train: weighted next-token cross-entropy; Muon for the layers' matrices, AdamW for the rest.
   The opening steps see IOI and greater-than alone (see `OPENING_SHARES`).
3. Save: a Hugging Face folder, and a record of the run beside it.
"""

import json
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from random import Random

import click
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import Gemma2Config, Gemma2ForCausalLM

from circuits.errors import UserError
from circuits.files import write_atomically
from experiments.tasks import TASKS
from experiments.tiny.language import (
    OPENING_SHARES,
    Rows,
    build_tokenizer,
    encode_rows,
    example_texts,
    long_rows,
    sentences,
    vocabulary,
)
from experiments.tiny.muon import Muon
from experiments.tiny.success import task_success

BUNDLED = Path(__file__).parents[2] / "circuits" / "bundled" / "tiny"
EMBEDDING_STD, POST_NORM = 0.05, 0.2  # at the start
REPORTED = 50  # steps between reports
RECORDED = 20  # losses kept, for the test that retraces the start of the training


@dataclass(frozen=True)
class Settings:
    """What decides the weights, together with the language."""

    seed: int = 0
    steps: int = 1500
    opening: int = 150  # steps that see the opening's tasks alone, and no long rows
    opening_sentences: int = 128  # rows of these steps
    sentences: int = 64  # rows of one sentence in a step
    long_rows: int = 24  # rows of up to LONG_ROW tokens in a step
    hidden_rate: float = 0.02  # Muon: the layers' matrices
    rate: float = 3e-3  # AdamW: the embedding and the norms
    warmup: int = 50
    weight_decay: float = 0.05  # of the layers' matrices
    clip: float = 1.0


def build(seed: int) -> Gemma2ForCausalLM:
    """The untrained model: 4 layers, the even ones with a window of 16 tokens."""
    config = Gemma2Config(
        vocab_size=len(vocabulary()),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=16,
        max_position_embeddings=64,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    config._attn_implementation = "eager"  # the others leave out the soft-cap
    torch.manual_seed(seed)
    model = Gemma2ForCausalLM(config)
    # Gemma's norm after each sublayer would make it add a vector of size 1 to an embedding of
    # size 0.2 from the first step on, and drown the words; so start the other way round.
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=EMBEDDING_STD)
    # Queries and keys have no bias: without a part that all words share, heads that look at a
    # relative position alone (the word before) have to wait until one has been learned.
    with torch.no_grad():
        model.model.embed_tokens.weight += EMBEDDING_STD * torch.randn(config.hidden_size)
    for name, parameter in model.named_parameters():
        if "post_attention" in name or "post_feedforward" in name:
            torch.nn.init.constant_(parameter, POST_NORM - 1)  # Gemma's gain is 1 + weight
    return model


def batches(settings: Settings) -> Iterator[list[Rows]]:
    """The rows of each step, without end: at first the opening's tasks, then the whole language.

    They come in groups of like length, so that little of them is padding.
    """
    rng = Random(settings.seed)
    opening, whole = sentences(rng, shares=OPENING_SHARES), sentences(rng)
    longs = long_rows(rng)
    for step in count():
        in_opening = step < settings.opening
        n_rows = settings.opening_sentences if in_opening else settings.sentences
        rows = sorted(
            ([sentence] for sentence in islice(opening if in_opening else whole, n_rows)),
            key=lambda row: len(row[0].text.split()),
        )
        third = math.ceil(n_rows / 3)
        groups = [rows[start : start + third] for start in range(0, n_rows, third)]
        if not in_opening:
            groups.append(list(islice(longs, settings.long_rows)))
        yield [encode_rows(group) for group in groups]


def training(model: Gemma2ForCausalLM, settings: Settings) -> Iterator[float]:
    """Train `model` in place, one step for each loss taken (weighted mean, before the step)."""
    hidden = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim == 1 or p.shape[0] == len(vocabulary())]
    optimizers = (
        Muon(hidden, lr=settings.hidden_rate, weight_decay=settings.weight_decay),
        torch.optim.AdamW(others, lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.0),
    )
    for step, groups in enumerate(islice(batches(settings), settings.steps)):
        for optimizer, rate in zip(optimizers, (settings.hidden_rate, settings.rate), strict=True):
            optimizer.param_groups[0]["lr"] = rate * _share(step, settings)
            optimizer.zero_grad()
        loss = _backward(model, groups)
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        for optimizer in optimizers:
            optimizer.step()
        yield loss


def _share(step: int, settings: Settings) -> float:
    """Of the learning rates: a linear warm-up, then a cosine to zero."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    return min((step + 1) / settings.warmup, cosine)


def _backward(model: Gemma2ForCausalLM, groups: list[Rows]) -> float:
    """Gradients of the weighted mean of the next-token loss, over all rows of a step."""
    whole = sum(rows.weights[:, 1:].sum().item() for rows in groups)
    total = 0.0
    for rows in groups:
        with torch.autocast("cpu", dtype=torch.bfloat16):  # 1.7 times as fast; weights stay float32
            logits = model(input_ids=rows.ids, use_cache=False).logits.float()
        loss = (next_token_losses(logits, rows) * rows.weights[:, 1:]).sum() / whole
        loss.backward()
        total += loss.item()
    return total


def next_token_losses(logits: Tensor, rows: Rows) -> Tensor:
    """Nats for each token but the first [row, pos - 1]; expected ones where there are choices."""
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), rows.ids[:, 1:], reduction="none")
    if not rows.choices:
        return losses
    row, pos, words = zip(*rows.choices, strict=True)
    at = torch.tensor(row), torch.tensor(pos) - 1  # the position before predicts
    likely = torch.stack([_uniform(some, logits.shape[-1]) for some in words])
    expected = -(likely * logits[at].log_softmax(-1)).sum(-1)
    return losses.index_put(at, expected)


def _uniform(words: tuple[int, ...], d_vocab: int) -> Tensor:
    """The distribution [vocab] over `words`."""
    return torch.zeros(d_vocab).index_fill(0, torch.tensor(words), 1 / len(words))


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=BUNDLED, show_default="bundled")
@click.option("--steps", type=int, default=Settings.steps, show_default=True)
@click.option("--seed", type=int, default=Settings.seed, show_default=True)
@click.option("--threads", type=int, default=1, show_default=True, help="Threads of torch.")
@click.option("--force", is_flag=True, help="Replace the model that is there.")
def main(out: Path, steps: int, seed: int, threads: int, force: bool) -> None:
    folder = out / "model"
    if folder.exists() and not force:
        raise click.UsageError(f"{folder} exists already; pass --force or another --out")
    if steps < 1:
        raise click.UsageError(f"--steps {steps}: give at least 1")
    torch.set_num_threads(threads)
    settings = Settings(seed=seed, steps=steps)
    model = build(seed)
    started, cpu = time.perf_counter(), time.process_time()
    losses = []
    for loss in tqdm(training(model, settings), total=steps, desc="training the model"):
        losses.append(loss)
        if len(losses) % REPORTED == 0:
            solved = {name: round(task_success(model, name, 100), 3) for name in TASKS}
            tqdm.write(f"step {len(losses)}, loss {loss:.3f}: {solved}")
    record = {
        "command": f"python -m experiments.tiny.train_model --steps {steps} --seed {seed}",
        "settings": asdict(settings),
        "losses": losses[:RECORDED],
        "final_loss": sum(losses[-100:]) / len(losses[-100:]),
        "wall_seconds": round(time.perf_counter() - started),
        "cpu_seconds": round(time.process_time() - cpu),
        "threads": threads,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    (out / "texts.txt").write_text("\n".join(example_texts()) + "\n")
    try:
        write_atomically(
            out / "training.json", json.dumps(record, indent=1) + "\n", overwrite=force
        )
    except UserError as error:
        raise click.UsageError(str(error)) from error
    click.echo(f"{folder}: loss {record['final_loss']:.4f} after {record['wall_seconds']} s")


if __name__ == "__main__":
    main()
