"""A question for the model: the text, a right and a wrong answer, and a partner to compare with."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """What the model reads, and which answers are compared.

    Attributes:
        text: What the model reads (clean). BOS is added by the tokenizer.
        target: The right answer, one token as it follows the text (for Gemma with its leading
            space: `" Mary"`).
        foil: The wrong answer that the target is compared with, one token.
        corrupted: A partner of `text` with as many tokens that does not show the behaviour.
    """

    text: str
    target: str | None = None
    foil: str | None = None
    corrupted: str | None = None
