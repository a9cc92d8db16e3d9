"""Which pairs a model's tokenizer can use: the others are told, not dropped in silence."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from circuits import Prompt, SplicedModel, UserError
from experiments.datasets.pairs import Pairs, as_pairs


def fitting(model: SplicedModel, pairs: Iterable[Prompt], *, aligned: bool = True) -> Pairs:
    """The pairs that `model` can be asked about; `left_out` of the result says why others are not.

    Args:
        model: Its tokenizer decides.
        pairs: Prompts; a partner or an answer that is None is not looked at.
        aligned: Whether the partner must have as many tokens, as patching needs, and differ.
    """
    pairs = as_pairs(pairs)

    @cache
    def length(text: str) -> int | None:
        try:
            return len(model.vocabulary.encode(text))
        except UserError:
            return None

    @cache
    def is_token(text: str) -> bool:
        try:
            model.token_id(text)
        except UserError:
            return False
        return True

    reasons: dict[str, list[Prompt]] = {}
    for prompt in pairs:
        texts = [text for text in (prompt.text, prompt.corrupted) if text is not None]
        lengths = [length(text) for text in texts]
        if None in lengths:
            reason = f"{model.name} cannot read it: unknown words, empty, or too long"
        elif any(not is_token(word) for word in (prompt.target, prompt.foil) if word is not None):
            reason = f"an answer is not one token of {model.name}"
        elif prompt.target is not None and prompt.target == prompt.foil:
            reason = "both answers are the same"
        elif aligned and prompt.text == prompt.corrupted:
            reason = "clean and corrupted are the same"
        elif aligned and len(set(lengths)) > 1:
            reason = "clean and corrupted differ in length"
        else:
            continue
        reasons.setdefault(reason, []).append(prompt)
    return pairs.without(reasons) if reasons else pairs
