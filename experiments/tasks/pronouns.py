"""Gendered pronouns: a name decides between he and she, his and her."""

from random import Random

from circuits.prompts import Prompt
from experiments.tasks.task import Sentence, Split, Task, answered, draw
from experiments.tasks.words import NAMES, OBJECTS, PLACES, names

POSSESSIVE = {"he": "his", "she": "her"}
# text before the pronoun, whether the pronoun is possessive, and what may follow it
TEMPLATES = (
    ("{name} went to the {place} because", False, "liked the {thing} ."),
    ("{name} found a {object} that", False, "liked ."),
    ("{name} took the {object} to", True, "friends ."),
    ("at the {place} {name} met", True, "friends ."),
)


def _draw(rng: Random, split: Split) -> tuple[Prompt, str]:
    """A prompt and how it goes on; the name and the place or object belong to the split."""
    name, index = draw(rng, split, len(NAMES), len(PLACES))
    template, possessive, tail = rng.choice(TEMPLATES)
    pronoun = NAMES[name][1]
    other = rng.choice([who for who, theirs in NAMES if theirs != pronoun])
    words = {"place": PLACES[index], "object": OBJECTS[index]}
    target, foil = pronoun, "she" if pronoun == "he" else "he"
    if possessive:
        target, foil = POSSESSIVE[target], POSSESSIVE[foil]
    prompt = Prompt(
        template.format(name=names()[name], **words),
        target=target,
        foil=foil,
        corrupted=template.format(name=other, **words),
    )
    return prompt, tail.format(thing=rng.choice(OBJECTS))


def _prompt(rng: Random, split: Split) -> Prompt:
    return _draw(rng, split)[0]


def _sentence(rng: Random, split: Split) -> Sentence:
    return answered(*_draw(rng, split))


PRONOUNS = Task(
    name="pronouns",
    summary="'Mary went to the store because' -> she",
    sentence=_sentence,
    prompt=_prompt,
)
