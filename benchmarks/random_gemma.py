"""A random Gemma 2 of any shape, as a Hugging Face folder; `w7` is the word whose id is 7."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

if TYPE_CHECKING:
    from transformers import Gemma2Config

    from circuits.loading import shapes

BOS, FIRST_WORD = 2, 4


@dataclass(frozen=True)
class Shape:
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_mlp: int


def save_random_gemma(folder: Path, shape: Shape, vocab: int, n_ctx: int = 64) -> None:
    """In float32, with a window of 16 in every other layer."""
    from transformers import Gemma2ForCausalLM

    config = gemma_config(
        shape,
        vocab_size=vocab,
        query_pre_attn_scalar=shape.head_dim,
        sliding_window=16,
        max_position_embeddings=n_ctx,
    )
    torch.manual_seed(0)
    draw_and_save(Gemma2ForCausalLM(config), folder)


def gemma_config(shape: Shape | shapes.Shape, **others: Any) -> Gemma2Config:
    """The configuration of a shape; `others` by Hugging Face's names."""
    from transformers import Gemma2Config

    return Gemma2Config(
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        head_dim=shape.head_dim,
        **others,
    )


def draw_and_save(model: Any, folder: Path) -> None:
    """Draw the weights of a Hugging Face model, and save it with a tokenizer."""
    for weight in tqdm(list(model.parameters()), "weights", delay=1):
        # 1.5: so wide that attention is not flat
        scale = 0.1 if weight.ndim == 1 else 1.5 * weight.shape[-1] ** -0.5
        weight.data.normal_(0, scale)
    model.save_pretrained(folder)
    save_words(folder, model.config.vocab_size)


def save_words(folder: Path, vocab: int) -> None:
    """A tokenizer of words, each named by its id."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["pad", "eos", "bos", "unk"]
    words = [*(f"<{name}>" for name in special), *(f"w{i}" for i in range(FIRST_WORD, vocab))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {f"{name}_token": f"<{name}>" for name in special}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="right", **names
    ).save_pretrained(folder)


def prompt_ids(vocab: int, tokens: int, seed: int) -> list[int]:
    """BOS and random words."""
    generator = torch.Generator().manual_seed(seed)
    return [BOS, *torch.randint(FIRST_WORD, vocab, (tokens - 1,), generator=generator).tolist()]
