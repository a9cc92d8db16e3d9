"""What each site of the bundled model reads and writes, kept and replaced by plain PyTorch hooks.

An autoencoder's site reads what it writes; a transcoder's reads the MLP's normalised input, before
the norm's gain. Kept apart from the framework's own splice, so that the one can be checked against
the other.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from random import Random

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import Gemma2ForCausalLM

from circuits.sites import KINDS, Site
from experiments.tasks.task import Split
from experiments.tiny.language import BOS, EOS, PAD, encode_rows, long_rows, sentences, token_ids

Replace = Callable[[Tensor, Tensor], Tensor]
"""From what a site reads and what the model writes there, both [row, pos, d], to what the model
goes on with in the place of the latter."""

ROWS = 128
LONG_ONE_IN = 4  # rows of the batches below: three of one sentence, one long


@dataclass(frozen=True)
class Activations:
    """What a site reads and what the model writes there, [token, d]: for an autoencoder the same
    tensor."""

    read: Tensor
    written: Tensor


def sites(model: Gemma2ForCausalLM, kinds: tuple[str, ...] = KINDS) -> tuple[Site, ...]:
    """Every site of these kinds, in the order of the forward pass."""
    return tuple(Site(layer, kind) for layer in range(len(model.model.layers)) for kind in kinds)


def reads(ids: Tensor) -> Tensor:
    """Where dictionaries read, [row, pos]: everywhere but BOS, EOS and padding."""
    specials = [token_ids()[special] for special in (BOS, EOS, PAD)]
    return ~torch.isin(ids, torch.tensor(specials))


@contextmanager
def hooked(model: Gemma2ForCausalLM, table: Mapping[Site, Replace]) -> Iterator[None]:
    """The model with what is written at each site passed through its function."""
    handles = []
    for site, replace in table.items():
        layer = model.get_submodule(f"model.layers.{site.layer}")
        if site.kind == "attn":  # heads concatenated, on their way into W_O
            module = layer.get_submodule("self_attn.o_proj")
            handles.append(module.register_forward_pre_hook(_before(_same(replace))))
        elif site.kind == "resid":
            handles.append(layer.register_forward_hook(_after(_same(replace))))
        elif site.kind == "mlp":
            module = layer.get_submodule("post_feedforward_layernorm")
            handles.append(module.register_forward_hook(_after(_same(replace))))
        else:
            assert site.kind == "transcoder", site
            norm = layer.get_submodule("pre_feedforward_layernorm")
            held: list[Tensor] = []  # from where the MLP reads to where it writes
            handles.append(norm.register_forward_hook(_keep_normalised(held)))
            module = layer.get_submodule("post_feedforward_layernorm")
            handles.append(module.register_forward_hook(_after(_from(held, replace))))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _same(replace: Replace) -> Callable[[Tensor], Tensor]:
    """For a site that reads what it writes."""
    return lambda x: replace(x, x)


def _from(held: list[Tensor], replace: Replace) -> Callable[[Tensor], Tensor]:
    """For a site that reads what is `held`."""
    return lambda written: replace(held.pop(), written)


def _keep_normalised(held: list[Tensor]) -> Callable:
    """Keeps what the norm makes of its input before the gain."""

    def hook(norm, args, output):
        (x,) = args
        held.append(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps))

    return hook


def _before(replace: Callable[[Tensor], Tensor]) -> Callable:
    return lambda module, args: (replace(args[0]), *args[1:])


def _after(replace: Callable[[Tensor], Tensor]) -> Callable:
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
) -> dict[Site, Activations]:
    """The activations of `n_tokens` tokens at each site, BOS, EOS and padding left out."""
    kept: dict[Site, list[Activations]] = {site: [] for site in wanted}
    source = batches(seed, split)
    with tqdm(total=n_tokens, unit="tok", desc="reading activations") as bar:
        while bar.n < n_tokens:
            ids = next(source)
            here = reads(ids)
            with hooked(model, {site: _keeper(kept[site], here) for site in wanted}):
                model(input_ids=ids, use_cache=False)
            bar.update(int(here.sum()))
    return {site: _joined(parts, n_tokens) for site, parts in kept.items()}


def _keeper(parts: list[Activations], here: Tensor) -> Replace:
    def keep(read: Tensor, written: Tensor) -> Tensor:
        part = written[here]
        parts.append(Activations(part if read is written else read[here], part))
        return written

    return keep


def _joined(parts: list[Activations], n_tokens: int) -> Activations:
    """The first `n_tokens` rows of all `parts`."""
    written = torch.cat([part.written for part in parts])[:n_tokens]
    if all(part.read is part.written for part in parts):
        return Activations(written, written)
    return Activations(torch.cat([part.read for part in parts])[:n_tokens], written)
