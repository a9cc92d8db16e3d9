"""Between text and token ids: BOS first, padding on the right, every mistake in one sentence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circuits.errors import UserError, first_of
from circuits.prompts import Prompt

Prompts = str | Prompt | Tensor | Sequence["str | Prompt"]


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokenizer, with what its messages need to say.

    Attributes:
        tokenizer: Hugging Face's.
        name: The model's, for messages.
        n_ctx: Tokens that the model reads at most, BOS included.
        d_vocab: How many token ids the model has.
    """

    tokenizer: Any
    name: str
    n_ctx: int
    d_vocab: int

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id

    def ids(self, prompt: Prompts) -> Tensor:
        """Token ids `[batch, pos]`; a tensor is checked and passed on."""
        if isinstance(prompt, Tensor):
            return self._checked(prompt)
        prompts = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
        if not prompts:
            raise UserError("no prompt given; give at least one text")
        rows = [self.encode(_text(p)) for p in prompts]
        longest = max(map(len, rows))
        return torch.tensor([row + [self.pad_id] * (longest - len(row)) for row in rows])

    def _checked(self, given: Tensor) -> Tensor:
        """Token ids given as a tensor, as `[batch, pos]`."""
        ids = given if given.ndim == 2 else given[None]
        if ids.ndim != 2 or ids.dtype not in (torch.int64, torch.int32) or not ids.numel():
            raise UserError(
                "token ids are integers [pos] or [batch, pos], at least one; "
                f"got {given.dtype} {list(given.shape)}"
            )
        if ids.shape[1] > self.n_ctx:
            raise UserError(f"{ids.shape[1]} token ids; {self.name} reads at most {self.n_ctx}")
        if ids.min() < 0 or ids.max() >= self.d_vocab:
            raise UserError(
                f"token ids from {ids.min()} to {ids.max()}; "
                f"{self.name} has 0 to {self.d_vocab - 1}"
            )
        return ids

    def encode(self, text: str) -> list[int]:
        """The ids of one text, BOS first and once."""
        bos = self.tokenizer.bos_token_id
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        if ids[:1] != [bos]:
            ids = [bos, *ids]
        if len(ids) == 1:
            raise UserError("the prompt is empty; give at least one token")
        if len(ids) > self.n_ctx:
            raise UserError(
                f"the prompt has {len(ids)} tokens with BOS; {self.name} reads at most {self.n_ctx}"
            )
        if self.tokenizer.unk_token_id in ids:
            raise UserError(
                f"{self.name} does not know {self._unknown(text)}; "
                "use words of its vocabulary, separated by spaces"
            )
        return ids

    def token_id(self, text: str) -> int:
        """The one token that `text` is."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        if len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id:
            pieces = ", ".join(map(repr, self.words(ids))) or "no tokens"
            raise UserError(
                f"{text!r} is not one token of {self.name} (it is {pieces}); "
                "write it as it follows the text, for Gemma with the leading space"
            )
        return ids[0]

    def words(self, ids: Sequence[int]) -> list[str]:
        """Each token as text."""
        return [self.tokenizer.decode([i]) for i in ids]

    def is_text(self, ids: Tensor) -> Tensor:
        """Which ids are neither BOS nor EOS nor padding, of the shape of `ids`."""
        special = [self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.pad_id]
        known = [i for i in special if i is not None]
        return ~torch.isin(ids, torch.tensor(known, device=ids.device))

    def _unknown(self, text: str) -> str:
        """The first words of `text` that the tokenizer does not know, and how many more."""
        unk = self.tokenizer.unk_token_id
        words = dict.fromkeys(text.split())
        unknown = [repr(word) for word in words if unk in self.tokenizer(word).input_ids]
        return first_of(unknown) or "a character of the prompt"


def _text(prompt: object) -> str:
    """The text of one prompt."""
    text = prompt.text if isinstance(prompt, Prompt) else prompt
    if not isinstance(text, str):
        raise UserError(f"a prompt is a text or a Prompt; got {type(text).__name__} {text!r}")
    return text
