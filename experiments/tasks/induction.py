"""Induction: in a random sequence of words, what followed a word before follows it again."""

from random import Random

from circuits.prompts import Prompt
from experiments.tasks.task import Sentence, Split, Task, held_out
from experiments.tasks.words import nouns

WORDS = nouns()
SHORTEST, LONGEST = 4, 24  # of the sequence before anything repeats; the model's window is 16
TOTAL = 44  # of a training sequence with its repeats


def _sequence(rng: Random, length: int) -> list[int]:
    """Different words, no two neighbours a held-out pair."""
    sequence = [rng.randrange(len(WORDS))]
    while len(sequence) < length:
        word = rng.randrange(len(WORDS))
        if word not in sequence and not held_out(sequence[-1], word):
            sequence.append(word)
    return sequence


def _ask(rng: Random, split: Split) -> tuple[list[int], int]:
    """A sequence and a place in it; the pair of neighbours that begins there is of the split."""
    # the short ones, from which the long ones are learned, are the more frequent
    sequence = _sequence(rng, min(rng.randint(SHORTEST, LONGEST) for _ in range(2)))
    place = rng.randrange(len(sequence) - 1)
    while split == "heldout":
        word = rng.randrange(len(WORDS))
        if word not in sequence and held_out(sequence[place], word):
            sequence[place + 1] = word
            break
    return sequence, place


def _sentence(rng: Random, split: Split) -> Sentence:
    """A sequence, then its end again and again, from random places.

    In training no two stretches meet at a held-out pair.
    """
    sequence, place = _ask(rng, split)
    text, answers = [*sequence], []
    while len(text) < TOTAL:
        stretch = sequence[place:]  # to the end: within a stretch every next word is certain
        if split == "heldout" or not held_out(text[-1], stretch[0]):
            answers += range(len(text) + 1, len(text) + len(stretch))
            text += stretch
        place = rng.randrange(len(sequence) - 1)
    words = (WORDS[word] for word in text[:TOTAL])
    return Sentence(
        " ".join(words), frozenset(place for place in answers if place < TOTAL), random=True
    )


def _prompt(rng: Random, split: Split) -> Prompt:
    sequence, place = _ask(rng, split)
    other = rng.choice([word for word in range(len(WORDS)) if word not in sequence])
    changed = [*sequence[: place + 1], other, *sequence[place + 2 :]]
    return Prompt(
        " ".join(WORDS[word] for word in [*sequence, sequence[place]]),
        target=WORDS[sequence[place + 1]],
        foil=WORDS[other],
        corrupted=" ".join(WORDS[word] for word in [*changed, sequence[place]]),
    )


INDUCTION = Task(
    name="induction",
    summary="'car ring school boy ... ring' -> school, on random nouns",
    sentence=_sentence,
    prompt=_prompt,
)
