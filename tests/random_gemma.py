"""A small random Gemma 2 with random dictionaries: nothing in it is tuned to pass."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from circuits import KINDS, Dictionary, Site

N_LAYERS, D_MODEL, N_HEADS, D_HEAD, D_SAE, VOCAB = 3, 32, 4, 6, 96, 40
WIDTHS = {"attn": N_HEADS * D_HEAD, "transcoder": D_MODEL, "mlp": D_MODEL, "resid": D_MODEL}
TEXT = "w1 w5 w9 w2 w5 w9 w30 w7 w8 w11"


def save_random_gemma(
    folder: Path, *, seed: int = 0, vocab: int = VOCAB, spread: float = 0.2, **config: Any
) -> Path:
    """A Hugging Face folder: grouped queries, both soft-caps, a window of 4, norms with gains.

    `spread` is of the norms' gains; `config`, what the configuration has in the place of that.
    """
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "hidden_size": D_MODEL,
        "intermediate_size": 64,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS,
        "num_key_value_heads": 2,
        "head_dim": D_HEAD,
        "sliding_window": 4,
        "query_pre_attn_scalar": D_HEAD,
        "max_position_embeddings": 32,
    }
    model = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=vocab, pad_token_id=0, eos_token_id=1, bos_token_id=2, **(sizes | config)
        )
    )
    for weight in model.parameters():
        weight.data.normal_(0, spread if weight.ndim == 1 else 0.3)
    model.save_pretrained(folder)
    save_words(folder, vocab)
    return folder


def save_words(folder: Path, n: int) -> None:
    """A tokenizer of `n` words: padding, EOS, BOS, what it does not know, `w0`, `w1`, ..."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"w{i}" for i in range(n - 4))]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="right",
    ).save_pretrained(folder)


def chosen_dictionaries(kinds: Iterable[str], *, dtype: torch.dtype = torch.float32) -> dict:
    """At every layer one of each of `kinds`.

    `skip` is a transcoder with a skip connection, `cross` a cross-layer one, `cross residual` one
    that reads the residual stream.
    """
    every = random_dictionaries(dtype=dtype)
    transcoders = {
        "transcoder": random_transcoders,
        "skip": partial(random_transcoders, skip=True),
        "cross": random_cross_layer,
        "cross residual": partial(random_cross_layer, residual=True),
    }
    for kind in kinds:
        if kind in transcoders:
            every |= transcoders[kind](dtype=dtype)
    wanted = {"transcoder" if kind in transcoders else kind for kind in kinds}
    return {site: every[site] for site in sorted(every) if site.kind in wanted}


def random_transcoders(*, skip: bool = False, dtype: torch.dtype = torch.float32) -> dict:
    """One for every layer, as poor as `random_dictionaries`."""
    made = random_dictionaries(seed=2, dtype=dtype, kinds=("transcoder",))
    if not skip:
        return made
    generator = torch.Generator().manual_seed(3)
    return {
        site: replace(d, W_skip=torch.randn(D_MODEL, D_MODEL, generator=generator).to(dtype) * 0.1)
        for site, d in made.items()
    }


def random_dictionaries(
    *, seed: int = 1, dtype: torch.dtype = torch.float32, kinds: tuple[str, ...] = KINDS
) -> dict:
    """One for every site; about a third of the latents fire, and reconstruction is poor."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(dtype)

    return {
        Site(layer, kind): Dictionary(
            W_enc=random(WIDTHS[kind], D_SAE, scale=0.3),
            b_enc=random(D_SAE, scale=0.1),
            threshold=(torch.rand(D_SAE, generator=generator) + 0.5).to(dtype),
            W_dec=random(D_SAE, WIDTHS[kind], scale=0.1),
            b_dec=random(WIDTHS[kind], scale=0.1),
            name=f"random/{kind}.{layer}",
        )
        for layer in range(N_LAYERS)
        for kind in kinds
    }


def random_cross_layer(*, residual: bool = False, dtype: torch.dtype = torch.float32) -> dict:
    """A cross-layer transcoder: one for every layer, which writes to all layers after it too."""
    generator = torch.Generator().manual_seed(4)

    def later(n: int) -> torch.Tensor | None:
        shape = (D_SAE, n, D_MODEL)
        return torch.randn(*shape, generator=generator).to(dtype) * 0.1 if n else None

    return {
        site: replace(d, W_later=later(N_LAYERS - 1 - site.layer), reads_residual=residual)
        for site, d in random_transcoders(dtype=dtype).items()
    }
