"""How good the bundled model and its dictionaries are, on held-out text, as Markdown tables.

1. Tasks: the model alone, with all autoencoders at once and with all transcoders at once, error
   terms dropped.
2. Sites: explained variance, L0, dead latents, and the loss recovered by each dictionary alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import click
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import Gemma2ForCausalLM

from circuits.dictionaries import Dictionary
from circuits.errors import UserError
from circuits.files import check_writable, write_atomically
from circuits.loading.gemma_scope import dictionaries_from_folder
from circuits.sites import KINDS, Site
from experiments.tasks import TASKS
from experiments.tiny.activations import (
    Activations,
    Replace,
    batches,
    collect,
    hooked,
    reads,
)
from experiments.tiny.language import PAD, token_ids
from experiments.tiny.success import Change, task_success
from experiments.tiny.train_dictionaries import load_model
from experiments.tiny.train_model import BUNDLED

SEED = 1000  # of the text measured on; training uses small ones
TOGETHER = {"autoencoders": KINDS, "transcoders": ("transcoder",)}
"""Kinds of site that are spliced in at once; mlp and transcoder write the same place."""


@dataclass(frozen=True)
class SiteQuality:
    """One dictionary on held-out text.

    Attributes:
        explained: 1 - |x - x_hat|^2 / |x - mean|^2 of what is written, summed over tokens.
        l0: Active latents per token.
        dead: Share of the latents that are never active.
        recovered: (loss(zero) - loss(spliced)) / (loss(zero) - loss(model)), each with this site
            alone changed.
    """

    explained: float
    l0: float
    dead: float
    recovered: float


def spliced(dictionary: Dictionary, here: Tensor) -> Replace:
    """The reconstruction in place of what is written, error dropped, where dictionaries read."""

    def replace(read: Tensor, written: Tensor) -> Tensor:
        return torch.where(here[..., None], dictionary.decode(dictionary.encode(read)), written)

    return replace


def zeroed(here: Tensor) -> Replace:
    """Nothing in place of what is written, where dictionaries read."""
    return lambda read, written: torch.where(here[..., None], 0.0, written)


@torch.no_grad()
def loss(model: Gemma2ForCausalLM, texts: list[Tensor], change: Change = lambda here: {}) -> float:
    """Mean nats per token on batches of ids, each site passed through what `change(here)` gives."""
    total, count = 0.0, 0
    for ids in texts:
        with hooked(model, change(reads(ids))):
            logits = model(input_ids=ids, use_cache=False).logits
        following = ids[:, 1:].flatten()
        pad = token_ids()[PAD]
        total += F.cross_entropy(
            logits[:, :-1].flatten(0, 1), following, ignore_index=pad, reduction="sum"
        ).item()
        count += int((following != pad).sum())
    return total / count


@torch.no_grad()
def site_quality(
    model: Gemma2ForCausalLM,
    site: Site,
    dictionary: Dictionary,
    x: Activations,
    texts: list[Tensor],
) -> SiteQuality:
    """The quality of one dictionary, on activations of its site and batches of ids."""
    left, active, on = 0.0, 0.0, torch.zeros(dictionary.d_sae, dtype=torch.bool)
    for read, written in zip(x.read.split(8192), x.written.split(8192), strict=True):
        acts = dictionary.encode(read)
        left += (written - dictionary.decode(acts)).square().sum().item()
        active += (acts > 0).sum().item()
        on |= (acts > 0).any(0)
    zero = loss(model, texts, lambda here: {site: zeroed(here)})
    alone = loss(model, texts, lambda here: {site: spliced(dictionary, here)})
    plain = loss(model, texts)
    return SiteQuality(
        explained=1 - left / (x.written - x.written.mean(0)).square().sum().item(),
        l0=active / len(x.read),
        dead=1 - on.float().mean().item(),
        recovered=(zero - alone) / (zero - plain),
    )


def all_at_once(dictionaries: Mapping[Site, Dictionary], here: Tensor) -> dict[Site, Replace]:
    """Every site its reconstruction, errors dropped."""
    return {site: spliced(dictionary, here) for site, dictionary in dictionaries.items()}


def task_table(
    model: Gemma2ForCausalLM,
    together: Mapping[str, Mapping[Site, Dictionary]],
    n_prompts: int,
) -> list[str]:
    """Each task by the model alone, and with each group of sites their reconstructions."""
    changes: list[Change] = [lambda here: {}]
    changes += [partial(all_at_once, dictionaries) for dictionaries in together.values()]
    heads = ["model", *(f"all {group}, errors dropped" for group in together)]
    lines = [f"| task | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for name in tqdm(TASKS, desc="tasks"):
        scores = [task_success(model, name, n_prompts, change) for change in changes]
        lines.append(f"| {name} | {' | '.join(f'{score:.4f}' for score in scores)} |")
    return lines


def all_loss(
    model: Gemma2ForCausalLM,
    group: str,
    dictionaries: Mapping[Site, Dictionary],
    texts: list[Tensor],
) -> str:
    """The loss with every site its reconstruction, in a sentence."""
    plain, together = loss(model, texts), loss(model, texts, partial(all_at_once, dictionaries))
    nothing = loss(model, texts, lambda here: {site: zeroed(here) for site in dictionaries})
    return (
        f"Loss on held-out text, nats per token: {plain:.4f} for the model, {together:.4f} with "
        f"all {len(dictionaries)} {group} at once and errors dropped, {nothing:.4f} with "
        f"what they write zeroed: {(nothing - together) / (nothing - plain):.1%} recovered."
    )


def site_table(
    model: Gemma2ForCausalLM,
    dictionaries: Mapping[Site, Dictionary],
    texts: list[Tensor],
    n_tokens: int,
) -> list[str]:
    """Each dictionary alone."""
    lines = [
        "| site | explained variance | mean L0 | dead latents | loss recovered |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    x = collect(model, tuple(dictionaries), n_tokens=n_tokens, seed=SEED + 1, split="heldout")
    for site, dictionary in tqdm(dictionaries.items(), desc="sites"):
        q = site_quality(model, site, dictionary, x.pop(site), texts)
        lines.append(
            f"| {site} | {q.explained:.3f} | {q.l0:.1f} | {q.dead:.1%} | {q.recovered:.3f} |"
        )
    return lines


def report(out: Path, n_prompts: int, n_tokens: int) -> str:
    """The tables, as Markdown."""
    model = load_model(out)
    together = {
        group: dictionaries_from_folder(out / "dictionaries", sites=kinds, width="1k")
        for group, kinds in TOGETHER.items()
    }
    texts = list(islice(batches(SEED, "heldout"), 12))
    lines = [
        f"Held-out prompts, at most {n_prompts} a task: share answered right (greater_than: "
        "probability on the valid years).",
        "",
        *task_table(model, together, n_prompts),
    ]
    for group, dictionaries in together.items():
        lines += ["", all_loss(model, group, dictionaries, texts)]
    lines += ["", f"Each dictionary alone, on {n_tokens:,} held-out tokens:"]
    for dictionaries in together.values():
        lines += ["", *site_table(model, dictionaries, texts, n_tokens)]
    return "\n".join(lines) + "\n"


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=BUNDLED, show_default="bundled")
@click.option("--prompts", default=300, show_default=True, help="Prompts a task.")
@click.option("--tokens", default=200_000, show_default=True, help="Held-out tokens for the sites.")
@click.option("--save", type=click.Path(path_type=Path), help="Also write the tables to this file.")
@click.option("--force", is_flag=True, help="Replace that file.")
def main(out: Path, prompts: int, tokens: int, save: Path | None, force: bool) -> None:
    torch.set_num_threads(1)
    try:
        if save is not None:
            check_writable(save, overwrite=force)
        text = report(out, prompts, tokens)
        click.echo(text)
        if save is not None:
            write_atomically(save, text, overwrite=force)
    except UserError as error:
        raise click.UsageError(str(error)) from error


if __name__ == "__main__":
    main()
