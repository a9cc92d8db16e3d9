"""What a task is: sentences to learn from, prompts to ask, and what counts as right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from circuits.errors import UserError
from circuits.prompts import Prompt
from circuits.whole_numbers import checked_seed, whole_number

if TYPE_CHECKING:
    from attribution.metrics import Metric

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")


def held_out(*indices: int) -> bool:
    """Whether a combination of words, by their places in their lists, is never trained.

    One combination in five, spread like a Latin square: every single word is still trained, with
    four in five of its partners.
    """
    return sum(indices) % 5 == 0


def in_split(split: Split, *indices: int) -> bool:
    """Whether the combination belongs to `split`."""
    return held_out(*indices) == (split == "heldout")


def draw(rng: Random, split: Split, *sizes: int) -> tuple[int, ...]:
    """Random indices into lists of these sizes, as a combination of `split`."""
    while True:
        indices = tuple(rng.randrange(size) for size in sizes)
        if in_split(split, *indices):
            return indices


@dataclass(frozen=True)
class Sentence:
    """A text to learn from.

    Attributes:
        text: Words separated by spaces.
        answers: Places of the words that the rest of the sentence decides.
        random: The other words are drawn at random: there is nothing to learn in them.
        choices: Words that could as well stand in the place of the (one) answer, it included,
            all equally likely: training takes the expected loss over them.
    """

    text: str
    answers: frozenset[int]
    random: bool = False
    choices: tuple[str, ...] = ()


def answered(prompt: Prompt, tail: str = ".") -> Sentence:
    """The sentence that a prompt begins, with its target and how it goes on after that."""
    place = len(prompt.text.split())
    return Sentence(f"{prompt.text} {prompt.target} {tail}", frozenset({place}))


@dataclass(frozen=True)
class Task:
    """One behaviour of the bundled model.

    Attributes:
        name: Its key in `TASKS`.
        summary: What is asked, in one line.
        sentence: Writes one full sentence of a split.
        prompt: Asks one question of a split.
        right: The words that answer a prompt; by default its target alone.
        wrong: The words that `by_mass` compares with; needed only there.
        by_mass: Success is the probability mass on the right words (many are right) rather than
            the most likely word being one of them.
    """

    name: str
    summary: str
    sentence: Callable[[Random, Split], Sentence]
    prompt: Callable[[Random, Split], Prompt]
    right: Callable[[Prompt], tuple[str, ...]] = lambda prompt: (prompt.target or "",)
    wrong: Callable[[Prompt], tuple[str, ...]] = lambda prompt: (prompt.foil or "",)
    by_mass: bool = False

    def sentences(self, rng: Random, split: Split = "train") -> Iterator[Sentence]:
        """Sentences of `split`, without end."""
        _check(split)
        while True:
            yield self.sentence(rng, split)

    def prompts(self, split: Split = "heldout", n: int = 50, seed: int = 0) -> list[Prompt]:
        """`n` different prompts of `split`, the same for the same seed; fewer if it has fewer.

        Raises:
            UserError: no such split, or `n` or `seed` is no number for it.
        """
        _check(split)
        n = whole_number("n", n)
        rng = Random(f"{self.name} {split} {checked_seed(seed)}")
        found: dict[str, Prompt] = {}
        in_vain = 0  # draws since something new was found
        while len(found) < n and in_vain < 10 * (len(found) + 1000):
            prompt = self.prompt(rng, split)
            in_vain = in_vain + 1 if prompt.text in found else 0
            found.setdefault(prompt.text, prompt)
        return list(found.values())

    def metric(self, prompt: Prompt) -> Metric:
        """What attribution explains: right minus wrong, in logits or (`by_mass`) probability."""
        from attribution.metrics import logit_diff, prob_diff

        if self.by_mass:
            return prob_diff(list(self.right(prompt)), list(self.wrong(prompt)))
        return logit_diff(prompt)

    def success(self, prompt: Prompt, logits: Tensor, token_id: Callable[[str], int]) -> float:
        """How well the logits [vocab] after a prompt answer it, from 0 to 1.

        By mass: the probability on the right words. Else 1 if the most likely word is right and
        the target is above the foil, 0 if not.
        """
        right = [token_id(word) for word in self.right(prompt)]
        if self.by_mass:
            return logits.float().softmax(-1)[right].sum().item()
        assert prompt.target
        assert prompt.foil
        ahead = logits[token_id(prompt.target)] > logits[token_id(prompt.foil)]
        return float(bool(ahead) and logits.argmax().item() in right)


def _check(split: str) -> None:
    if split not in SPLITS:
        raise UserError(f"no split {split!r}; take one of {', '.join(SPLITS)}")
