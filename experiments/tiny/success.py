"""How often a model answers a task's held-out prompts."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from transformers import Gemma2ForCausalLM

from circuits.sites import Site
from experiments.tasks import TASKS
from experiments.tiny.activations import Replace, hooked, reads
from experiments.tiny.language import PAD, encode, token_ids

SEED = 1000  # of the prompts
Change = Callable[[Tensor], Mapping[Site, Replace]]
"""From where dictionaries read [row, pos] to what passes the sites' activations on."""


@torch.no_grad()
def task_success(
    model: Gemma2ForCausalLM, name: str, n: int, change: Change = lambda here: {}, seed: int = SEED
) -> float:
    """Mean success on `n` held-out prompts: accuracy, or probability mass where a task says so."""
    task = TASKS[name]
    prompts = task.prompts("heldout", n=n, seed=seed)
    ids = encode([prompt.text for prompt in prompts])
    with hooked(model, change(reads(ids))):
        logits = model(input_ids=ids, use_cache=False).logits
    ends = (ids != token_ids()[PAD]).sum(1) - 1
    scores = [
        task.success(prompt, logits[row, end], token_ids().__getitem__)
        for row, (prompt, end) in enumerate(zip(prompts, ends, strict=True))
    ]
    return sum(scores) / len(scores)
