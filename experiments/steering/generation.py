"""Continuations of a text with latents steered at every position, to see what that makes of it.

Every token costs a full forward pass over all before it: nothing is cached, so that a step is the
same steered pass that `steer` measures.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuits import Prompt, SplicedModel, UserError
from circuits.outputs import LAST_LOGITS
from circuits.whole_numbers import checked_seed, whole_number
from experiments.checks import one_prompt
from experiments.spans import ALL, SpanNode
from experiments.steering.modes import check_mode, steer_rows
from experiments.steering.vectors import Amounts, checked_numbers, positions, steered_nodes


@dataclass(frozen=True)
class Generation:
    """A continuation.

    Attributes:
        prompt: What is continued.
        text: The continuation alone, without EOS.
        ids: Its tokens, with EOS if it ended there.
        words: Each of them as text.
        ended: Whether it ended with EOS, and not at `max_new_tokens`.
    """

    prompt: str
    text: str
    ids: tuple[int, ...]
    words: tuple[str, ...]
    ended: bool

    def __str__(self) -> str:
        gap = "" if self.text[:1].isspace() or self.prompt[-1:].isspace() else " "
        return f"{self.prompt}{gap}{self.text}"


def generate(
    model: SplicedModel,
    prompt: str | Prompt,
    *,
    steer: Amounts | None = None,
    mode: str = "add",
    max_new_tokens: int = 20,
    temperature: float = 0.0,
    downstream: str = "recompute",
    seed: int = 0,
) -> Generation:
    """Continue `prompt` with latents steered at every position but BOS, also at the new ones.

    Args:
        model: The spliced model.
        prompt: A text.
        steer: What the activation of each latent is raised by, or set to:
            `{"mlp.3/latent.901": 8.0}`, or `curve.amounts(dose)`.
        mode: `add` raises it, `set` sets it, whatever the pass arrives with.
        max_new_tokens: Fewer are made if EOS comes first.
        temperature: What logits are divided by before a token is drawn; 0 takes the likeliest.
        downstream: What errors downstream do; see `SplicedModel.run`.
        seed: Of the draws.

    Raises:
        UserError: a latent that the model does not have or that is at a span, an unknown mode, a
            temperature below 0, or more tokens than the model reads.
    """
    checked_numbers([temperature], "a temperature of")
    if temperature < 0:
        raise UserError(f"temperature={temperature}; give 0 for the likeliest token, or more")
    check_mode(mode)
    seed = checked_seed(seed)
    amounts = _checked(model, steer or {})
    ids = check_continuation(model, prompt, list(amounts), max_new_tokens)
    n_given, ends, ended = ids.shape[1], _end_ids(model), False
    generator = torch.Generator().manual_seed(seed)
    while ids.shape[1] < n_given + max_new_tokens and not ended:
        token = _next(_logits(model, ids, amounts, mode, downstream), temperature, generator)
        ids = torch.cat([ids, ids.new_tensor([[token]])], 1)
        ended = token in ends
    new = ids[0, n_given:].tolist()
    text = prompt.text if isinstance(prompt, Prompt) else prompt
    return Generation(
        prompt=text,
        text=model.tokenizer.decode(new[:-1] if ended else new),
        ids=tuple(new),
        words=tuple(model.vocabulary.words(new)),
        ended=ended,
    )


def check_continuation(
    model: SplicedModel, prompt: str | Prompt, nodes: Sequence[SpanNode], max_new_tokens: int
) -> Tensor:
    """The tokens `[1, pos]` of `prompt`, if it can be continued with `nodes` steered.

    Raises:
        UserError: as `generate`.
    """
    for node in nodes:
        if node.span != ALL:
            raise UserError(
                f"{node} is at a span, but a continuation is steered at every position; "
                f"leave @{node.span} out"
            )
    ids = one_prompt(model, prompt, what="a continuation")
    _check_length(model, ids.shape[1], max_new_tokens)
    return ids


def _logits(
    model: SplicedModel, ids: Tensor, amounts: dict[SpanNode, float], mode: str, downstream: str
) -> Tensor:
    """The next token's, `[vocab]`."""
    edits = {}
    if amounts:
        nodes, values = list(amounts), [list(amounts.values())]
        edits, _ = steer_rows(model, ids, nodes, values, positions(model, ids, nodes), mode)
    return model.run(ids, edits, downstream=downstream, output=LAST_LOGITS)[0, -1]


def _next(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    # on the CPU and in float64: the same draws on every device
    p = (logits.double().cpu() / temperature).softmax(-1)
    return int(torch.multinomial(p, 1, generator=generator))


def _end_ids(model: SplicedModel) -> Collection[int]:
    """Tokens that end a text: the tokenizer's EOS, and those that the model says."""
    settings = getattr(model.bridge.original_model, "generation_config", None)
    told = getattr(settings, "eos_token_id", None)
    several = told if isinstance(told, list) else [told]
    return {i for i in [model.tokenizer.eos_token_id, *several] if i is not None}


def _checked(model: SplicedModel, steer: Amounts) -> dict[SpanNode, float]:
    """The amounts by latent, everywhere."""
    if not isinstance(steer, Mapping):
        raise UserError("give the latents with their amounts, for example {'mlp.3/latent.901': 8}")
    if not steer:
        return {}
    nodes = steered_nodes(model, list(steer))
    amounts = checked_numbers(list(steer.values()), "an amount of")
    return dict(zip(nodes, amounts, strict=True))


def _check_length(model: SplicedModel, n_given: int, n_new: int) -> None:
    n_new = whole_number("max_new_tokens", n_new)
    if n_given + n_new > model.n_ctx:
        raise UserError(
            f"the prompt has {n_given} tokens with BOS and max_new_tokens={n_new} makes "
            f"{n_given + n_new}; {model.name} reads at most {model.n_ctx}, so ask for at most "
            f"{model.n_ctx - n_given} or give a shorter prompt"
        )
