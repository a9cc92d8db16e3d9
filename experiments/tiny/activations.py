"""What each site of the bundled model carries, read and replaced by plain PyTorch hooks.

Kept apart from the framework's own splice, so that the one can be checked against the other.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from random import Random

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import Gemma2ForCausalLM

from circuits.sites import KINDS, Site
from experiments.tasks.task import Split
from experiments.tiny.language import BOS, EOS, PAD, encode_rows, long_rows, sentences, token_ids

Replace = Callable[[Tensor], Tensor]
"""From a site's activation [row, pos, d] to what the model goes on with."""

ROWS = 128
LONG_ONE_IN = 4  # rows of the batches below: three of one sentence, one long


def sites(model: Gemma2ForCausalLM) -> tuple[Site, ...]:
    """Every site of the model, in the order of the forward pass."""
    return tuple(Site(layer, kind) for layer in range(len(model.model.layers)) for kind in KINDS)


def reads(ids: Tensor) -> Tensor:
    """Where dictionaries read, [row, pos]: everywhere but BOS, EOS and padding."""
    specials = [token_ids()[special] for special in (BOS, EOS, PAD)]
    return ~torch.isin(ids, torch.tensor(specials))


@contextmanager
def hooked(model: Gemma2ForCausalLM, table: Mapping[Site, Replace]) -> Iterator[None]:
    """The model with each site's activation passed through its function."""
    handles = []
    for site, replace in table.items():
        layer = f"model.layers.{site.layer}"
        if site.kind == "attn":  # heads concatenated, on their way into W_O
            module = model.get_submodule(f"{layer}.self_attn.o_proj")
            handles.append(module.register_forward_pre_hook(_before(replace)))
        else:
            name = layer if site.kind == "resid" else f"{layer}.post_feedforward_layernorm"
            handles.append(model.get_submodule(name).register_forward_hook(_after(replace)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _before(replace: Replace) -> Callable:
    return lambda module, args: (replace(args[0]), *args[1:])


def _after(replace: Replace) -> Callable:
    def hook(module, args, output):
        if isinstance(output, tuple):  # a layer, in transformers before version 5
            return replace(output[0]), *output[1:]
        return replace(output)

    return hook


def batches(seed: int, split: Split) -> Iterator[Tensor]:
    """Token ids [row, pos] of the language, without end; short and long rows in turn."""
    rng = Random(seed)
    singles, longs = sentences(rng, split), long_rows(rng, split)
    while True:
        yield encode_rows(list(islice(longs, ROWS // LONG_ONE_IN))).ids
        yield encode_rows([[text] for text in islice(singles, ROWS - ROWS // LONG_ONE_IN)]).ids


@torch.no_grad()
def collect(
    model: Gemma2ForCausalLM,
    wanted: tuple[Site, ...],
    *,
    n_tokens: int,
    seed: int,
    split: Split = "train",
) -> dict[Site, Tensor]:
    """The activations [token, d] of `n_tokens` tokens at each site, BOS and padding left out."""
    kept: dict[Site, list[Tensor]] = {site: [] for site in wanted}
    source = batches(seed, split)
    with tqdm(total=n_tokens, unit="tok", desc="reading activations") as bar:
        while bar.n < n_tokens:
            ids = next(source)
            here = reads(ids)
            with hooked(model, {site: _keeper(kept[site], here) for site in wanted}):
                model(input_ids=ids, use_cache=False)
            bar.update(int(here.sum()))
    return {site: torch.cat(parts)[:n_tokens] for site, parts in kept.items()}


def _keeper(parts: list[Tensor], here: Tensor) -> Replace:
    def keep(x: Tensor) -> Tensor:
        parts.append(x[here])
        return x

    return keep
