"""A small random Llama of the random Gemma 2's sizes: `random_dictionaries` fit it too."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.random_gemma import D_HEAD, D_MODEL, N_HEADS, N_LAYERS, VOCAB

EOS, BOS = 1, 2


def save_random_llama(
    folder: Path,
    *,
    config_class: Any = LlamaConfig,
    model_class: Any = LlamaForCausalLM,
) -> Path:
    """A Hugging Face folder: grouped queries, no soft-caps, untied, no padding token."""
    torch.manual_seed(0)
    config = config_class(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        intermediate_size=64,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        num_key_value_heads=2,
        head_dim=D_HEAD,
        max_position_embeddings=32,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        pad_token_id=None,
        eos_token_id=EOS,
        bos_token_id=BOS,
    )
    model = model_class(config)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            weight.data.normal_(1, 0.2)  # a norm's gain
        else:
            weight.data.normal_(0, 1.0 if "embed_tokens" in name else 0.3)
    model.save_pretrained(folder)
    words = ["<unk>", "<eos>", "<bos>", "<user>", *(f"w{i}" for i in range(VOCAB - 4))]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder
